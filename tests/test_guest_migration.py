"""What is left of a guest's migration that fails while its evidence cannot be written: nothing on the other side."""

from __future__ import annotations

import errno
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from userdev.errors import UserError
from vfio_user.harness.hosts import LocalHost
from vfio_user.harness.migration import Conductor, Mode, Plan, Report
from vfio_user.harness.migration.guest_migration import move


class Launcher:
    """Starts no machine; knows which sides it was to end."""

    def __init__(self) -> None:
        self.ended: list[Any] = []

    def next_name(self, name: str) -> str:
        return f"{name}.1"

    def machine(self, spec: object, **_: object) -> Any:
        raise UserError("QEMU does not start")

    def end(self, machine: object, servers: list[Any]) -> None:
        self.ended.append(machine)


def guest_of(folder: Path) -> Any:
    """A guest that is paused, and has no devices."""
    qmp = SimpleNamespace(command=lambda _: {"running": False}, events=SimpleNamespace(forget=lambda _: None))
    spec = SimpleNamespace(name="guest.1", host=LocalHost("b"))
    spec.moved = lambda *_: spec
    machine = SimpleNamespace(qmp=qmp, console=SimpleNamespace(log=folder / "guest.console.log"))
    return SimpleNamespace(name="guest", devices=[], host=LocalHost("a"), spec=spec, machine=machine)


def test_what_was_started_there_is_ended_also_where_the_report_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Report, folder: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Report, "write", full)
    launcher: Any = Launcher()
    with pytest.raises(OSError, match="No space"):
        move(launcher, guest_of(tmp_path), LocalHost("b"), Mode.COORDINATED, Plan(), Conductor(), None)
    assert launcher.ended == [None]
