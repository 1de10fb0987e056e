"""A device with flags, and the seldom faults of it that a trace is cut down to."""

from __future__ import annotations

import time
from typing import Annotated

from vfio_user import MsiX, PciDevice, PciIds, register, state


class Flag(PciDevice):
    """Raising sets bits, tells of it by an interrupt, and counts; clearing clears bits."""

    ids = PciIds(vendor=0x1AF4, device=0x10F9)
    interrupts = MsiX(vectors=1)
    bits: int = state(0)
    reads: int = state(0)
    raised: int = state(0)
    cleared: int = state(0)
    last: int = state(0)

    def __init__(
        self,
        *,
        stale: Annotated[int, "every so many reads are of the value before; 0: none"] = 0,
        lost: Annotated[int, "every so many interrupts are lost; 0: none"] = 0,
        deaf: Annotated[int, "every so many clearings are lost; 0: none"] = 0,
    ) -> None:
        super().__init__()
        self.stale = stale
        self.lost = lost
        self.deaf = deaf

    @register(bar=0, offset=0x60, width=4)
    def up(self, value: int) -> None:
        self.bits |= value
        self.raised += 1
        if not _every(self.lost, self.raised):
            self.interrupts.trigger(0)

    @register(bar=0, offset=0x64, width=4)
    def down(self, value: int) -> None:
        self.cleared += 1
        if not _every(self.deaf, self.cleared):
            self.bits &= ~value

    @register(bar=0, offset=0x24, width=4)
    def causes(self) -> int:
        self.reads += 1
        if not _every(self.stale, self.reads):
            self.last = self.bits
        return self.last

    @register(bar=0, offset=0x28, width=4)
    def clock(self) -> int:
        return time.monotonic_ns() & 0xFFFFFFFF


def _every(seldom: int, count: int) -> bool:
    return bool(seldom) and count % seldom == 0
