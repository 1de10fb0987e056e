"""A guest behind its SSH server: what is made of what the server says of a command."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import paramiko
import pytest

from tests.cases import for_each_row
from userdev.errors import UserError
from userdev.process import Deadline
from vfio_user.harness.guest import GuestLost
from vfio_user.harness.ssh import SshGuest, _SshJob
from vfio_user.harness.troubles import Wait


class Ended:
    """The channel of a command that has ended, with this status."""

    def __init__(self, status: int) -> None:
        self.recv_exit_status = lambda: status
        self.status_event = threading.Event()

    def exit_status_ready(self) -> bool:
        return True

    def recv_ready(self) -> bool:
        return False

    recv_stderr_ready = recv_ready

    def close(self) -> None:
        pass


@for_each_row([(0, 0), (1, 1), (127, 127), (128, 128), (129, -1), (137, -9), (192, -64), (255, 255)])
def test_the_status_of_a_shell_is_a_signal_where_there_is_one_of_that_number(status: int, exit_code: int) -> None:
    guest: Any = SimpleNamespace(is_connected=True, check=lambda _: None)
    channel: Any = Ended(status)
    result = _SshJob(guest, "true", channel, Wait(Deadline(5.0), 1.0)).wait()
    assert (result.exit_code, result.ok) == (exit_code, status == 0)


class GoesOn(Ended):
    """The channel of a command that does not end, whose shell has said its process group."""

    def __init__(self, stderr: bytes) -> None:
        super().__init__(0)
        self._stderr = [stderr]
        self.settimeout = lambda _: None

    def exit_status_ready(self) -> bool:
        return False

    def recv_stderr_ready(self) -> bool:
        return bool(self._stderr)

    def recv_stderr(self, _: int) -> bytes:
        return self._stderr.pop()


def test_a_command_that_takes_too_long_is_killed_with_all_its_processes_and_one_that_is_waited_for_is_not() -> None:
    begun: list[str] = []

    def start(command: str, _timeout: float) -> Any:
        begun.append(command)
        return SimpleNamespace(wait=lambda: None)

    guest: Any = SimpleNamespace(
        is_connected=True,
        check=lambda _: None,
        start=start,
        waiting=lambda seconds: Wait(Deadline(seconds), 1.0),
        waiting_until=lambda limit: Wait(Deadline.of(limit), 1.0),
    )
    channel: Any = GoesOn(b"4711\nits own")
    waited_for = _SshJob(guest, "sleep 9", channel, Wait(Deadline(60.0), 1.0))
    with pytest.raises(GuestLost, match="'sleep 9' did not end"):
        waited_for.wait(0.01)
    assert not begun
    channel = GoesOn(b"4711\nits own")
    result = _SshJob(guest, "sleep 9", channel, Wait(Deadline(0.01), 1.0)).wait()
    assert begun == [f"kill -{signal.SIGKILL:d} -4711"]
    assert (result.timed_out, result.exit_code, result.stderr) == (True, -signal.SIGKILL, "its own")


HOST_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f"


def test_a_guests_own_key_is_the_one_that_is_expected_at_its_port(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """OpenSSH's and paramiko's name of a server has the port where that is not 22."""
    clients: list[paramiko.SSHClient] = []
    monkeypatch.setattr(paramiko.PKey, "from_path", lambda _: None)
    monkeypatch.setattr(paramiko.SSHClient, "connect", lambda client, *_, **__: clients.append(client))
    for port, name in ((22, "127.0.0.1"), (2222, "[127.0.0.1]:2222")):
        SshGuest(port, tmp_path, HOST_KEY)
        assert [*clients.pop().get_host_keys()] == [name]
    with pytest.raises(GuestLost, match="no known kind: ssh-new"):
        SshGuest(22, tmp_path, f"ssh-new {HOST_KEY.split()[1]}")


def test_a_command_is_sent_in_its_own_bytes_and_whole_or_not_at_all(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A file's name may be no UTF-8; a shell ends a line at a zero byte."""
    sent: list[bytes] = []
    channel = SimpleNamespace(exec_command=sent.append)
    transport = SimpleNamespace(is_active=lambda: True, open_session=lambda **_: channel)
    monkeypatch.setattr(paramiko.PKey, "from_path", lambda _: None)
    monkeypatch.setattr(paramiko.SSHClient, "connect", lambda *_, **__: None)
    monkeypatch.setattr(paramiko.SSHClient, "get_transport", lambda _: transport)
    guest = SshGuest(22, tmp_path, HOST_KEY)
    guest.start(["cat", os.fsdecode(b"gr\xf6\xdfe")])
    assert b"gr\xf6\xdfe" in sent.pop()
    with pytest.raises(UserError, match="zero byte"):
        guest.start(["cat", "a\0b"])
    assert not sent
