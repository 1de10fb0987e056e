"""The map from IOVA to client memory: what DMA_MAP and DMA_UNMAP do, and the log of dirty pages over it."""

from __future__ import annotations

import errno
import os
from bisect import bisect_right
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial

from userdev.errors import AUTHORS_FAILURES, ProtocolError
from userdev.memory.bitmap import bitmap_size
from userdev.memory.files import MemoryFiles
from userdev.memory.intervals import IntervalMap
from vfio_user.device.dma_region import CURRENT_POLICY, NOWHERE, DmaRegion
from vfio_user.device.views import WritableViews
from vfio_user.migration.dirty_log import MAX_LOGGED, DirtyPages, check_page_size
from vfio_user.wire.constants import DmaFlags

MMAP, FILE_IO = int(DmaFlags.MMAP), int(DmaFlags.FILE_IO)
KNOWN_FLAGS = int(DmaFlags.READ | DmaFlags.WRITE | DmaFlags.MMAP | DmaFlags.FILE_IO)

MAX_SIZE = 8 << 40
"""Largest region, as in libvfio-user: more is ENOSPC."""
ADDRESS_END = 1 << 64

RegionHook = Callable[[DmaRegion], None]
RegionPiece = tuple[DmaRegion, int, int]
"""A region, an offset in it, and a size."""


