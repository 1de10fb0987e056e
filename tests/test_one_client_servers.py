"""Servers that end with their client: the next client gets a fresh one, and never the one that is about to end."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from tests.interposed import Interposed
from vfio_user.cli._servers import CommandServer
from vfio_user.client import Client
from vfio_user.wire import CURRENT

COMMAND = f"{shlex.quote(sys.executable)} -m tests.one_client_server {{socket}}"


def test_the_conformance_suite_starts_one_for_each_client() -> None:
    with CommandServer(COMMAND, timeout=20) as target:
        assert "status 0" in target.try_out(CURRENT)
        pids = set()
        for _ in range(3):
            with Client(target.connect(), timeout=20) as client:
                client.negotiate()
                pids.add(target.pid)
        assert len(pids) == 3
        target.renew()
        assert target.crashed() == ""


def test_an_interposer_starts_one_for_each_client(tmp_path: Path) -> None:
    with Interposed(tmp_path, COMMAND) as interposed, interposed.control() as control:
        pids = set()
        for _ in range(3):
            with interposed.client(timeout=20):
                pids.add(control.call("status")["server_pid"])
        assert len(pids) == 3
