"""QEMU's educational PCI device (docs/specs/edu.rst, hw/misc/edu.c) as a vfio-user server, plus MSI-X.

A guest sees what `-device edu` shows it: ids, registers, access rules, factorial, interrupts, DMA. README.md has the
register table, the extension (a register that selects the interrupt vector) and the differences.
"""

from __future__ import annotations

import logging
from math import factorial
from typing import Annotated, Any

from userdev.errors import ProtocolError, UserError
from vfio_user.device import (
    Bar,
    IntX,
    Msi,
    MsiX,
    PciDevice,
    PciExpress,
    PciIds,
    PowerManagement,
    memory,
    register,
    state,
)

log = logging.getLogger("vfio_user.servers.edu")

IDENTIFICATION = 0x010000ED
INTERRUPT_AFTER = 0x80
"""Bit of the status register; 0x01, computing, is never seen set."""
FACTORIAL_DONE, DMA_DONE = 0x001, 0x100
"""Bits of the interrupt status register that the device itself sets."""
RUN, TO_RAM, INTERRUPT_AFTER_DMA = 0x1, 0x2, 0x4
"""Bits of the DMA command register."""
BUFFER, BUFFER_SIZE = 0x40000, 4096
MSI_VECTORS = 4
U32 = 0xFFFFFFFF


