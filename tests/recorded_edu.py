"""Sessions with an edu that are recorded, for tests that play them again."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.interposed import Interposed, interposed_edu
from vfio_user.client import Client, EventFd, GuestMemory
from vfio_user.wire.constants import IrqIndex

LIVENESS, COMPUTE, CAUSES, RAISE = 0x04, 0x08, 0x24, 0x60


def server(name: str) -> str:
    return f"{sys.executable} -m vfio_user serve tests.faulty_edu:{name} --fd {{fd}}"


def dma(client: Client, source: int, destination: int, size: int, command: int) -> None:
    for offset, value in ((0x80, source), (0x88, destination), (0x90, size), (0x98, command)):
        client.store(0, offset, 8, value)


def a_bit_of_everything(client: Client, ram: GuestMemory, interrupt: EventFd) -> None:
    """Registers, interrupts, and DMA in both directions of what the guest has put into memory."""
    client.regions()
    client.dma_map(0, ram)
    client.config_write(4, b"\6\0")
    client.enable_irqs(IrqIndex.MSIX, [interrupt])
    client.store(0, COMPUTE, 4, 6)
    assert client.load(0, COMPUTE, 4) == 720
    client.store(0, RAISE, 4, 1)
    assert client.wait_interrupt(interrupt) == 1
    ram.view[0x1000:0x1005] = b"guest"
    dma(client, 0x1000, 0x40000, 5, 0x1)
    assert client.load(0, CAUSES, 4) == 1
    dma(client, 0x40000, 0x2000, 5, 0x1 | 0x2)
    assert client.load(0, LIVENESS, 4) == 0


def record(
    folder: Path, act: Callable[[Client, GuestMemory, EventFd], None], command: str = "", *, capture: bool = True
) -> Path:
    """The trace of a client that acts on an edu, or on the server of a command."""
    folder.mkdir(exist_ok=True)
    options: dict[str, Any] = {"capture_dma": capture, "capture_interrupts": capture}
    options["trace"] = str(folder / "session.trace")
    behind = Interposed(folder, command, **options) if command else interposed_edu(folder, **options)
    with behind as edu, EventFd() as interrupt:
        act(edu.client(), edu.ram(), interrupt)
    return folder / "session.trace"
