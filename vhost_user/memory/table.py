"""The memory table: regions of guest memory, by guest address and by the front-end's own ("Memory access").

A region is a piece of a file, which is mapped once however many regions are in it (`MemoryFiles`). Neither its size nor
its offset need be a multiple of a page: libblkio's rings are not. Views of a region that is gone stay good, as the
mapping lives until the last of them does.
"""

from __future__ import annotations

import errno
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Final

from userdev.errors import ProtocolError
from userdev.memory.files import MemoryFile, MemoryFiles
from userdev.memory.shrinking import can_shrink, check_size
from vhost_user.wire.payloads import Region, XenRegion

MAX_SLOTS: Final = 509
"""Regions at a time, and what GET_MAX_MEM_SLOTS is answered with: as many as QEMU and virtiofsd take."""

_END: Final = 1 << 64

GuestRange = tuple[int, int]
"""(guest address, bytes)"""


class MappedRegion:
    """A region that is mapped: its addresses, and a view of its bytes."""

    __slots__ = ("_end", "_files", "can_shrink", "file", "guest", "size", "user", "view")

    def __init__(self, region: Region | XenRegion, fd: int, files: MemoryFiles) -> None:
        """Map it; `fd` stays the caller's.

        Raises:
            ProtocolError: it is empty, beyond 64 bits or beyond its file; or its file cannot be mapped.
        """
        if isinstance(region, XenRegion):
            raise ProtocolError("a memory region of Xen, whose files are not mapped as others are")
        guest, size, user, offset = region
        if not size or guest + size > _END or user + size > _END or offset + size > _END:
            raise ProtocolError(f"a region of {size:#x} bytes at {guest:#x}, {user:#x} in the front-end")
        self.guest, self.size, self.user = guest, size, user
        self._files = files
        self.file: MemoryFile = files.take(fd, True, offset, size)
        self._end = offset + size
        self.can_shrink = can_shrink(fd)
        self.view = self.file.view[offset - self.file.base :][:size]

    @property
    def end(self) -> int:
        """The guest address behind it."""
        return self.guest + self.size

    @property
    def file_start(self) -> int:
        """Where it begins in the mapping of its file."""
        return self._end - self.size - self.file.base

    def is_same(self, region: Region | XenRegion) -> bool:
        """Whether a message names this region: "by its guest address, user address and size"."""
        return (self.guest, self.size, self.user) == (region.guest_address, region.size, region.user_address)

    def check(self) -> None:
        """Look whether its file still has it; ProtocolError where it has shrunk."""
        check_size(self.file.map, self._end)

    def close(self) -> None:
        """Unmap it, once nobody has a view of it any more."""
        self.view = _NOTHING
        self._files.give_back(self.file)


_NOTHING: Final = memoryview(bytearray())


class Nowhere:
    """In place of a region that there is not."""

    guest = 0
    size = 0
    view = _NOTHING


NOWHERE: Final = Nowhere()


