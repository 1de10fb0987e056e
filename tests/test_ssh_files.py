"""Files that are put on a host."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from userdev.errors import UserError
from userdev.process import Child
from vfio_user.harness.hosts import LocalHost, SshHost, ssh
from vfio_user.harness.hosts.host import lost_host
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


def test_a_host_is_silent_where_another_connection_is_not_made_and_says_why_not() -> None:
    refusal = "no SSH connection to host.example:22: timed out"

    class Through(LocalHost):
        def __init__(self, script: str) -> None:
            super().__init__()
            self.script = script

        def command(self, argv: Sequence[str], socket: Path | None = None) -> list[str]:
            return ["sh", "-c", self.script]

    for script, why in (("exit 0", ""), (f"echo {refusal}; exit 1", refusal)):
        host = SshHost("b", "host.example", "host.example", through=Through(script))
        programs: Any = SimpleNamespace(lost_connection="")
        assert (host.unanswered(), lost_host(programs, LocalHost("a"), host)) == (why, why)


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


class Shell:
    """A connection to a host whose files are in another folder of this machine."""

    def __init__(self, here: Path, there: Path) -> None:
        self._here, self._there = here, there
        self._programs: list[subprocess.Popen[bytes]] = []

    def exec_command(self, command: str) -> tuple[Any, Any, Any]:
        own = command.replace(str(self._here), str(self._there))
        ends: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        program: Any = subprocess.Popen(["sh", "-c", own], **ends)
        self._programs.append(program)
        stdin = SimpleNamespace(write=program.stdin.write, channel=SimpleNamespace(shutdown_write=program.stdin.close))
        stdout = SimpleNamespace(read=program.stdout.read, channel=SimpleNamespace(recv_exit_status=program.wait))
        return stdin, stdout, program.stderr

    def close(self) -> None:
        for program in self._programs:
            for end in (program.stdin, program.stdout, program.stderr):
                assert end is not None
                end.close()
            program.wait()


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[tuple[Path, Path, Any]]:
    """A folder here, the same on another host, and a connection to that."""
    here, there = tmp_path / "here", tmp_path / "there"
    files = {"program.py": b"limit = 1\n", "lib/x.so.1": bytes(100), os.fsdecode(b"gr\xf6\xdfe"): b""}
    for name, data in files.items():
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).write_bytes(data)
    (here / "lib/x.so").symlink_to("x.so.1")
    there.mkdir()
    connection = Shell(tmp_path / "here", there / "here")
    yield here, there / "here", connection
    connection.close()


def tree(folder: Path) -> dict[str, bytes | str]:
    """What is in a folder, by name."""
    found = (path for path in sorted(folder.rglob("*")) if path.is_symlink() or path.is_file())
    return {
        str(path.relative_to(folder)): str(path.readlink()) if path.is_symlink() else path.read_bytes()
        for path in found
    }


def test_a_folder_is_there_as_it_is_here_and_is_sent_once(hosts: tuple[Path, Path, Any]) -> None:
    here, there, connection = hosts
    assert [put(connection, here) for _ in range(2)] == [True, False]
    assert tree(there) == tree(here)
    assert [path.name for path in there.parent.iterdir()] == ["here"]


def test_what_was_changed_is_sent_again_though_it_is_as_long_as_before(hosts: tuple[Path, Path, Any]) -> None:
    """A number in a program, a library of another version, a link to another file."""
    here, there, connection = hosts
    put(connection, here)
    for change in ("a number", "a link", "a library", "one less"):
        before = tree(here)
        match change:
            case "a number":
                (here / "program.py").write_bytes(b"limit = 2\n")
            case "a link":
                (here / "lib/x.so").unlink()
                (here / "lib/x.so").symlink_to("x.so.2")
            case "a library":
                (here / "lib/x.so.1").rename(here / "lib/x.so.2")
            case _:
                (here / "lib/x.so.2").unlink()
        for path in (here / "program.py", here / "lib/x.so"):
            os.utime(path, (path.lstat().st_mtime + 2,) * 2, follow_symlinks=False)
        assert tree(here) != before, change
        assert [put(connection, here) for _ in range(2)] == [True, False], change
        assert tree(there) == tree(here), change


def test_one_file_is_replaced_and_those_beside_it_stay(hosts: tuple[Path, Path, Any]) -> None:
    here, there, connection = hosts
    put(connection, here)
    (here / "program.py").write_bytes(b"limit = 1000\n")
    assert [put(connection, here / "program.py") for _ in range(2)] == [True, False]
    assert tree(there) == tree(here)


def test_of_what_arrives_in_part_nothing_is_taken(hosts: tuple[Path, Path, Any]) -> None:
    here, there, connection = hosts
    put(connection, here)
    before = tree(there)
    (here / "program.py").write_bytes(os.urandom(1 << 20))
    usual = connection.exec_command

    def cut_off(command: str) -> tuple[Any, Any, Any]:
        stdin, stdout, stderr = usual(command)
        left = [1 << 18]

        def write(data: bytes) -> None:
            left[0] -= len(data)
            if left[0] < 0:
                stdin.channel.shutdown_write()
                raise OSError("Socket is closed")
            stdin.real(data)

        stdin.real, stdin.write = stdin.write, write
        return stdin, stdout, stderr

    connection.exec_command = cut_off
    with pytest.raises(UserError, match="could not be written there"):
        put(connection, here)
    connection.exec_command = usual
    connection.close()
    assert tree(there) == before
    assert [path.name for path in there.parent.iterdir()] == ["here"]