class DmaMap:
    """Regions of client memory in order of address, none overlapping."""

    def __init__(self, mapped: RegionHook | None = None, unmapped: RegionHook | None = None) -> None:
        self.policy = CURRENT_POLICY
        self.by_message = False
        """Whether memory that comes is to be reached by messages alone, though the client shares it."""
        self._mapped = mapped
        self._unmapped = unmapped
        self._files = MemoryFiles()
        self._map = IntervalMap[DmaRegion]()
        self._empty: set[int] = set()
        self._last = NOWHERE
        self._size = 0
        self._log_page_size = 0
        self._views = WritableViews()

    def __len__(self) -> int:
        return len(self._map)

    @property
    def regions(self) -> list[DmaRegion]:
        """All regions in order of address."""
        return list(self._map)

    def find(self, iova: int) -> DmaRegion | None:
        """The region that has this address."""
        return self._map.find(iova)

    def pieces(self, iova: int, count: int, access: int, missing: int = errno.EFAULT) -> list[RegionPiece]:
        """The places of these bytes: regions with offset and size, in order, all of them or an error.

        Raises:
            ProtocolError: `missing` if an address is not mapped, EPERM if a region does not grant `access`.
        """
        pieces: list[RegionPiece] = []
        end = iova + count
        starts, regions = self._map.starts, self._map.by_start
        place = bisect_right(starts, iova) - 1
        while iova < end:
            region = regions[starts[place]] if 0 <= place < len(starts) else NOWHERE
            start = iova - region.iova
            if not 0 <= start < region.size:
                raise ProtocolError(f"no client memory is mapped at {iova:#x}", missing)
            if access & ~region.flags:
                raise ProtocolError(f"{region!r} does not allow this access", errno.EPERM)
            size = min(end, region.iova + region.size) - iova
            pieces.append((region, start, size))
            iova += size
            place += 1
        if pieces:
            self._last = pieces[-1][0]
        return pieces

    def check_mapped(self, iova: int, count: int) -> None:
        """Look whether all of these bytes are mapped; raises as `pieces`."""
        self.pieces(iova, count, 0)

    def map(self, iova: int, size: int, flags: int, fd: int | None = None, offset: int = 0) -> None:
        """Make memory known. `flags` are DmaFlags; the fd is taken over: kept, or closed, also after an error. A range
        of no bytes is no memory: no hook is told of it, nor when it goes.

        Raises:
            ProtocolError: as docs/protocol.md 5 says: EINVAL for bad flags, wrapping or overlapping ranges and files
                that are too short, ENOSPC above 8 TiB, ENOMEM where that is more than can be logged, the errno of
                mmap; then nothing has changed. Nor has it where the author's hook refuses, with whatever that raises.
        """
        try:
            region = self._new_region(iova, size, flags, fd, offset)
            known = self._map.starting_at(iova)
            if known is not None and self._is_again(known, region):
                region = known
            elif size:
                self._check_free(iova, size)
                if self._log_page_size:
                    (region.dirty,) = self._new_logs([region], self._size + size, self._log_page_size)
                if fd is not None and not self._back(region, fd, flags):
                    region.fd, fd = fd, None
                if self.by_message:  # a file that cannot be used is refused all the same
                    region.read_map = region.write_map = None
                    self._let_go(region)
                self._insert(region)
            elif iova not in self._empty:
                self._check_room(1)
                self._empty.add(iova)
        finally:
            if fd is not None:
                os.close(fd)
        if self._mapped and size:
            try:
                self._mapped(region)
            except BaseException:
                if region is not known:  # of which the client has been told
                    self._forget(region)
                raise

    def unmap(self, iova: int, size: int) -> None:
        """Forget memory.

        Raises:
            ProtocolError: ENOENT, no region has exactly this address and size, and none lies inside with none across
                the borders; where the policy allows parts, no region has anything of it.
        """
        region = self._map.starting_at(iova)
        if region is not None and region.size == size:
            self._drop(region)
        elif size == 0 and iova in self._empty:
            self._empty.remove(iova)
        elif size and self._drop_inside(iova, iova + size):
            pass
        elif not size or not self.policy.partial_unmap or not self._cut(iova, iova + size):
            raise ProtocolError(f"no DMA region is at {iova:#x} with size {size:#x}", errno.ENOENT)

    def has_any(self, iova: int, size: int) -> bool:
        """Whether anything is mapped in a range; of one of no bytes, whether it is."""
        if not size:
            return iova in self._empty
        last = self._map.last_before(iova + size)
        return last is not None and last.end > iova

    def unmap_all(self) -> None:
        """Forget everything. What a hook of the author raises is raised when all of it is forgotten."""
        self._empty.clear()
        self._drop_all(self.regions)

    @property
    def log_page_size(self) -> int:
        """Page size of the dirty log; 0 if none is kept."""
        return self._log_page_size

    def start_log(self, page_size: int) -> None:
        """Log written pages from now on, of regions that come later too.

        Raises:
            ProtocolError: EINVAL, not a power of two, or a log with another page size is kept already; ENOMEM, more
                is mapped than can be logged. Then none is kept.
        """
        check_page_size(page_size)
        if self._log_page_size not in (0, page_size):
            raise ProtocolError(f"dirty log: its page size is {self._log_page_size}, not {page_size}", errno.EINVAL)
        if not self._log_page_size:
            logs = self._new_logs(self.regions, self._size, page_size)
            for region, log in zip(self.regions, logs, strict=True):
                region.dirty = log
            self._log_page_size = page_size
            self._views.logged = True

    def stop_log(self) -> None:
        """End the log of written pages, and forget what it had."""
        self._log_page_size = 0
        for region in self._map:
            region.dirty = None
        self._views.logged = False
        self._views.take_written()

    def take_dirty(self, iova: int, length: int, page_size: int) -> bytearray:
        """Report and forget the dirty pages of a range; a bitmap of `bitmap_size(length, page_size)` bytes.

        Any range is taken that has something mapped in it (libvfio-user takes only a region's start, advice A18 of
        docs/protocol.md). Memory in message mode is logged like any other, although its client could know.

        Raises:
            ProtocolError: EINVAL, no log is kept, the range is shorter than a page or the page size is not a power
                of two; ENOENT, nothing is mapped there.
        """
        return self.dirty_report(iova, length, page_size)()

    def dirty_report(self, iova: int, length: int, page_size: int) -> Callable[[], bytearray]:
        """What takes the dirty pages of a range when it is called, though its memory be unmapped by then: an author
        who is told of that may still write there. Takes nothing before; raises as `take_dirty`.
        """
        return partial(self._take, self._logs_of(iova, length, page_size), iova, length, page_size)

    def mark_viewed(self, also: Sequence[DirtyPages] = ()) -> None:
        """Mark what may have been written through views: in the logs of what is mapped, and in these besides."""
        for iova, size in self._views.take_written():
            mapped = [region.dirty for region in self._map.within(iova, iova + size) if region.dirty is not None]
            for log in {*mapped, *also}:
                log.mark_within(iova, size)

    def mark_dirty(self, iova: int, count: int) -> None:
        """Say that these bytes were written through a view. `Dma.write` does this by itself."""
        if self._log_page_size:
            for region, start, size in self.pieces(iova, count, 0):
                if region.dirty is not None:
                    region.dirty.mark(region.iova + start, size)

    def _new_region(self, iova: int, size: int, flags: int, fd: int | None, offset: int) -> DmaRegion:
        """Check what can be checked without looking at other regions."""
        if flags & ~KNOWN_FLAGS or (flags & MMAP and flags & FILE_IO) or (flags & (MMAP | FILE_IO) and fd is None):
            raise ProtocolError(f"DMA_MAP: flags {flags:#x} {'without' if fd is None else 'with'} fd", errno.EINVAL)
        if size > MAX_SIZE:
            raise ProtocolError(f"DMA_MAP: {size:#x} bytes, more than {MAX_SIZE:#x}", errno.ENOSPC)
        if iova + size > ADDRESS_END or offset + size > ADDRESS_END // 2:
            raise ProtocolError(f"DMA_MAP: {size:#x} bytes at {iova:#x} (file: {offset:#x}) wrap", errno.EINVAL)
        if fd is not None and not size:
            raise ProtocolError("DMA_MAP: a file, and size 0", errno.EINVAL)
        region = DmaRegion(iova, size, int(flags), offset)  # an IntFlag's operators take a microsecond each
        if fd is not None:
            status = os.fstat(fd)
            region.source = status.st_dev, status.st_ino
        return region

    def _is_again(self, known: DmaRegion, region: DmaRegion) -> bool:
        return self.policy.identical_is_fine and known.same_as(region)

    def _check_free(self, iova: int, size: int) -> None:
        other = self._map.last_before(iova + size)
        if other is not None and other.end > iova:
            raise ProtocolError(f"DMA_MAP: {size:#x} bytes at {iova:#x} overlap {other!r}", self.policy.overlap_errno)
        self._check_room(1)

    def _check_room(self, more: int) -> None:
        """Look whether there may be so many more regions, those of no bytes among them."""
        if len(self._map) + len(self._empty) + more > self.policy.max_regions:
            raise ProtocolError(f"DMA: more than {self.policy.max_regions} regions", errno.EINVAL)

    def _back(self, region: DmaRegion, fd: int, flags: int) -> bool:
        """Map the region's file; False if the descriptor is to be read and written instead."""
        if not flags & FILE_IO:
            try:
                region.use(self._files.take(fd, region.writable, region.offset, region.size))
            except ProtocolError as error:
                if error.errno != errno.ENODEV or not _is_seekable(fd):
                    raise
            else:
                return True
        elif not _is_seekable(fd):  # the client's own end of the connection, say, which would never end then
            raise ProtocolError("DMA_MAP: FILE_IO of what has no offsets to read and write at", errno.EINVAL)
        os.set_inheritable(fd, False)
        return False

    def _new_logs(self, regions: list[DmaRegion], in_all: int, page_size: int) -> list[DirtyPages]:
        """A log for each; raises ProtocolError (ENOMEM) if so much memory, all in all, has no room in them."""
        if in_all > MAX_LOGGED:
            raise ProtocolError(
                f"dirty log: {in_all:#x} bytes would be mapped and logged, more than {MAX_LOGGED:#x} "
                f"({MAX_LOGGED >> 40} TiB), which is all that a log holds",
                errno.ENOMEM,
            )
        try:
            return [DirtyPages(region.iova, region.size, page_size) for region in regions]
        except MemoryError:
            raise ProtocolError(f"dirty log: no memory for the bits of {in_all:#x} bytes", errno.ENOMEM) from None

    def _logs_of(self, iova: int, length: int, page_size: int) -> list[DirtyPages]:
        """The logs that a report of this range is made of."""
        check_page_size(page_size)
        if not self._log_page_size or length < page_size:
            raise ProtocolError("dirty log: not started, or a range shorter than a page", errno.EINVAL)
        logs = [region.dirty for region in self._map.within(iova, iova + length) if region.dirty is not None]
        if not logs:
            raise ProtocolError(f"dirty log: nothing is mapped from {iova:#x} to {iova + length:#x}", errno.ENOENT)
        return logs

    def _take(self, logs: list[DirtyPages], iova: int, length: int, page_size: int) -> bytearray:
        self.mark_viewed(logs)
        if len(logs) == 1:
            return logs[0].take(iova, length, page_size)
        bitmap = bytearray(bitmap_size(length, page_size))
        for log in logs:
            log.take_into(bitmap, iova, length, page_size)
        return bitmap

    def _insert(self, region: DmaRegion) -> None:
        self._size += region.size
        self._map.add(region)

    def _drop(self, region: DmaRegion) -> None:
        """The author is told first, while the memory is still there."""
        try:
            if self._unmapped:
                self._unmapped(region)
        finally:
            self._forget(region)

    def _drop_all(self, regions: list[DmaRegion]) -> None:
        """Drop them from the last to the first; what the author's hook raises is raised when all of them are gone."""
        failed: list[BaseException] = []
        for region in reversed(regions):
            try:
                self._drop(region)
            except AUTHORS_FAILURES as error:
                failed.append(error)
        if failed:
            raise failed[0]

    def _forget(self, region: DmaRegion) -> None:
        self._map.remove(region.iova)
        self._size -= region.size
        if self._last is region:
            self._last = NOWHERE
        region.read_map = region.write_map = None
        self._release(region)

    def _release(self, region: DmaRegion) -> None:
        region.gone = True
        self._let_go(region)

    def _let_go(self, region: DmaRegion) -> None:
        """Keep nothing of its file."""
        file, region.file = region.file, None
        fd, region.fd = region.fd, None
        if file:
            self._files.give_back(file)
        if fd is not None:
            os.close(fd)

    def _drop_inside(self, start: int, end: int) -> bool:
        """Unmap what lies in a range, as VFIO does (VFIO_IOMMU_UNMAP_DMA), unless a region is across its borders.

        QEMU counts on it behind a vIOMMU: when the guest gives the device to another domain, it unmaps the whole
        address space in powers of two, and only then maps the pages of the new one.
        """
        inside = self._map.within(start, end)
        if not inside or inside[0].iova < start or inside[-1].end > end:
            return False
        self._drop_all(inside)
        return True

    def _cut(self, start: int, end: int) -> bool:
        """Unmap a range whatever regions it touches; what is left of them stays mapped."""
        cut = self._map.within(start, end)
        borders = ((region, ((region.iova, start), (end, region.end))) for region in cut)
        left = [(region, first, last) for region, sides in borders for first, last in sides if first < last]
        self._check_room(len(left) - len(cut))
        parts: list[tuple[DmaRegion, DmaRegion]] = []
        with ExitStack() as made:  # all of them or none
            for region, first, last in left:
                parts.append((region.part(first, last), region))
                made.callback(self._release, parts[-1][0])
            made.pop_all()
        with ExitStack() as told:  # from the last to the first, whatever one raises
            for part, region in reversed(parts):
                told.callback(self._keep, part, region)
            told.callback(self._drop_all, cut)
        return bool(cut)

    def _keep(self, part: DmaRegion, whole: DmaRegion) -> None:
        if part.dirty is not None and whole.dirty is not None:
            whole.dirty.copy_to(part.dirty)  # what the author wrote when it was told
        self._insert(part)
        if self._mapped:
            self._mapped(part)


def _is_seekable(fd: int) -> bool:
    for empty in (lambda: os.pread(fd, 0, 0), lambda: os.pwrite(fd, b"", 0)):
        try:
            empty()
        except OSError as error:
            if error.errno != errno.EBADF:
                return False  # EBADF: it may be open for the other direction
        else:
            return True
    return False
