"""One range of client memory, and where its bytes are."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from mmap import mmap

from userdev.errors import ProtocolError
from userdev.memory.files import MemoryFile
from userdev.whole import read_whole, write_whole
from vfio_user.migration.dirty_log import DirtyPages
from vfio_user.wire.constants import DmaFlags

READ, WRITE = int(DmaFlags.READ), int(DmaFlags.WRITE)


@dataclass(frozen=True)
class MapPolicy:
    """The answers that dialects give differently (docs/protocol.md 5 and 6)."""

    overlap_errno: int = errno.EINVAL
    identical_is_fine: bool = True
    """Mapping exactly what is mapped already succeeds."""
    partial_unmap: bool = False
    """Unmapping any range is allowed, and cuts the regions at its borders."""
    max_regions: int = 65535


CURRENT_POLICY = MapPolicy()
DRAFT_V6_POLICY = MapPolicy(overlap_errno=errno.EEXIST, identical_is_fine=False, partial_unmap=True)


class DmaRegion:
    """A range of client memory: `iova`, `size`, `readable`, `writable`, `mode`. The rest is for `Dma`."""

    __slots__ = (
        "base",
        "dirty",
        "fd",
        "file",
        "flags",
        "gone",
        "iova",
        "offset",
        "read_map",
        "size",
        "source",
        "write_map",
    )

    def __init__(self, iova: int, size: int, flags: int, offset: int) -> None:
        self.iova = iova
        self.size = size
        self.flags = flags & (READ | WRITE)
        self.offset = offset
        """Where it starts in its file."""
        self.source: tuple[int, int] | None = None
        """(st_dev, st_ino) of its file."""
        self.file: MemoryFile | None = None
        self.base = 0
        """Where it starts in the mapping of its file."""
        self.read_map: mmap | None = None
        self.write_map: mmap | None = None
        self.fd: int | None = None
        """Its own descriptor, in file mode."""
        self.dirty: DirtyPages | None = None
        self.gone = False
        """Unmapped: its file is closed, and its descriptor may be another's."""

    @property
    def end(self) -> int:
        """The first IOVA behind it."""
        return self.iova + self.size

    @property
    def readable(self) -> bool:
        """Whether the device may read it (VFIO_DMA_MAP_FLAG_READ)."""
        return bool(self.flags & READ)

    @property
    def writable(self) -> bool:
        """Whether the device may write it (VFIO_DMA_MAP_FLAG_WRITE)."""
        return bool(self.flags & WRITE)

    @property
    def mode(self) -> str:
        """mapped, file or message."""
        return "mapped" if self.file else "message" if self.fd is None else "file"

    def __repr__(self) -> str:
        access = ("r" if self.readable else "-") + ("w" if self.writable else "-")
        return f"<DMA {self.iova:#x} to {self.end:#x} {access} {self.mode}>"

    def use(self, file: MemoryFile) -> None:
        """Become mapped. What can shrink has to be looked at before each access, and goes no shorter way."""
        self.file = file
        self.base = self.offset - file.base
        self.read_map = file.map if self.readable and not file.can_shrink else None
        self.write_map = file.map if self.writable and not file.can_shrink else None

    def same_as(self, other: DmaRegion) -> bool:
        """The same memory at the same address with the same rights."""
        return (
            (self.iova, self.size, self.flags, self.source) == (other.iova, other.size, other.flags, other.source)
        ) and (self.source is None or self.offset == other.offset)

    def part(self, iova: int, end: int) -> DmaRegion:
        """A part of this region, with a claim of its own on the file or descriptor."""
        part = DmaRegion(iova, end - iova, self.flags, self.offset + iova - self.iova)
        part.source = self.source
        if self.dirty:
            part.dirty = self.dirty.part(iova, end - iova)
        if self.file:
            self.file.users += 1
            part.use(self.file)
        if self.fd is not None:
            part.fd = os.dup(self.fd)
        return part

    def read_file(self, start: int, count: int) -> bytes:
        """In file mode: read, or raise ProtocolError with the file's errno, EFAULT behind its end."""
        assert self.fd is not None
        try:
            found = read_whole(self.fd, count, self.offset + start)
        except OSError as error:
            raise ProtocolError(f"{self!r}: {error.strerror}", error.errno or errno.EIO) from error
        if len(found) < count:
            raise ProtocolError(f"{self!r}: the file ends before {start + count:#x}", errno.EFAULT)
        return found

    def write_file(self, start: int, data: memoryview) -> None:
        """Write at `start` bytes from its beginning, in mode *file*.

        Raises:
            ProtocolError: the errno of pwrite(2).
        """
        assert self.fd is not None
        try:
            write_whole(self.fd, data, self.offset + start)
        except OSError as error:
            raise ProtocolError(f"{self!r}: {error.strerror}", error.errno or errno.EIO) from error


NOWHERE = DmaRegion(0, -1, 0, 0)
"""Holds no address: the last region used, before there was one."""
