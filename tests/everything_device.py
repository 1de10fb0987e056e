"""A device with one of everything that the protocol can describe, for the conformance catalogue and for fuzzing."""

from __future__ import annotations

from typing import Annotated

from vfio_user.device import (
    Bar,
    ExtendedVendor,
    ExtraRegion,
    IntX,
    Msi,
    MsiX,
    PciDevice,
    PciExpress,
    PciIds,
    PowerManagement,
    SerialNumber,
    VendorSpecific,
    memory,
    register,
    state,
)


class Everything(PciDevice):
    """Doorbells that do DMA, memory that may be mapped in parts, every capability, a region of its own, an ioeventfd.

    BAR 0: 0x00 scratch; 0x08 IOVA; 0x10 writes 0xA5 bytes there; 0x18 reads there, 0x1c says what; 0x20 interrupts.
    """

    ids = PciIds(0x1AF4, 0x10F5, class_code=0x00FF00, revision=3, subsystem_vendor=0x1AF4, subsystem=0x1100)
    bars = (Bar(0, size=0x1000), Bar(2, size=0x8000, bits=64, prefetchable=True), Bar(5, size=32, io=True))
    rom = b"\x55\xaa\x01" + bytes(509)
    capabilities = (
        PowerManagement(),
        PciExpress(flr=True),
        VendorSpecific(b"conformance"),
        SerialNumber(0x0123_4567_89AB_CDEF),
        ExtendedVendor(0x42, b"conform!", revision=1),
    )
    interrupts = IntX() | Msi(4) | MsiX(8, bar=4)
    extra_regions = (ExtraRegion(9, 0x1000, type=(0x8000_1AF4, 7)),)

    scratch_value: int = state(0)
    iova: int = state(0)
    seen: int = state(0)
    low: memoryview = memory(0x1000, bar=2, offset=0x1000, mmap=True)
    high: memoryview = memory(0x2000, bar=2, offset=0x4000, mmap=True)
    private: memoryview = memory(0x1000, bar=9, offset=0)

    def __init__(self, *, ioeventfd: Annotated[bool, "offer an ioeventfd for the interrupt doorbell"] = True) -> None:
        super().__init__()
        if ioeventfd:
            self.add_ioeventfd(0, 0x20, 4)

    @register(bar=0, offset=0x00, width=4)
    def scratch(self, value: int) -> None:
        self.scratch_value = value

    @scratch.reader
    def _(self) -> int:
        return self.scratch_value

    @register(bar=0, offset=0x08, width=8)
    def address(self, value: int) -> None:
        self.iova = value

    @address.reader
    def _(self) -> int:
        return self.iova

    @register(bar=0, offset=0x10, width=4)
    def fill(self, count: int) -> None:
        self.dma.write(self.iova, b"\xa5" * min(count, 1 << 20))

    @register(bar=0, offset=0x18, width=4)
    def fetch(self, count: int) -> None:
        self.seen = sum(self.dma.read(self.iova, min(count, 1 << 20))) & 0xFFFF_FFFF

    @register(bar=0, offset=0x1C, width=4)
    def fetched(self) -> int:
        return self.seen

    @register(bar=0, offset=0x20, width=4)
    def ring(self, vector: int) -> None:
        self.interrupts.trigger(vector % {"msix": 8, "msi": 4}.get(self.interrupts.active, 1))
