"""Files that are put on a host."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from userdev.errors import UserError
from userdev.process import Child
from vfio_user.harness.hosts import LocalHost, SshHost, ssh
from vfio_user.harness.hosts.ssh_connection import put


def test_what_puts_files_on_a_host_is_ended_when_it_takes_too_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[Child] = []

    def start(*arguments: Any, **more: Any) -> Child:
        started.append(Child(*arguments, **more))
        return started[-1]

    class Through(LocalHost):
        def command(self, argv: Sequence[str], socket: Path | None = None) -> list[str]:
            return ["sleep", "60"]

    monkeypatch.setattr(ssh, "Child", start)
    monkeypatch.setattr(ssh, "_PROVIDE_SECONDS", 0.0)
    with pytest.raises(UserError, match="could not be put"):
        SshHost("b", "host.example", "host.example", through=Through()).provide(tmp_path)
    assert [child.running for child in started] == [False]


class FullDisk:
    """A connection to a host where tar(1) has ended before it has read all."""

    def __init__(self) -> None:
        self.channel = self

    def exec_command(self, command: str) -> tuple[Any, Any, Any]:
        return self, BytesIO(), BytesIO(b"tar: no space left\n")

    def write(self, data: bytes) -> int:
        raise OSError("Socket is closed")


def test_files_that_do_not_arrive_say_why(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(10))
    connection: Any = FullDisk()
    with pytest.raises(UserError, match="could not be written there") as error:
        put(connection, tmp_path)
    assert error.value.hint == "tar: no space left"
