"""Hosts: what is there already, which of two is the other one, why one is lost, and what a server of ours needs."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import paramiko
import pytest

import vfio_user
from userdev.errors import UserError
from vfio_user.harness.hosts import LocalHost, remote_agent, ssh_connection
from vfio_user.harness.hosts.pair import Pair
from vfio_user.harness.hosts.remote_agent import Frames, Outgoing, Streams
from vfio_user.harness.hosts.ssh_connection import put, require_other_files, require_package, why_lost
from vfio_user.harness.hosts.sshd import kept_folders


class Shell:
    """A connection to this machine; what is written into a command goes to nobody."""

    def __init__(self) -> None:
        self.sent = 0

    def exec_command(self, command: str) -> tuple[Any, Any, Any]:
        if command.startswith("find"):
            return None, BytesIO(subprocess.run(command, shell=True, capture_output=True, check=False).stdout), None
        self.sent += 1
        channel = SimpleNamespace(shutdown_write=lambda: None, recv_exit_status=lambda: 0)
        end = SimpleNamespace(write=lambda _: None, channel=channel)
        return end, end, BytesIO()


def test_what_is_there_as_it_is_here_is_not_sent_again_whatever_links_are_among_it(tmp_path: Path) -> None:
    (tmp_path / "folder" / "below").mkdir(parents=True)
    (tmp_path / "folder" / "below" / "file").write_text("12345")
    (tmp_path / "folder" / "empty").mkdir()
    for name, target in (("to-file", "below/file"), ("to-folder", "below"), ("to-nothing", "nowhere")):
        (tmp_path / "folder" / name).symlink_to(target)
    (tmp_path / "link").symlink_to("folder")
    shell: Any = Shell()
    for path in ("folder", "link", "folder/below/file", "folder/empty"):
        assert not put(shell, tmp_path / path), path
    assert shell.sent == 0


def test_of_two_hosts_the_other_one_is_told_by_its_name() -> None:
    a, b = LocalHost("a", "127.0.0.1"), LocalHost("b", "127.0.0.2")
    pair = Pair(a, b)
    for host, other in ((a, b), (b, a), (LocalHost("a", "127.0.0.9"), b), (LocalHost("b", "127.0.0.9"), a)):
        assert pair.other(host) is other


def test_why_a_host_was_lost_is_said_in_words_whatever_was_raised() -> None:
    refused = ConnectionRefusedError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))
    for error, why in (
        (refused, "Connection refused"),
        (paramiko.ssh_exception.NoValidConnectionsError({("::1", 22): refused}), "Connection refused"),
        (paramiko.SSHException("no banner"), "no banner"),
        (EOFError(), "EOFError"),
    ):
        assert why_lost(error) == why


def test_of_folders_in_each_other_the_outermost_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    checkout = Path(vfio_user.__file__).resolve().parent.parent
    monkeypatch.setenv("VFIO_USER_CACHE", str(tmp_path))
    monkeypatch.setattr(sys, "prefix", str(checkout / "environment"))
    monkeypatch.setattr(sys, "base_prefix", "/usr")
    assert kept_folders(Path("/")) == sorted([checkout, Path("/usr"), tmp_path.resolve()])
    assert kept_folders(tmp_path) == [tmp_path.resolve()]


def test_a_connection_that_has_ended_leaves_nothing_and_what_waits_for_one_has_a_bound(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    streams = Streams(Frames(lambda _: b"", lambda _: None))
    for number in range(3):
        ours, theirs = socket.socketpair()
        streams.add(number, ours)
        theirs.close()
    streams.drain(20.0)
    assert (streams._pumps, streams._outgoing) == ([], [])

    goes_on = threading.Event()

    def full(*_: object) -> int:
        raise BlockingIOError

    end: Any = SimpleNamespace(send=full, sendall=lambda _: goes_on.wait(20.0))
    monkeypatch.setattr(remote_agent, "MOST_WAITING", 8)
    way, room = Outgoing(end), []
    wait_for = way._changed.wait_for

    def looked(has_room: Callable[[], bool], *seconds: float) -> bool:
        room.append(has_room())
        if not room[-1]:
            goes_on.set()
        return wait_for(has_room, *seconds)

    monkeypatch.setattr(way._changed, "wait_for", looked)
    for _ in range(3):
        way.sendall(b"1234")
    assert room == [True, True, False]
    way.flush(20.0)


class FarPython:
    """A connection whose shell ends with a status, and what it says before."""

    def __init__(self, status: int, said: bytes = b"") -> None:
        self.status, self.said = status, said
        self.status_event = threading.Event()
        self.status_event.set()

    def exec_command(self, command: str, timeout: float) -> tuple[Any, Any, Any]:
        return None, SimpleNamespace(channel=self), BytesIO(self.said)

    def recv_exit_status(self) -> int:
        return self.status


def test_a_host_whose_python_will_not_do_is_told_of_at_once_with_what_to_do() -> None:
    where = {"python": "/opt/python", "host": "far.example"}
    good: Any = FarPython(0)
    require_package(good, where)
    lacking = b"Traceback:\n...\nModuleNotFoundError: No module named 'vfio_user'\n"
    for status, said, told in (
        (127, b"sh: not found", "no program"),
        (126, b"sh: denied", "no program"),
        (1, lacking, "'vfio_user'$"),
        (-1, b"", ""),
    ):
        bad: Any = FarPython(status, said)
        with pytest.raises(UserError, match=f"^far.example: /opt/python .*{told}") as error:
            require_package(bad, where)
        assert "python=" in error.value.hint


def test_a_host_that_is_this_machine_is_refused_before_its_sockets_are_in_each_others_way() -> None:
    class Here(FarPython):
        def exec_command(self, command: str, timeout: float) -> tuple[Any, Any, Any]:
            self.status = int(not Path(command.removeprefix("test -e ")).exists())
            return super().exec_command(command, timeout)

    here: Any = Here(1)
    with pytest.raises(UserError, match="this very machine") as error:
        require_other_files(here, {"host": "localhost", "port": 2222})
    assert "--hosts ssh" in error.value.hint
    there: Any = FarPython(1)
    require_other_files(there, {"host": "far.example", "port": 22})


def test_a_host_whose_shell_hangs_is_told_of_and_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its server answers, and what it has started does not: as where a network's file system has gone."""
    monkeypatch.setattr(ssh_connection, "_IMPORT_SECONDS", 0.01)
    hanging: Any = FarPython(0)
    hanging.status_event.clear()
    with pytest.raises(UserError, match="no answer"):
        require_package(hanging, {"python": "/opt/python", "host": "far.example"})
    with pytest.raises(UserError, match="no answer"):
        require_other_files(hanging, {"host": "far.example", "port": 22})
