"""One request of a driver: buffers to read from, then buffers to write to, wherever in guest memory they are."""

from __future__ import annotations

from typing import Final

from userdev.errors import ProtocolError
from vhost_user.memory.table import GuestRange


class BrokenRing(ProtocolError):
    """An entry of a ring cannot be right: that ring takes no requests any more until it is started again.

    Told to the front-end by the ring's err descriptor, and to people; nothing else breaks.
    """


_GIVEN_BACK: Final = (
    "a request is used that was given back when its handler returned: its memory is the driver's again; what takes"
    " longer is a function that the handler returns"
)


class Chain:
    """The buffers of one request, checked whole, as views of guest memory.

    `readable_views` and `writable_views` are for preadv and pwritev, which need no copy. `read` and `write` take the
    bytes one after another, over all borders. Views stay good for as long as the chain is there.
    """

    __slots__ = (
        "_read",
        "_write",
        "again",
        "done",
        "entry",
        "head",
        "length",
        "ranges",
        "readable_views",
        "room",
        "slots",
        "writable_views",
    )

    def __init__(
        self,
        head: int,
        slots: int,
        readable: list[memoryview],
        writable: list[memoryview],
        ranges: list[GuestRange],
        room: int,
    ) -> None:
        self.head = head
        """The number that the driver knows it by: its first descriptor, or in a packed ring its buffer id."""
        self.slots = slots
        """Descriptors of the ring that it takes; an indirect table is one."""
        self.readable_views = readable
        self.writable_views = writable
        self.room = room
        """Bytes of all writable buffers."""
        self.ranges = ranges
        """Where the guest has the writable buffers: what the dirty log is told."""
        self.entry = head
        """Where the in-flight region has it."""
        self.again = False
        """Whether a back-end that died had taken it before."""
        self.length = 0
        """Bytes written, as the driver is told."""
        self.done = False
        """Whether it was given back, perhaps before others that an in-order ring has to give back first."""
        self._read = (0, 0)
        self._write = (0, 0)

    def rewind(self) -> None:
        """Have nothing of it be read or written yet."""
        self._read = self._write = (0, 0)

    @property
    def readable(self) -> int:
        """Bytes that `read` still has."""
        return _rest(self.readable_views, self._read)

    @property
    def writable(self) -> int:
        """Bytes that `write` still has room for."""
        return _rest(self.writable_views, self._write)

    def read(self, count: int = -1) -> bytes:
        """The next `count` bytes of the readable buffers, or as many as there are; all of them by default.

        Raises:
            ValueError: the request was given back.
        """
        if self.done:
            raise ValueError(_GIVEN_BACK)
        index, at = self._read
        views = self.readable_views
        pieces = []
        while index < len(views) and count:
            view = views[index][at : None if count < 0 else at + count]
            pieces.append(bytes(view))
            count = count if count < 0 else count - len(view)
            at += len(view)
            if at == len(views[index]):
                index, at = index + 1, 0
        self._read = index, at
        return b"".join(pieces)

    def write(self, data: bytes | bytearray | memoryview) -> int:
        """Put bytes into the writable buffers, behind those written before; return how many there was room for.

        Raises:
            ValueError: the request was given back.
        """
        if self.done:
            raise ValueError(_GIVEN_BACK)
        index, at = self._write
        views, rest = self.writable_views, memoryview(data).cast("B")
        size = len(rest)
        while index < len(views) and rest:
            room = views[index][at : at + len(rest)]
            count = len(room)
            room[:] = rest[:count]
            rest = rest[count:]
            at += count
            if at == len(views[index]):
                index, at = index + 1, 0
        self._write = index, at
        return size - len(rest)


def _rest(views: list[memoryview], position: tuple[int, int]) -> int:
    index, at = position
    return sum(map(len, views[index:])) - at