class MemoryTable:
    """The regions of one connection.

    `generation` grows with every change: whoever has looked an address up looks again when it has (a ring does before
    it takes requests; one whose memory has gone breaks).
    """

    def __init__(self) -> None:
        self.generation = 0
        self._files = MemoryFiles()
        self._regions: list[MappedRegion] = []
        self._starts: list[int] = []
        self._watched: list[MappedRegion] = []
        self.can_shrink = False
        """Whether there is anything to `check`."""
        self.recent: MappedRegion | Nowhere = NOWHERE
        """The region that was asked for last: rings look into it themselves first."""
        self._before: MappedRegion | Nowhere = NOWHERE
        """The one before: a request often has header and data in two, as libblkio's or those of a large guest."""

    def __len__(self) -> int:
        return len(self._regions)

    def set(self, regions: Sequence[Region | XenRegion], fds: Sequence[int]) -> None:
        """Have these regions and no others (SET_MEM_TABLE); the descriptors stay the caller's.

        Raises:
            ProtocolError: one is wrong or overlaps another; then nothing has changed.
        """
        mapped: list[MappedRegion] = []
        try:
            for region, fd in zip(regions, fds, strict=True):
                mapped.append(MappedRegion(region, fd, self._files))
            self._check_apart(mapped)
        except BaseException:
            _close(mapped)
            raise
        before = self._regions
        self._have(mapped)
        _close(before)

    def add(self, region: Region | XenRegion, fd: int) -> None:
        """Have this region too (ADD_MEM_REG); `fd` stays the caller's.

        One that is there already is mapped anew: QEMU adds its regions again when a device comes back on a chardev.

        Raises:
            ProtocolError: it is wrong or overlaps another; ENOSPC: there are too many. Then nothing has changed.
        """
        same = [old for old in self._regions if old.is_same(region)]
        others = [old for old in self._regions if old not in same]
        if len(others) >= MAX_SLOTS:
            raise ProtocolError(f"more than {MAX_SLOTS} memory regions", errno.ENOSPC)
        mapped = MappedRegion(region, fd, self._files)
        try:
            self._check_apart([*others, mapped])
        except ProtocolError:
            mapped.close()
            raise
        self._have([*others, mapped])
        _close(same)

    def remove(self, region: Region | XenRegion) -> None:
        """Let this region go (REM_MEM_REG).

        Raises:
            ProtocolError: ENOENT, there is none like it.
        """
        gone = self.region(region)
        self._have([old for old in self._regions if old is not gone])
        gone.close()

    @property
    def regions(self) -> Sequence[MappedRegion]:
        """All of them, by guest address."""
        return self._regions

    def region(self, said: Region | XenRegion) -> MappedRegion:
        """The region that a message names.

        Raises:
            ProtocolError: ENOENT, there is none like it.
        """
        for region in self._regions:
            if region.is_same(said):
                return region
        raise ProtocolError(
            f"no region of {said.size:#x} bytes at {said.guest_address:#x}, {said.user_address:#x} there", errno.ENOENT
        )

    def clear(self) -> None:
        """Let all regions go."""
        self.set((), ())

    def check(self) -> None:
        """Look whether the files still have the regions; free where all are sealed against shrinking.

        Raises:
            ProtocolError: a file has shrunk; its regions are gone.
        """
        if not self._watched:
            return
        failures = []
        for region in self._watched:
            try:
                region.check()
            except ProtocolError as error:
                failures.append((region, error))
        if failures:
            gone = [region for region, _ in failures]
            self._have([region for region in self._regions if region not in gone])
            _close(gone)
            raise failures[0][1]

    def view(self, guest: int, size: int) -> memoryview:
        """The bytes at a guest address, which are to be in one region.

        Raises:
            ProtocolError: they are not.
        """
        region = self.region_of(guest, size)
        if not region.size:
            region = self._find(guest)
            if guest + size > region.end:
                raise ProtocolError(f"{size:#x} bytes at {guest:#x} go beyond their memory region")
        at = guest - region.guest
        return region.view[at : at + size]

    def region_of(self, guest: int, size: int) -> MappedRegion | Nowhere:
        """The region that has all of these bytes; one without bytes where none has."""
        region = self.recent
        if 0 <= guest - region.guest <= region.size - size:
            return region
        region = self._before
        if not 0 <= guest - region.guest <= region.size - size:
            index = bisect_right(self._starts, guest) - 1
            if index < 0 or guest + size > self._regions[index].end:
                return NOWHERE
            region = self._regions[index]
        self._before, self.recent = self.recent, region
        return region

    def views(self, guest: int, size: int) -> list[memoryview]:
        """Views of bytes that may go from one region on into the next; see `view`."""
        pieces = []
        while size:
            region = self._find(guest)
            here = min(size, region.end - guest)
            pieces.append(self.view(guest, here))
            guest, size = guest + here, size - here
        return pieces

    def user_view(self, user: int, size: int) -> memoryview:
        """The bytes at an address of the front-end's own, which are to be in one region.

        Raises:
            ProtocolError: they are not.
        """
        region = self._find_user(user)
        at = user - region.user
        if at + size > region.size:
            raise ProtocolError(f"{size:#x} bytes at {user:#x} of the front-end go beyond their memory region")
        return region.view[at : at + size]

    def user_ranges(self, user: int, size: int) -> list[GuestRange]:
        """The places in the guest's memory of the bytes at an address of the front-end's own.

        Raises:
            ProtocolError: not all of them are in memory regions.
        """
        ranges = []
        while size:
            region = self._find_user(user)
            at = user - region.user
            here = min(size, region.size - at)
            ranges.append((region.guest + at, here))
            user, size = user + here, size - here
        return ranges

    def _find(self, guest: int) -> MappedRegion:
        index = bisect_right(self._starts, guest) - 1
        if index < 0 or guest >= self._regions[index].end:
            raise ProtocolError(f"{guest:#x} is in no memory region")
        return self._regions[index]

    def _find_user(self, user: int) -> MappedRegion:
        for region in self._regions:
            if region.user <= user < region.user + region.size:
                return region
        raise ProtocolError(f"{user:#x} of the front-end is in no memory region")

    def _have(self, regions: Iterable[MappedRegion]) -> None:
        self._regions = sorted(regions, key=lambda region: region.guest)
        self._starts = [region.guest for region in self._regions]
        self._watched = [region for region in self._regions if region.can_shrink]
        self.can_shrink = bool(self._watched)
        self.recent = self._before = NOWHERE
        self.generation += 1

    @staticmethod
    def _check_apart(regions: Iterable[MappedRegion]) -> None:
        """In guest addresses; with GPA_ADDRESSES all regions may have the same address in the front-end, 0."""
        ordered = sorted(regions, key=lambda region: region.guest)
        for one, next_ in pairwise(ordered):
            if one.end > next_.guest:
                raise ProtocolError(f"memory regions at {one.guest:#x} and {next_.guest:#x} overlap")


def _close(regions: Iterable[MappedRegion]) -> None:
    for region in regions:
        region.close()
