"""The guest's memory as the client holds it: blocks of RAM, and where each stands in the device's address space."""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from userdev.errors import ProtocolError
from userdev.memory.intervals import IntervalMap
from userdev.memory.sealed import sealed_and_mapped
from vfio_user.wire.constants import DmaFlags

PAGE = 4096


class GuestMemory:
    """A block of RAM. With a descriptor the server can map it; without one it has to ask for every byte.

    A context manager; closing releases the descriptor and the mapping.
    """

    def __init__(self, size: int, *, shared: bool = True, name: str = "guest-ram") -> None:
        """Allocate `size` bytes of zeros; `shared` gives them a memfd."""
        self.size = size
        self.fd: int | None = None
        if shared:
            self.fd, self._map = sealed_and_mapped(name, size)
        else:
            self._map = mmap.mmap(-1, size)
        self.view = memoryview(self._map)
        """The bytes, to read and to write."""

    def __len__(self) -> int:
        return self.size

    def close(self) -> None:
        """Give the memory back; idempotent."""
        self.view.release()
        self._map.close()
        if self.fd is not None:
            os.close(self.fd)
            self.fd = None

    def __enter__(self) -> GuestMemory:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(frozen=True, order=True)
class Mapping:
    """A piece of guest memory that the device may reach at `iova`."""

    iova: int
    size: int
    memory: GuestMemory = field(compare=False)
    offset: int = field(compare=False, default=0)
    """Where in `memory` it starts."""
    flags: int = field(compare=False, default=DmaFlags.READ | DmaFlags.WRITE)

    @property
    def end(self) -> int:
        """The first IOVA behind it."""
        return self.iova + self.size

    def part(self, iova: int, end: int) -> Mapping:
        """A part of it."""
        return replace(self, iova=iova, size=end - iova, offset=self.offset + iova - self.iova)


class AddressSpace:
    """The memory that the device may reach, by IOVA; it serves DMA messages, and knows which pages those wrote."""

    def __init__(self) -> None:
        self._mappings = IntervalMap[Mapping]()
        self.dirty: set[int] = set()
        """IOVA of each 4 KiB page that a DMA message wrote: the client's share of dirty tracking."""

    def __len__(self) -> int:
        return len(self._mappings)

    def __iter__(self) -> Iterator[Mapping]:
        return iter(self._mappings)

    def add(self, mapping: Mapping) -> None:
        """Let the device reach a mapping."""
        self._mappings.add(mapping)

    def remove(self, iova: int, size: int) -> None:
        """Forget what is mapped in that range: a server may take all that lies in it, and a draft's parts, too."""
        if not size:
            mapping = self._mappings.starting_at(iova)
            if mapping is not None and not mapping.size:
                self._mappings.remove(iova)
            return
        end = iova + size
        for mapping in self._mappings.within(iova, end):
            self._mappings.remove(mapping.iova)
            for first, last in ((mapping.iova, iova), (end, mapping.end)):
                if first < last:
                    self._mappings.add(mapping.part(first, last))

    def clear(self) -> None:
        """Forget every mapping."""
        self._mappings.clear()

    def read(self, iova: int, count: int) -> bytes:
        """Read across as many neighbours as it takes.

        Raises:
            ProtocolError: ENODEV where nothing is mapped, EPERM where the device may not read.
        """
        return b"".join(self._pieces(iova, count, DmaFlags.READ))

    def write(self, iova: int, data: bytes | memoryview) -> None:
        """Write all of `data`, or nothing.

        Raises:
            ProtocolError: ENODEV where nothing is mapped, EPERM where the device may not write.
        """
        done = 0
        for piece in self._pieces(iova, len(data), DmaFlags.WRITE):
            piece[:] = data[done : done + len(piece)]
            done += len(piece)
        if data:
            self.dirty.update(range(iova // PAGE * PAGE, iova + len(data), PAGE))

    def _pieces(self, iova: int, count: int, access: DmaFlags) -> list[memoryview]:
        pieces: list[memoryview] = []
        while count:
            found = self._mappings.find(iova)
            if found is None:
                raise ProtocolError(f"DMA to {iova:#x}, where nothing is mapped", errno.ENODEV)
            if not found.flags & access:
                raise ProtocolError(f"DMA {access.name} at {iova:#x} is not allowed", errno.EPERM)
            length = min(count, found.end - iova)
            first = found.offset + iova - found.iova
            pieces.append(found.memory.view[first : first + length])
            iova += length
            count -= length
        return pieces
