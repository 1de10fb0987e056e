"""Hosts: what is there already, which of two is the other one, why one is lost, and what a server of ours needs."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import paramiko
import pytest

import vfio_user
from vfio_user.harness.hosts import LocalHost
from vfio_user.harness.hosts.pair import Pair
from vfio_user.harness.hosts.ssh_connection import put, why_lost
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
