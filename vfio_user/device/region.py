"""Regions: what the client is told of them, and how an access of any shape meets the registers and memory inside.

An access of any width and alignment inside a region is defined:

- what lies in memory is memory;
- a register that it covers whole is read or written once, with its value;
- of a register that it covers in part, a read takes these bytes of the register's value, and a write reads the
  register, replaces these bytes and writes the value back (`merge=False` on the register: the rest is zero);
- bytes that nothing claims go to `PciDevice.unclaimed_read` and `unclaimed_write`, zero and ignored by default.

Pieces are served in ascending order. In a BAR declared `exact` registers answer only to accesses that are exactly
theirs; every other access goes to the two unclaimed hooks, except to memory.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from userdev.declare.returned import WrongReturn
from vfio_user.device.register import Cell
from vfio_user.pci import BAR_COUNT
from vfio_user.wire.constants import NO_FD, IoFdType

UnclaimedRead = Callable[[int, int, int], bytes]
UnclaimedWrite = Callable[[int, int, bytes], None]


@dataclass
class IoFd:
    """A descriptor that a client's hypervisor may use instead of messages (GET_REGION_IO_FDS).

    offset and size say which accesses it stands for; `fd` is the device's own, the session sends copies, None where
    there is none. datamatch and the rest as in the specification.
    """

    offset: int
    size: int
    fd: int | None
    type: int = IoFdType.IOEVENTFD
    flags: int = 0
    datamatch: int = 0
    shadow_fd: int | None = None
    shadow_offset: int = 0
    user_data: int = 0
    NO_FD = NO_FD


@dataclass
class RegionInfo:
    """A region as a client knows it; `flags` are RegionFlags without CAPS. Size 0: there is no such region."""

    index: int
    size: int = 0
    flags: int = 0
    fd: int | None = None
    """The file to map, the device's own: the session sends copies."""
    offset: int = 0
    """Where in `fd` the region starts."""
    sparse: tuple[tuple[int, int], ...] = ()
    """Areas (offset in the region, size) that may be mapped."""
    type: tuple[int, int] | None = None
    """(type, subtype) of a device-specific region."""
    io_fds: list[IoFd] = field(default_factory=list)


class Access(Protocol):
    """The target of accesses: a region, or a window of one. Offsets count from its start, and are in range."""

    def read(self, offset: int, count: int) -> bytes:
        """The `count` bytes at `offset`."""

    def write(self, offset: int, data: bytes) -> None:
        """Write all of `data` at `offset`."""


class RegisterAccess:
    """One register, reached by accesses that may cover a part of it only."""

    def __init__(self, cell: Cell) -> None:
        self._cell = cell
        self._width = cell.width

    def read(self, offset: int, count: int) -> bytes:
        """Read the register, and cut `count` bytes at `offset` out of its value."""
        return self._value()[offset : offset + count]

    def write(self, offset: int, data: bytes) -> None:
        """Write the register; bytes that `data` leaves out are read before, or 0 in one that does not merge."""
        if len(data) < self._width:
            rest = self._value() if self._cell.merge else bytes(self._width)
            data = rest[:offset] + data + rest[offset + len(data) :]
        self._cell.write(int.from_bytes(data, "little"))

    def _value(self) -> bytes:
        return self._cell.fit(self._cell.read()).to_bytes(self._width, "little")


class MemoryAccess:
    """Bytes; read-only if the view is, in which case writes are ignored."""

    def __init__(self, view: memoryview) -> None:
        self._view = view

    def read(self, offset: int, count: int) -> bytes:
        """A copy of the bytes."""
        return self._view[offset : offset + count].tobytes()

    def write(self, offset: int, data: bytes) -> None:
        """Write the bytes; nothing where the view is read-only."""
        if not self._view.readonly:
            self._view[offset : offset + len(data)] = data


class Window(NamedTuple):
    """A part of a region that something answers for."""

    start: int
    end: int
    access: Access


class Windows:
    """A region made of windows, with gaps between them."""

    def __init__(self, index: int, unclaimed_read: UnclaimedRead, unclaimed_write: UnclaimedWrite) -> None:
        self._index = index
        self._windows: list[Window] = []
        self._starts: list[int] = []
        self._claims: list[tuple[int, int, str]] = []
        self._unclaimed_read = unclaimed_read
        self._unclaimed_write = unclaimed_write

    @property
    def name(self) -> str:
        """The region as errors call it: "BAR 0", "region 9"."""
        return f"BAR {self._index}" if self._index < BAR_COUNT else f"region {self._index}"

    @property
    def end(self) -> int:
        """The first offset behind all windows; 0 without any."""
        return self._claims[-1][1] if self._claims else 0

    @property
    def last(self) -> str:
        """The name of what reaches furthest."""
        return self._claims[-1][2]

    def claim(self, start: int, size: int, name: str) -> None:
        """Keep a range for what is declared there.

        Raises:
            ValueError: something is there already; it has both names.
        """
        place = bisect_right(self._claims, (start, start, ""))
        end = start + size
        for other_start, other_end, other in self._claims[max(0, place - 1) : place + 1]:
            if other_start < end and start < other_end:
                raise ValueError(f"{other} and {name} overlap at {max(start, other_start):#x} of {self.name}")
        self._claims.insert(place, (start, end, name))

    def answer(self, start: int, size: int, access: Access) -> None:
        """Send accesses of a claimed range to `access`."""
        place = bisect_right(self._starts, start)
        self._windows.insert(place, Window(start, start + size, access))
        self._starts.insert(place, start)

    def read(self, offset: int, count: int) -> bytes:
        """Read each window that is covered; bytes in gaps are the author's (`unclaimed_read`).

        Raises:
            WrongReturn: the author's are not so many bytes.
        """
        return b"".join(
            access.read(inside, size) if access else self._unclaimed(inside, size)
            for access, inside, size in self._pieces(offset, count)
        )

    def write(self, offset: int, data: bytes) -> None:
        """Write each window that is covered; bytes in gaps go to the author (`unclaimed_write`)."""
        taken = 0
        for access, inside, size in self._pieces(offset, len(data)):
            piece = data[taken : taken + size]
            taken += size
            if access:
                access.write(inside, piece)
            else:
                self._unclaimed_write(self._index, inside, piece)

    def _unclaimed(self, offset: int, count: int) -> bytes:
        data = self._unclaimed_read(self._index, offset, count)
        try:
            size = memoryview(data).nbytes
        except TypeError:
            size = -1
        if size != count:
            raise WrongReturn(self._unclaimed_read, data, f"{count} bytes, those at {offset:#x} of {self.name}")
        return data

    def _pieces(self, offset: int, count: int) -> Iterator[tuple[Access | None, int, int]]:
        """Cut an access at the borders of the windows: (window or None, offset in the window or region, size)."""
        end = offset + count
        place = max(0, bisect_right(self._starts, offset) - 1)
        while offset < end:
            while place < len(self._windows) and self._windows[place].end <= offset:
                place += 1
            window = self._windows[place] if place < len(self._windows) else None
            if window is None or window.start >= end:
                yield None, offset, end - offset
                return
            if window.start > offset:
                yield None, offset, window.start - offset
                offset = window.start
            size = min(end, window.end) - offset
            yield window.access, offset - window.start, size
            offset += size
