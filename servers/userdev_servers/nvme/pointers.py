"""From the data pointer of a command to guest memory: PRP lists and scatter gather lists (sections 4.3 and 4.4)."""

from __future__ import annotations

import errno
from itertools import accumulate
from struct import unpack, unpack_from
from typing import TYPE_CHECKING

from userdev.errors import ProtocolError
from userdev_servers.nvme.spec import Failure, Status

if TYPE_CHECKING:
    from userdev_servers.nvme.controller import Controller
    from userdev_servers.nvme.queues import Command
    from vfio_user.device import Dma

Extent = tuple[int, int]
"""Address and bytes; the address is -1 for a bit bucket, which takes what nobody wants."""

BUCKET = -1
MAX_DESCRIPTORS = 4096
"""Of one scatter gather list, over all its segments: a chain that goes on for ever ends here."""

_DATA_BLOCK, _BIT_BUCKET, _SEGMENT, _LAST_SEGMENT = 0x00, 0x10, 0x20, 0x30


def extents(dma: Dma, command: Command, length: int, page: int, *, writable: bool) -> list[Extent]:
    """The places of the `length` bytes of a command's data, neighbours joined. `page`: the guest's page size.

    `writable`: the command gives data to the guest.

    Raises:
        Failure: the pointer is not as the specification wants it.
        ProtocolError: a list is where the guest has no memory.
    """
    kind = command.flags >> 6
    if kind == 0:
        return prp_extents(dma, command.prp1, command.prp2, length, page)
    if kind == 3:
        raise Failure(Status.INVALID_FIELD)
    return sgl_extents(dma, command.prp1, command.prp2, length, writable=writable)


