"""A machine whose QEMU does not live: a shell script in its place."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from userdev.errors import UserdevError
from userdev.process import Child
from vfio_user.harness import machine
from vfio_user.harness.command_line import MachineConfig, Start
from vfio_user.harness.machine import Launch, Machine, MachineError, open_sockets


@dataclass(frozen=True)
class Script:
    """A program that takes any arguments."""

    argv: tuple[str, ...]


def launch(folder: Path) -> Launch:
    return Launch(MachineConfig("q35", "tcg"), Start(folder / "k", folder / "i"), folder)


def test_the_reason_why_qemu_does_not_start_is_in_the_error(tmp_path: Path) -> None:
    said = "qemu: -device x: no such device"
    harmless = "vfio_container_dma_unmap(0x1, 0x2, 0x3) = -2 (No such file or directory)"
    emulator = Script(("sh", "-c", f"echo '{said}' >&2; echo '{harmless}' >&2; exit 1"))
    with pytest.raises(MachineError) as failure:
        Machine(emulator, launch(tmp_path))
    assert str(failure.value).endswith(f"status 1 at its start: {said}")


@pytest.mark.parametrize("in_the_way", ["guest.console.log", "guest.qmp.log", "no greeting"])
def test_nothing_stays_open_of_a_machine_that_fails_to_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_the_way: str
) -> None:
    monkeypatch.setattr(machine, "_GREETING", 0.2)
    started: list[Child] = []

    def start(name: str, argv: list[str], **options: Any) -> Child:
        started.append(Child(name, argv, **options))
        return started[0]

    monkeypatch.setattr(machine, "Child", start)
    if in_the_way.endswith("log"):
        (tmp_path / in_the_way).mkdir()
    before, threads = open_sockets(), threading.active_count()
    with pytest.raises((OSError, UserdevError)) as failure:
        Machine(Script(("sh", "-c", "exec sleep 60")), launch(tmp_path))
    assert open_sockets() == before
    assert not started[0].group_is_alive()
    assert threading.active_count() == threads
    del failure
