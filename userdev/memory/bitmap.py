"""Dirty bitmaps: a bit per page of a range, in little-endian 64-bit words (linux/vfio.h, struct vfio_bitmap)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

IovaRange = tuple[int, int]
"""(IOVA, bytes) of a piece of guest memory."""

_WORD = 64
_DIRTY = re.compile(rb"[^\0]+")
_BITS = tuple(tuple(bit for bit in range(8) if byte >> bit & 1) for byte in range(256))


def bitmap_size(length: int, page_size: int) -> int:
    """Bytes of the bitmap of a range of `length` bytes: a bit a page, rounded up to whole words."""
    pages = -(-length // page_size)
    return -(-pages // _WORD) * (_WORD // 8)


def dirty_pages(bitmap: bytes) -> Iterator[int]:
    """The numbers of the pages that a dirty bitmap marks, ascending."""
    for dirty in _DIRTY.finditer(bitmap):  # a sparse bitmap is mostly zeros
        first = dirty.start() * 8
        for byte in dirty.group():
            for bit in _BITS[byte]:
                yield first + bit
            first += 8


def dirty_runs(bitmap: bytes, iova: int, length: int, page_size: int) -> Iterator[IovaRange]:
    """The ranges that a dirty bitmap marks, adjacent pages together, cut at the end of the range."""
    start = end = -1
    for page in dirty_pages(bitmap):
        if page != end:
            if start >= 0:
                yield _run(start, end, iova, length, page_size)
            start = page
        end = page + 1
    if start >= 0:
        yield _run(start, end, iova, length, page_size)


def _run(first: int, end: int, iova: int, length: int, page_size: int) -> IovaRange:
    at_byte = first * page_size
    return iova + at_byte, min(end * page_size, length) - at_byte


@dataclass(frozen=True)
class DirtyBitmap:
    """A bit for each page of a range that was written. Bits behind the range's end mean nothing."""

    iova: int
    page_size: int
    bits: bytes

    def pages(self) -> list[int]:
        """IOVA of each dirty page, ascending."""
        return [self.iova + page * self.page_size for page in dirty_pages(self.bits)]
