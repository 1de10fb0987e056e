"""What each request does to a disk, as a table.

A function is given the sector, the pieces of memory to read and those to write, without header and status. It has done
its request when it returns None; what has to wait for the disk it returns, for a thread beside the session, and a read
that it has begun. OSError and `Refused` are the request's failure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from time import monotonic
from types import MappingProxyType
from typing import Final

from userdev_servers.blk.spec import HEADER, SECTOR, SEGMENT, SERIAL_SIZE, UNMAP, RequestType, Status
from userdev_servers.block.backing import Backing, WouldBlock
from userdev_servers.block.together import LARGE, Read

MAX_SEGMENTS: Final = 256
"""Of a discard, or of zeroes to write: a page of them."""

MAX_SEGMENT: Final = (1 << 30) // SECTOR
"""Sectors of each. Where the file system cannot do it, zeros are written, and other requests that wait have to."""

SLOW_SECONDS: Final = 0.05
"""A write into the page cache that takes longer has waited for the disk, as when too much of it is dirty, and not for a
core of a busy machine."""

SLOW_FOR_SECONDS: Final = 1.0
"""So long others are thought to be as slow, and do not hold the session."""

Pieces = Sequence[memoryview]
Work = Callable[[], object]


class Refused(Exception):
    """A request that is not done; `status` is what the driver is told."""

    def __init__(self, what: str, status: Status = Status.IOERR) -> None:
        super().__init__(what)
        self.status = status


class Disk:
    """An image as its driver sees it."""

    def __init__(self, backing: Backing, serial: bytes) -> None:
        self.backing = backing
        self.serial = serial
        self.write_back = False
        """A write is kept by the next flush; else before it is answered."""
        self.size = 0
        """Bytes, whole sectors."""
        self._slow_until = 0.0
        self.measure()

    def measure(self) -> bool:
        """Take over the image's size; whether it was another."""
        before, self.size = self.size, self.backing.size // SECTOR * SECTOR
        return self.size != before

    def offset(self, sector: int, size: int) -> int:
        """The offset of so many bytes.

        Raises:
            Refused: they are not whole sectors of the disk.
        """
        offset = sector * SECTOR
        if size % SECTOR or offset + size > self.size:
            raise Refused(f"{size} bytes at sector {sector} of a disk that has {self.size // SECTOR} of {SECTOR}")
        return offset

    def check_writable(self) -> None:
        """Raise Refused where it may be read only."""
        if self.backing.read_only:
            raise Refused("the disk is read-only")

    @property
    def is_slow(self) -> bool:
        """Whether a write may have to wait for the disk."""
        return monotonic() < self._slow_until

    def write(self, pieces: Pieces, offset: int) -> None:
        """Write, and find out whether that had to wait for the disk. From any thread."""
        begin = monotonic()
        self.backing.write(pieces, offset)
        end = monotonic()
        if end - begin > SLOW_SECONDS:
            self._slow_until = end + SLOW_FOR_SECONDS

    def write_and_sync(self, pieces: Pieces, offset: int) -> None:
        """Write, and have it on the disk. From any thread."""
        self.write(pieces, offset)
        self.backing.sync()


Request = Callable[[Disk, int, Pieces, Pieces], Work | Read | None]


def _read(disk: Disk, sector: int, data: Pieces, into: Pieces) -> Work | Read | None:
    """At once where the page cache has it; a large one together with others."""
    if data:
        raise Refused("a read with data of its own")
    size = size_of(into)
    offset = disk.offset(sector, size)
    if size >= LARGE and disk.backing.together.takes(into, size):
        return disk.backing.together.begin(into, size, offset)
    try:
        disk.backing.try_read(into, size, offset)
    except WouldBlock:
        return partial(disk.backing.read, into, offset)
    return None


def _write(disk: Disk, sector: int, data: Pieces, into: Pieces) -> Work | None:
    """Into the page cache; at once, unless that has been slow of late."""
    disk.check_writable()
    if into:
        raise Refused("a write with room for data")
    offset = disk.offset(sector, size_of(data))
    if not disk.write_back:
        return partial(disk.write_and_sync, data, offset)
    if disk.is_slow:
        return partial(disk.write, data, offset)
    disk.write(data, offset)
    return None