def prp_extents(dma: Dma, prp1: int, prp2: int, length: int, page: int) -> list[Extent]:
    """Physical region pages: a first one that may begin anywhere, then a second one or a list of whole pages."""
    if prp1 & 3:
        raise Failure(Status.INVALID_PRP_OFFSET)
    first = page - (prp1 & page - 1)
    if length <= first:
        return [(prp1, length)]
    rest = length - first
    if rest <= page:
        if prp2 & page - 1:
            raise Failure(Status.INVALID_PRP_OFFSET)
        return [(prp1, length)] if prp2 == prp1 + first else [(prp1, first), (prp2, rest)]
    found: list[Extent] = []
    start, size = prp1, first
    pages = _prp_list(dma, prp2, -(-rest // page), page)
    if any(map((page - 1).__and__, pages)):
        raise Failure(Status.INVALID_PRP_OFFSET)
    for address in pages:
        if address == start + size:
            size += page
        else:
            found.append((start, size))
            start, size = address, page
    found.append((start, size - (-rest % page)))  # of the last page only what is left
    return found


def _prp_list(dma: Dma, at: int, count: int, page: int) -> list[int]:
    """The entries of a PRP list, whose pages are chained: the last entry of a full one points to the next."""
    if at & 7:
        raise Failure(Status.INVALID_PRP_OFFSET)
    entries: list[int] = []
    while True:
        here = (page - (at & page - 1)) // 8
        if count <= here:
            entries += unpack(f"<{count}Q", dma.read(at, count * 8))
            return entries
        *more, at = unpack(f"<{here}Q", dma.read(at, here * 8))
        if at & page - 1:
            raise Failure(Status.INVALID_PRP_OFFSET)
        entries += more
        count -= len(more)


def sgl_extents(dma: Dma, low: int, high: int, length: int, *, writable: bool) -> list[Extent]:
    """A scatter gather list: the descriptor in the command, and the segments that it leads to.

    A bit bucket takes bytes that go to the guest, and is nothing where they come from there (section 4.4.1).
    """
    found: list[Extent] = []
    descriptors = [(low, high & 0xFFFFFFFF, high >> 56)]
    left, seen, last = length, 0, False
    while descriptors:
        seen += len(descriptors)
        if seen > MAX_DESCRIPTORS:
            raise Failure(Status.INVALID_SGL_COUNT)
        following: tuple[int, int] | None = None
        for place, (address, size, kind) in enumerate(descriptors):
            match kind:
                case 0x00 | 0x10 if size and (writable or kind == _DATA_BLOCK):
                    if size > left:
                        raise Failure(Status.DATA_SGL_LENGTH_INVALID)
                    found.append((address if kind == _DATA_BLOCK else BUCKET, size))
                    left -= size
                case 0x00 | 0x10:
                    pass
                case 0x20 | 0x30 if place == len(descriptors) - 1 and not last:
                    following, last = (address, size), kind == _LAST_SEGMENT
                case 0x20 | 0x30:
                    raise Failure(Status.INVALID_SGL_SEGMENT)
                case _:
                    raise Failure(Status.SGL_TYPE_INVALID)
        descriptors = _sgl_segment(dma, *following) if following else []
    if left:
        raise Failure(Status.DATA_SGL_LENGTH_INVALID)
    return found


def _sgl_segment(dma: Dma, address: int, size: int) -> list[tuple[int, int, int]]:
    if not size or size % 16:
        raise Failure(Status.INVALID_SGL_SEGMENT)
    if size // 16 > MAX_DESCRIPTORS:
        raise Failure(Status.INVALID_SGL_COUNT)
    raw = dma.read(address, size)
    found = []
    for at in range(0, size, 16):
        start, length, kind = unpack_from("<QI3xB", raw, at)
        found.append((start, length, kind))
    return found


class Buffers:
    """The guest memory of one command, as memoryviews in order: in place, or a copy where it cannot be had in place.

    `writable`: the command gives data to the guest. `in_place` is False for memory that only messages reach; then
    `finish`, on the session's thread, brings the data there.
    """

    __slots__ = ("_copy", "_dma", "_extents", "_writable", "in_place", "pieces")

    def __init__(self, dma: Dma, extents: list[Extent], *, writable: bool) -> None:
        self._dma = dma
        self._extents = extents
        self._writable = writable
        self._copy = bytearray()
        self.in_place = True
        self.pieces: list[memoryview] = []
        try:
            if not extents or min(extents)[0] != BUCKET:  # the least of all addresses
                self.pieces = dma.gather(extents, write=writable)
                return
            for address, size in extents:
                if address == BUCKET:
                    self.pieces.append(memoryview(bytearray(size)))
                else:
                    self.pieces += dma.views(address, size, write=writable)
        except ProtocolError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise
            self._use_copy()

    def fill(self, data: bytes) -> None:
        """Put bytes there; what does not fit is dropped."""
        at = 0
        for piece in self.pieces:
            part = data[at : at + len(piece)]
            piece[: len(part)] = part
            at += len(piece)

    def gather(self) -> bytes:
        """A copy of all bytes, in one piece."""
        return b"".join(self.pieces)

    def finish(self) -> None:
        """The command's data is all there: bring copies to the guest, and give up its memory."""
        if self._writable and (self._dma.log_page_size or not self.in_place):
            starts = accumulate((size for _, size in self._extents), initial=0)
            for (address, size), start in zip(self._extents, starts, strict=False):
                if address == BUCKET:
                    continue
                if self.in_place:
                    self._dma.mark_dirty(address, size)
                else:
                    self._dma.write(address, self._copy[start : start + size])
        self.release()

    def release(self) -> None:
        """Give the views of guest memory up, so that it can be unmapped."""
        for piece in self.pieces:
            piece.release()
        self.pieces = []

    def _use_copy(self) -> None:
        self.release()
        self.in_place = False
        if self._writable:
            self._copy = bytearray(sum(size for _, size in self._extents))
        else:
            self._copy = bytearray(b"".join(self._dma.read(*extent) for extent in self._extents))
        self.pieces = [memoryview(self._copy)]


def buffers_of(controller: Controller, command: Command, size: int, *, writable: bool) -> Buffers:
    """The guest memory of a command's `size` bytes of data; raises what `extents` and `Dma.views` raise."""
    places = extents(controller.dma, command, size, controller.state.page_size, writable=writable)
    return Buffers(controller.dma, places, writable=writable)


def receive(controller: Controller, command: Command, size: int) -> bytes:
    """A copy of the data that comes with a command."""
    buffers = buffers_of(controller, command, size, writable=False)
    data = buffers.gather()
    buffers.release()
    return data


def send(controller: Controller, command: Command, data: bytes) -> None:
    """Give the guest the data that it asked for."""
    buffers = buffers_of(controller, command, len(data), writable=True)
    buffers.fill(data)
    buffers.finish()
