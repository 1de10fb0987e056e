"""The device with flags (`tests/flag.py`) as a server, and a client of it that is recorded."""

from __future__ import annotations

import sys
from contextlib import nullcontext, suppress
from pathlib import Path

from tests.interposed import Interposed
from vfio_user.client import EventFd, NoAnswer
from vfio_user.interposer.trace.registers import NamedRegister, RegisterMap
from vfio_user.wire.constants import IrqIndex

UP, DOWN, CAUSES, CLOCK = 0x60, 0x64, 0x24, 0x28
REGISTERS = RegisterMap(
    NamedRegister(0, offset, name) for name, offset in (("up", UP), ("down", DOWN), ("causes", CAUSES))
)


def flag(options: str = "") -> str:
    return f"{sys.executable} -m vfio_user serve tests.flag:Flag {options} --fd {{fd}}"


def work(folder: Path, command: str, rounds: int, *, may_lose: bool = False) -> Path:
    """The trace of a client that raises a flag, waits for its interrupt, looks, clears it and looks, so many times.

    command: that of a server with such registers, of this one or another.
    may_lose: an interrupt that does not come within a second is done without.
    """
    folder.mkdir(exist_ok=True)
    trace = folder / "work.trace"
    with (
        Interposed(folder, command, trace=str(trace), capture_interrupts=True, registers=REGISTERS) as flagged,
        EventFd() as interrupt,
    ):
        client = flagged.client()
        client.enable_irqs(IrqIndex.MSIX, [interrupt])
        for _ in range(rounds):
            client.store(0, UP, 4, 0x5A)
            with suppress(NoAnswer) if may_lose else nullcontext():
                client.wait_interrupt(interrupt, timeout=1.0 if may_lose else 5.0)
            client.load(0, CAUSES, 4)
            client.store(0, DOWN, 4, 0x5A)
            client.load(0, CAUSES, 4)
    return trace
