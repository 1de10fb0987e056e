"""Dirty bitmaps: one bit per page, in little-endian 64-bit words (linux/vfio.h)."""

from __future__ import annotations

from dataclasses import dataclass

_WORD = 64


def bitmap_size(length: int, page_size: int) -> int:
    """Bytes of the bitmap of a range, whole words."""
    pages = -(-length // page_size)
    return -(-pages // _WORD) * 8


@dataclass(frozen=True)
class DirtyBitmap:
    """Which pages of a range were written. Bits behind the range's end mean nothing."""

    iova: int
    page_size: int
    bits: bytes

    def pages(self) -> list[int]:
        """IOVA of each dirty page, ascending."""
        return [
            self.iova + (8 * at + bit) * self.page_size
            for at, byte in enumerate(self.bits)
            if byte
            for bit in range(8)
            if byte & 1 << bit
        ]
