"""Memory that the server could write when it began to log that, and cannot any more: its log has lost what it wrote."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

MAX_RANGES = 1 << 18
"""Ranges kept: a guest behind an IOMMU may unmap page after page all day, and a client any range that it likes."""


class FileRange(NamedTuple):
    """Bytes of a file of guest memory, `size` of them from `offset` on."""

    inode: int
    offset: int
    size: int

    @property
    def end(self) -> int:
        """The first offset behind it."""
        return self.offset + self.size


class UnmappedMemory:
    """All of it since the log began, each range once; `is_whole` no longer once there was more than is kept."""

    def __init__(self) -> None:
        self.is_whole = True
        self._ranges: set[FileRange] = set()

    def __iter__(self) -> Iterator[FileRange]:
        return iter(self._ranges)

    def __len__(self) -> int:
        return len(self._ranges)

    def add(self, gone: FileRange) -> None:
        """This has been unmapped."""
        if not self.is_whole:
            return
        self._ranges.add(gone)
        if len(self._ranges) > MAX_RANGES:
            self._ranges = set(_joined(self._ranges))
            if len(self._ranges) > MAX_RANGES // 2:  # joining takes time, and must be worth it
                self.is_whole = False
                self._ranges.clear()


def _joined(ranges: set[FileRange]) -> Iterator[FileRange]:
    """The same bytes, with neighbours and what overlaps as one."""
    first, *others = sorted(ranges)
    for other in others:
        if other.inode == first.inode and other.offset <= first.end:
            first = first._replace(size=max(first.end, other.end) - first.offset)
        else:
            yield first
            first = other
    yield first
