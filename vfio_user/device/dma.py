"""Client memory as a device uses it: reading and writing by IOVA.

Three modes, chosen by what the client gave: *mapped* (a descriptor that can be mapped: accesses are copies in shared
memory), *file* (a descriptor that can only be read and written), *message* (no descriptor: accesses are DMA_READ and
DMA_WRITE messages). Mapped and file memory may be used anywhere, and from any thread while the device is not quiesced;
message memory only on the session's thread and never in a register's reader (`Link.dma_read`).

Each access is checked as a whole before a byte moves: EFAULT where nothing is mapped, EPERM where the client did not
grant it. While one waits for a message's answer the client may unmap what is left of it: EFAULT then, too. Every write
marks its pages dirty while a log is kept. Memory in a file that is not sealed against shrinking (F_SEAL_SHRINK, as
QEMU's memfd is) is asked for its size before each access: behind its end that would be SIGBUS.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence

from userdev.errors import ProtocolError
from userdev.memory.files import MemoryFile
from vfio_user.device.dma_map import DmaMap, RegionHook
from vfio_user.device.dma_region import NOWHERE, READ, WRITE, DmaRegion
from vfio_user.device.link import Link, NoClient
from vfio_user.device.views import Views

Buffer = bytes | bytearray | memoryview

_MANY_VIEWS = 256
"""So many writable views that have gone wait for a report to be marked."""


class Dma(DmaMap):
    """The client memory that one device may use."""

    def __init__(self, mapped: RegionHook | None = None, unmapped: RegionHook | None = None) -> None:
        super().__init__(mapped, unmapped)
        self.link: Link = NoClient()

    def read(self, iova: int, count: int) -> bytes:
        """Read `count` bytes of client memory at `iova`.

        Raises:
            ProtocolError: EFAULT, not all of it is mapped; EPERM, it may not be read; or what the client answers to
                a message.
        """
        region = self._last
        start = iova - region.iova
        if start >= 0 and start + count <= region.size and region.read_map is not None:
            start += region.base
            return region.read_map[start : start + count]
        pieces = self.pieces(iova, count, READ)
        if len(pieces) == 1:
            return self._read_piece(*pieces[0])
        return b"".join([self._read_piece(*piece) for piece in pieces])

    def read_into(self, iova: int, buffer: bytearray | memoryview) -> None:
        """Fill a buffer, of whatever items, with as many bytes as it has; raises as `read`."""
        if type(buffer) is memoryview and buffer.itemsize != 1:
            buffer = buffer.cast("B")
        region = self._last
        start = iova - region.iova
        count = len(buffer)
        if start >= 0 and start + count <= region.size and region.read_map is not None and region.file is not None:
            start += region.base
            memoryview(buffer)[:] = region.file.view[start : start + count]
            return
        done = 0
        with memoryview(buffer) as view:
            for region, start, size in self.pieces(iova, len(view), READ):
                if region.file and not region.gone:
                    start += region.base
                    region.file.check(start + size)
                    view[done : done + size] = region.file.view[start : start + size]
                else:
                    view[done : done + size] = self._read_piece(region, start, size)
                done += size

    def write(self, iova: int, data: Buffer) -> None:
        """Write the bytes of a buffer, of whatever items; raises as `read`. Nothing is written then, unless a message
        fails after others.
        """
        region = self._last
        start = iova - region.iova
        count = len(data)
        if start >= 0 and start + count <= region.size and region.write_map is not None:
            place = start + region.base
            try:
                region.write_map[place : place + count] = data
            except IndexError:  # its items are wider than a byte
                pass
            else:
                if (log := region.dirty) is not None:
                    log.mark(iova, count)
                return
        done = 0
        with memoryview(data).cast("B") as view:
            for region, start, size in self.pieces(iova, len(view), WRITE):
                self._write_piece(region, start, view[done : done + size])
                done += size

    def views(self, iova: int, count: int, *, write: bool = False) -> Views:
        """The memory itself, without a copy: memoryviews in order, neighbours in one file joined.

        With `write` they are writable, and dirty in each report for as long as there is one of them, or a part of one,
        and in the one after that. Give views up before the device says that it is quiesced.

        Raises:
            ProtocolError: as `read`; EOPNOTSUPP where memory is in file or message mode.
        """
        spans: list[tuple[MemoryFile, int, int]] = []
        for region, start, size in self.pieces(iova, count, WRITE if write else READ):
            if region.file is None:
                raise ProtocolError(f"{region!r} cannot be viewed in place, only copied", errno.EOPNOTSUPP)
            start += region.base
            region.file.check(start + size)
            if spans and spans[-1][0] is region.file and spans[-1][2] == start:
                spans[-1] = region.file, spans[-1][1], start + size
            else:
                spans.append((region.file, start, start + size))
        if not write:
            return Views(file.view[start:end].toreadonly() for file, start, end in spans)
        found = Views()
        for file, start, end in spans:
            found.append(self._views.make(file, start, end - start, iova))
            iova += end - start
        if len(self._views) > _MANY_VIEWS:
            self.mark_viewed()
        return found

    def gather(self, extents: Sequence[tuple[int, int]], *, write: bool = False) -> list[memoryview]:
        """`views` of many ranges, addresses with sizes, for devices that have lists of pages: a view each, in order.

        Who writes calls `mark_dirty` afterwards, and releases the views. Raises as `views`.
        """
        found: list[memoryview] = []
        region, view = self._last_in_place(write)
        for iova, count in extents:
            start = iova - region.iova
            if start < 0 or start + count > region.size:
                found += self.views(iova, count, write=write)
                region, view = self._last_in_place(write)  # of before, where this range has no bytes
                continue
            if write and region.dirty is not None:
                region.dirty.mark(iova, count)
            start += region.base
            found.append(view[start : start + count])
        return found

    def read_u8(self, iova: int) -> int:
        """Read 8 bits at `iova`; raises as `read`."""
        return self.read(iova, 1)[0]

    def read_u16(self, iova: int) -> int:
        """Read 16 bits at `iova`, little-endian, not in one access; raises as `read`."""
        return int.from_bytes(self.read(iova, 2), "little")

    def read_u32(self, iova: int) -> int:
        """Read 32 bits at `iova`, little-endian, not in one access; raises as `read`."""
        return int.from_bytes(self.read(iova, 4), "little")

    def read_u64(self, iova: int) -> int:
        """Read 64 bits at `iova`, little-endian, not in one access; raises as `read`."""
        return int.from_bytes(self.read(iova, 8), "little")

    def write_u8(self, iova: int, value: int) -> None:
        """Write 8 bits at `iova`; raises as `write`."""
        self.write(iova, value.to_bytes(1, "little"))

    def write_u16(self, iova: int, value: int) -> None:
        """Write 16 bits at `iova`, little-endian, not in one access; raises as `write`."""
        self.write(iova, value.to_bytes(2, "little"))

    def write_u32(self, iova: int, value: int) -> None:
        """Write 32 bits at `iova`, little-endian, not in one access; raises as `write`."""
        self.write(iova, value.to_bytes(4, "little"))

    def write_u64(self, iova: int, value: int) -> None:
        """Write 64 bits at `iova`, little-endian, not in one access; raises as `write`."""
        self.write(iova, value.to_bytes(8, "little"))

    def _last_in_place(self, write: bool) -> tuple[DmaRegion, memoryview]:
        """The region used last and its file, where it may be used so without a further question; else `NOWHERE`."""
        region = self._last
        if region.file is None or (region.write_map if write else region.read_map) is None:
            return NOWHERE, memoryview(b"")
        return region, region.file.view if write else region.file.view.toreadonly()

    def _read_piece(self, region: DmaRegion, start: int, count: int) -> bytes:
        if region.gone:
            raise _unmapped_meanwhile(region)
        if region.file:
            start += region.base
            region.file.check(start + count)
            return region.file.map[start : start + count]
        if region.fd is not None:
            return region.read_file(start, count)
        return self.link.dma_read(region.iova + start, count)

    def _write_piece(self, region: DmaRegion, start: int, data: memoryview) -> None:
        if region.gone:
            raise _unmapped_meanwhile(region)
        if region.file:
            place = start + region.base
            region.file.check(place + len(data))
            region.file.map[place : place + len(data)] = data
        elif region.fd is not None:
            region.write_file(start, data)
        else:
            self.link.dma_write(region.iova + start, data)
        if region.dirty is not None:
            region.dirty.mark(region.iova + start, len(data))


def _unmapped_meanwhile(region: DmaRegion) -> ProtocolError:
    return ProtocolError(f"{region!r} was unmapped while an access to what is before it was under way", errno.EFAULT)