class Edu(PciDevice):
    """QEMU's edu device: liveness check, factorial, interrupts, DMA to and from a buffer of 4 KiB."""

    ids = PciIds(0x1234, 0x11E8, class_code=0x00FF00, revision=0x10, subsystem_vendor=0x1AF4, subsystem=0x1100)
    bars = (Bar(0, size=1 << 20, exact=True),)

    inverted: int = state(0, bits=32)
    result: int = state(0, bits=32)
    status: int = state(0, check=lambda _, value: value in (0, INTERRUPT_AFTER))
    interrupt_status: int = state(0, bits=32)
    vector: int = state(0, check=lambda edu, value: value in range(edu.vectors))
    transfer: list[int] = state([0, 0, 0], bits=64, check=lambda _, value: len(value) == 3)
    """Source, destination, length."""
    command: int = state(0, bits=64)
    buffer: memoryview = memory(BUFFER_SIZE)

    def __init__(
        self,
        *,
        dma_mask: Annotated[int, "addresses that DMA can reach; edu's dma_mask, 28 bits"] = (1 << 28) - 1,
        msix: Annotated[int, "MSI-X vectors; 0 leaves the capability out, so that QEMU can unplug the device"] = 4,
        flr: Annotated[bool, "be a PCI Express endpoint that can be reset by the guest (FLR)"] = False,
        pm: Annotated[bool, "have the power states D0 and D3hot; waking from D3hot resets the device"] = False,
    ) -> None:
        try:
            messages = MsiX(msix, bar=4)
        except ValueError as error:
            raise UserError(f"--msix: {error}") from None
        self.dma_mask = dma_mask
        self.vectors = max(MSI_VECTORS, msix)
        super().__init__(
            interrupts=IntX() | Msi(MSI_VECTORS) | messages,
            capabilities=(
                *((PowerManagement(),) if pm else ()),
                *((PciExpress(flr=True),) if flr else ()),
            ),
        )

    def identity(self) -> dict[str, Any]:
        """The options that have to be alike at a migration's destination: also the DMA mask."""
        return {**super().identity(), "dma_mask": self.dma_mask}

    @register(bar=0, offset=0x00, width=4)
    def identification(self) -> int:
        """Identification register: 0xED in the low byte, the version (1.0) in the high ones."""
        return IDENTIFICATION

    @register(bar=0, offset=0x04, width=4)
    def liveness(self, value: int) -> None:
        """Liveness check: what is read is the inverse of what was written last."""
        self.inverted = ~value & U32

    @liveness.reader
    def _(self) -> int:
        return self.inverted

    @register(bar=0, offset=0x08, width=4)
    def compute(self, value: int) -> None:
        """Factorial: the value becomes its factorial, modulo 2**32, and interrupts if status bit 7 asks for that."""
        # 34! is the first with 32 factors of two: from there on nothing is left of it in 32 bits.
        self.result = factorial(value) & U32 if value < 34 else 0
        if self.status & INTERRUPT_AFTER:
            self.interrupt_guest(FACTORIAL_DONE)

    @compute.reader
    def _(self) -> int:
        return self.result

    @register(bar=0, offset=0x20, width=4)
    def control(self, value: int) -> None:
        """Status register: bit 7 asks for an interrupt after a factorial; bit 0, computing, is never seen set."""
        self.status = value & INTERRUPT_AFTER  # COMPUTING is over before anybody can look

    @control.reader
    def _(self) -> int:
        return self.status

    @register(bar=0, offset=0x24, width=4)
    def causes(self) -> int:
        """Interrupt status: the causes that were not acknowledged, as bits."""
        return self.interrupt_status

    @register(bar=0, offset=0x28, width=4)
    def select_vector(self, value: int) -> None:
        """Select the MSI or MSI-X vector of later interrupts; a number that the device has not got changes nothing."""
        if value < self.vectors:
            self.vector = value

    @select_vector.reader
    def _(self) -> int:
        return self.vector

    @register(bar=0, offset=0x60, width=4)
    def raise_interrupt(self, value: int) -> None:
        """Interrupt raise: set the bits as causes, and interrupt."""
        self.interrupt_guest(value)

    @raise_interrupt.reader
    def _(self) -> int:
        return U32

    def interrupt_guest(self, causes: int) -> None:
        """Set bits of the interrupt status and interrupt: without a new bit too, as long as any is set."""
        self.interrupt_status |= causes
        if self.interrupt_status:
            self.interrupts.trigger(self.vector if self.interrupts.active == "msix" else self.vector % MSI_VECTORS)

    @register(bar=0, offset=0x64, width=4)
    def acknowledge(self, value: int) -> None:
        """Interrupt acknowledge: clear the bits among the causes; the last one lowers INTx."""
        self.interrupt_status &= ~value
        if not self.interrupt_status:
            self.interrupts.lower()

    @acknowledge.reader
    def _(self) -> int:
        return U32

    @register(bar=0, offset=0x80, width=(4, 8), count=3, stride=8)
    def set_transfer(self, index: int, value: int) -> None:
        """DMA source, destination or length, in bytes; while a transfer runs it cannot be changed."""
        if not self.command & RUN:
            self.transfer[index] = value

    @set_transfer.reader
    def _(self, index: int) -> int:
        return self.transfer[index]

    @register(bar=0, offset=0x98, width=(4, 8))
    def start_dma(self, value: int) -> None:
        """DMA command: bit 0 starts a transfer, bit 1 is its direction (set: to memory), bit 2 asks for an
        interrupt.
        """
        if value & RUN and not self.command & RUN:
            self.command = value
            self.defer(self.run_dma)

    @start_dma.reader
    def _(self) -> int:
        return self.command

    def run_dma(self) -> None:
        """Do the transfer that the command register asks for, clear its RUN bit, interrupt if that is wanted."""
        if not self.command & RUN:
            return  # a reset came first
        source, destination, length = self.transfer
        try:
            if self.command & TO_RAM:
                self.dma.write(destination & self.dma_mask, self.window(source, length))
            else:
                self.window(destination, length)[:] = self.dma.read(source & self.dma_mask, length)
        except ProtocolError as error:
            log.warning("DMA of %d bytes failed: %s", length, error)
        self.command &= ~RUN
        if self.command & INTERRUPT_AFTER_DMA:
            self.interrupt_guest(DMA_DONE)

    def window(self, address: int, length: int) -> memoryview:
        """The part of the buffer that a transfer names, once the guest allows DMA at all."""
        start = address - BUFFER
        if not self.bus_master:
            raise ProtocolError("bus mastering is off")
        if start < 0 or start + length > BUFFER_SIZE:
            raise ProtocolError(f"{address:#x} is not in the buffer, or the transfer leaves it")
        return self.buffer[start : start + length]

    def on_load(self) -> None:
        """Go on with a transfer that had been started when the state was saved."""
        if self.command & RUN:
            self.defer(self.run_dma)

    def unclaimed_read(self, region: int, offset: int, count: int) -> bytes:
        """All ones, or zeros where QEMU's memory core refuses: widths below 4 and unaligned accesses."""
        refused = count not in (4, 8) or offset % count
        return bytes(count) if refused else b"\xff" * count
