"""A device whose registers do what a session has to get right, and a client's ways with it."""

from __future__ import annotations

import time
from collections.abc import Callable

from vfio_user.client import Client, GuestMemory
from vfio_user.device import Bar, MsiX, PciDevice, PciIds, Quiesce, ResetKind, register, state

GUEST = 0x100000


class Prober(PciDevice):
    """Registers that do what a session has to get right."""

    ids = PciIds(vendor=0x1AF4, device=0x10F1)
    bars = (Bar(0, size=4096),)
    interrupts = MsiX(vectors=2)
    total: int = state(0)
    seen: int = state(0)

    def __init__(self) -> None:
        super().__init__()
        self.resets: list[ResetKind] = []
        self.busy: Quiesce | None = None
        self.fetched: dict[int, int] = {}

    @register(bar=0, offset=0x00, width=4)
    def add(self, value: int) -> None:
        self.total = self.total * 10 + value

    @add.reader
    def _(self) -> int:
        return self.total

    @register(bar=0, offset=0x08, width=8)
    def fetch(self, address: int) -> None:
        """Reads guest memory inside the handler, and says that it is done by `seen`."""
        self.fetched[address] = self.seen = self.dma.read_u32(address)

    @fetch.reader
    def _(self) -> int:
        return self.seen

    @register(bar=0, offset=0x10, width=4)
    def read_needs_dma(self) -> int:
        return self.dma.read_u32(GUEST)

    @register(bar=0, offset=0x18, width=4)
    def breaks(self, value: int) -> None:
        raise RuntimeError("a defect of the device")

    @register(bar=0, offset=0x20, width=4)
    def ring(self, value: int) -> None:
        self.interrupts.trigger(value)

    @register(bar=0, offset=0x28, width=4)
    def later(self, value: int) -> None:
        self.defer(lambda: self.dma.write_u32(GUEST, value))

    @register(bar=0, offset=0x30, width=4)
    def inverted(self) -> int:
        return ~0

    def on_reset(self, kind: ResetKind) -> None:
        self.resets.append(kind)

    def on_quiesce(self) -> Quiesce | None:
        return self.busy


def message_memory(client: Client, size: int = 0x10000) -> GuestMemory:
    """Guest memory that the server cannot map: every access is a message."""
    memory = GuestMemory(size, shared=False)
    client.dma_map(GUEST, memory)
    return memory


def comes_true(client: Client, done: Callable[[], bool], seconds: float = 5.0) -> bool:
    """Whether `done` comes to hold, while the client does what a guest does: reads a register, and serves DMA."""
    deadline = time.monotonic() + seconds
    while not done():
        if time.monotonic() > deadline:
            return False
        client.load(0, 0, 4)
    return True


def comes_to_read(client: Client, offset: int, width: int, value: int) -> bool:
    return comes_true(client, lambda: client.load(0, offset, width) == value)
