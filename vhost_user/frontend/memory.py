"""The memory that a front-end shares: a guest's, sealed against shrinking, and the dirty log of it."""

from __future__ import annotations

import os

from userdev.memory.sealed import sealed_and_mapped
from vhost_user.wire.payloads import MAX_REGIONS, Region

PAGE = 4096
"""What a bit of the dirty log stands for. Offsets in a descriptor's file are multiples of it: QEMU's storage daemon,
rust-vmm and DPDK refuse others."""

SIZE = 16 << 20
"""Bytes, unless told; what is not used takes none."""

USER_ADDRESS = 0x7F00_0000_0000
"""Where the front-end says that it has the memory. The guest has it at 0."""


class GuestMemory:
    """The memory of a guest, in one file. It is read and written as bytes are, by the guest's addresses."""

    def __init__(self, size: int = SIZE, *, regions: int = 1) -> None:
        """`size` is in bytes, whole pages for each of the `regions` that it is shared in, one behind the other.

        Raises:
            ValueError: it is not, or there are too many.
        """
        if not 0 < regions <= MAX_REGIONS or size <= 0 or size % (PAGE * regions):
            raise ValueError(
                f"{size:#x} bytes are no {regions} regions of whole pages, of which there are 1 to {MAX_REGIONS}"
            )
        self.size = size
        self.fd, self._map = sealed_and_mapped("guest", size)
        part = size // regions
        self.regions = tuple(Region(at, part, USER_ADDRESS + at, at) for at in range(0, size, part))
        self._view = memoryview(self._map)
        self._taken: dict[int, int] = {}
        """By the address of a piece that is taken: its end."""

    def __getitem__(self, place: slice) -> bytes:
        return bytes(self._view[place])

    def __setitem__(self, place: slice, data: bytes) -> None:
        self._view[place] = data

    def view(self, address: int, size: int) -> memoryview:
        """A piece of it, to be released before the memory is closed."""
        return self._view[address : address + size]

    @property
    def pieces(self) -> set[tuple[int, int]]:
        """What is taken: the address and the end of each piece."""
        return set(self._taken.items())

    def allocate(self, size: int, *, align: int = 16, at: int | None = None) -> int:
        """Take a piece that nobody has; its address: `at`, or where there is room, but never 0.

        Raises:
            MemoryError: there is none of that size.
        """
        size = max(size, 1)
        found = self._room_for(size, align) if at is None else at
        if found + size > self.size or any(start < found + size and found < end for start, end in self._taken.items()):
            raise MemoryError(f"the guest's memory of {self.size:#x} bytes has no {size:#x} left at {found:#x}")
        self._taken[found] = found + size
        return found

    def _room_for(self, size: int, align: int) -> int:
        at = PAGE
        for start, end in sorted(self._taken.items()):
            if at + size <= start:
                break
            at = max(at, -(-end // align) * align)
        return at

    def free(self, address: int) -> None:
        """Give back a piece."""
        del self._taken[address]

    def close(self) -> None:
        """Unmap it, and close its file; idempotent."""
        if self._map.closed:
            return
        self._view.release()
        self._map.close()
        os.close(self.fd)


class DirtyPages:
    """A dirty log: a bit for each page that was written (specification, "Migration")."""

    def __init__(self, pages: int, *, offset: int = 0) -> None:
        """Have room for so many pages from address 0 on, behind `offset` bytes of the file, which are nobody's."""
        self.size = -(-pages // 8)
        self.offset = offset
        self.fd, self._map = sealed_and_mapped("dirty log", offset + self.size)

    def pages(self) -> set[int]:
        """The numbers of the pages that are marked."""
        marked = self._map[self.offset :]
        return {8 * at + bit for at, byte in enumerate(marked) if byte for bit in range(8) if byte >> bit & 1}

    def clear(self) -> None:
        """Have no page be marked."""
        self._map[self.offset :] = bytes(self.size)

    @property
    def is_whole(self) -> bool:
        """Whether nothing was written in front of it."""
        return not any(self._map[: self.offset])

    def close(self) -> None:
        """Unmap it, and close its file; idempotent."""
        if not self._map.closed:
            self._map.close()
            os.close(self.fd)