def _flush(disk: Disk, _: int, __: Pieces, ___: Pieces) -> Work | None:
    return None if disk.backing.read_only else disk.backing.sync


def _get_id(disk: Disk, _: int, __: Pieces, into: Pieces) -> None:
    rest = disk.serial.ljust(SERIAL_SIZE, b"\0")
    for piece in into:
        count = min(len(piece), len(rest))
        piece[:count] = rest[:count]
        rest = rest[count:]


def _discard(disk: Disk, _: int, data: Pieces, __: Pieces) -> Work:
    return partial(_clear, disk, _segments(disk, data, flags=0), kept=not disk.write_back, unmap=UNMAP)


def _write_zeroes(disk: Disk, _: int, data: Pieces, __: Pieces) -> Work:
    return partial(_clear, disk, _segments(disk, data, flags=UNMAP), kept=not disk.write_back, unmap=0)


def _segments(disk: Disk, data: Pieces, *, flags: int) -> list[tuple[int, int, int]]:
    """Offset, bytes and flags of each segment; all are right, and have no other `flags`, before any is done.

    Raises:
        Refused: one is not; what has flags that there are not is told apart ("Device Operation").
    """
    disk.check_writable()
    size = sum(map(len, data))
    if size % SEGMENT.size or not 0 < size <= MAX_SEGMENTS * SEGMENT.size:
        raise Refused(f"{size} bytes of segments, of {SEGMENT.size} each and {MAX_SEGMENTS} at most")
    segments = list(SEGMENT.iter_unpack(b"".join(data)))
    if unknown := [has for _, _, has in segments if has & ~flags]:
        raise Refused(f"a segment with flags {unknown[0]:#x}", Status.UNSUPP)
    if longest := [sectors for _, sectors, _ in segments if sectors > MAX_SEGMENT]:
        raise Refused(f"a segment of {longest[0]} sectors, of {MAX_SEGMENT} at most")
    return [(disk.offset(sector, sectors * SECTOR), sectors * SECTOR, has) for sector, sectors, has in segments]


def _clear(disk: Disk, segments: Sequence[tuple[int, int, int]], *, kept: bool, unmap: int) -> None:
    """Zeros; as holes where `unmap` or the segment's own flags say that they may be."""
    for offset, size, flags in segments:
        (disk.backing.discard if flags | unmap else disk.backing.zero)(offset, size)
    if kept:
        disk.backing.sync()


REQUESTS: Mapping[int, Request] = MappingProxyType(
    {
        RequestType.IN: _read,
        RequestType.OUT: _write,
        RequestType.FLUSH: _flush,
        RequestType.GET_ID: _get_id,
        RequestType.DISCARD: _discard,
        RequestType.WRITE_ZEROES: _write_zeroes,
    }
)


def unsupported(_: Disk, __: int, ___: Pieces, ____: Pieces) -> None:
    """Refuse what there is not.

    Raises:
        Refused: always.
    """
    raise Refused("a request of a type that there is not", Status.UNSUPP)


def size_of(pieces: Pieces) -> int:
    """Bytes of all of them; most requests have one."""
    return len(pieces[0]) if len(pieces) == 1 else sum(map(len, pieces))


def cut_header(views: Sequence[memoryview]) -> tuple[bytes | memoryview, Pieces]:
    """The header, and what is to be read behind it; the header is shorter where there is no more."""
    if views and len(views[0]) == HEADER.size:
        return views[0], views[1:]
    header, data = b"", []
    for view in views:
        missing = HEADER.size - len(header)
        header += view[:missing]
        if len(view) > missing:
            data.append(view[missing:])
    return header, data


def cut_status(views: Sequence[memoryview]) -> tuple[Pieces, memoryview | None]:
    """What may be written before the byte of status, and that; None where there is nothing."""
    if views and len(views[-1]) == 1:
        return views[:-1], views[-1]
    whole = [view for view in views if len(view)]
    if not whole:
        return [], None
    *pieces, last = whole
    if len(last) > 1:
        pieces.append(last[:-1])
    return pieces, last[-1:]
