"""A machine whose QEMU does not live: a shell script in its place."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from vfio_user.harness.command_line import MachineConfig, Start
from vfio_user.harness.machine import Machine, MachineError


@dataclass(frozen=True)
class Script:
    """A program that takes any arguments."""

    argv: tuple[str, ...]


def test_the_reason_why_qemu_does_not_start_is_in_the_error(tmp_path: Path) -> None:
    said = "qemu: -device x: no such device"
    harmless = "vfio_container_dma_unmap(0x1, 0x2, 0x3) = -2 (No such file or directory)"
    emulator = Script(("sh", "-c", f"echo '{said}' >&2; echo '{harmless}' >&2; exit 1"))
    with pytest.raises(MachineError) as failure:
        Machine(emulator, MachineConfig("q35", "tcg"), Start(tmp_path / "k", tmp_path / "i"), folder=tmp_path)
    assert str(failure.value).endswith(f"status 1 at its start: {said}")
