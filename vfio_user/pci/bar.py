"""Base address registers: what a device declares, and the bits that software sees while it sizes them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from vfio_user.pci.config import Field

BAR_COUNT = 6
BAR0_OFFSET = 0x10
ROM_OFFSET = 0x30

IO_SPACE = 0x1
MEMORY_64 = 0x4
PREFETCHABLE = 0x8

SMALLEST_MEMORY = 16
SMALLEST_IO = 4
LARGEST_IO = 256
SMALLEST_ROM = 2048


@dataclass(frozen=True)
class Bar:
    """One BAR. Registers and memory that name a BAR without declaration make a plain 32-bit one of fitting size.

    size: bytes, a power of two; 0 means just large enough for what is declared in it (at least 4 KiB of memory).
    bits: 32, or 64, which uses up the next index too.
    io: I/O space instead of memory (4 to 256 bytes).
    exact: accesses count only when they are exactly one register, at its offset and one of its widths; all others
        (narrow, wide, unaligned) go to `PciDevice.unclaimed_read` and `unclaimed_write`. Otherwise they are composed
        from the registers that they touch.
    """

    index: int
    size: int = 0
    bits: int = 32
    prefetchable: bool = False
    io: bool = False
    exact: bool = False

    def check(self) -> None:
        """Compare the BAR with what PCI can express.

        Raises:
            ValueError: it cannot.
        """
        name = f"BAR {self.index}"
        if not 0 <= self.index < BAR_COUNT:
            raise ValueError(f"{name}: a function has BARs 0 to {BAR_COUNT - 1}")
        if self.bits not in (32, 64) or (self.io and self.bits != 32):
            raise ValueError(f"{name}: {self.bits} bits; memory BARs have 32 or 64, I/O BARs 32")
        if self.bits == 64 and self.index == BAR_COUNT - 1:
            raise ValueError(f"{name}: a 64-bit BAR needs the next index too")
        if self.io and self.prefetchable:
            raise ValueError(f"{name}: I/O space is never prefetchable")
        if self.size & (self.size - 1):
            raise ValueError(f"{name}: size {self.size:#x} is not a power of two")
        smallest, largest = (SMALLEST_IO, LARGEST_IO) if self.io else (SMALLEST_MEMORY, 1 << (self.bits - 1))
        if self.size and not smallest <= self.size <= largest:
            raise ValueError(f"{name}: size {self.size:#x} is outside {smallest:#x} to {largest:#x}")

    def fields(self) -> Iterator[Field]:
        """The config registers: sizing works by the address bits below `size` being read-only zeros."""
        offset = BAR0_OFFSET + 4 * self.index
        address_bits = ~(self.size - 1)
        if self.io:
            kind = IO_SPACE
        else:
            kind = (MEMORY_64 if self.bits == 64 else 0) | (PREFETCHABLE if self.prefetchable else 0)
        yield Field(offset, 4, kind, address_bits & 0xFFFF_FFFF)
        if self.bits == 64:
            yield Field(offset + 4, 4, 0, (address_bits >> 32) & 0xFFFF_FFFF)


def check_bars(bars: Iterable[Bar]) -> None:
    """Check each BAR, and that no two use the same index.

    Raises:
        ValueError: one is wrong, or two use the same index.
    """
    used: set[int] = set()
    for bar in bars:
        bar.check()
        for index in range(bar.index, bar.index + bar.bits // 32):
            if index in used:
                raise ValueError(f"BAR {index} is declared twice, or is the upper half of a 64-bit BAR")
            used.add(index)


def round_up_power_of_two(size: int) -> int:
    """The least power of two that is not below `size`: what the address bits of a BAR can say."""
    return 1 << max(0, size - 1).bit_length()
