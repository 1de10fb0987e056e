"""Where messages begin and end in a stream of bytes, and which file descriptors belong to which message.

The kernel gives descriptors with the bytes of the `sendmsg` they were sent with, and ends a receive behind those
bytes (net/unix/af_unix.c, `unix_stream_read_generic`). A receive may still begin with bytes of earlier messages. So
descriptors belong to the message that covers the *last* byte of the receive they came with: for a sender that uses
one `sendmsg` per message that is the message they were sent with, and for one that splits a message it is the
message in progress.
"""

from __future__ import annotations

import errno
import os
from collections import deque
from collections.abc import Iterable
from typing import ClassVar, Generic, Protocol, Self, TypeVar

from userdev.errors import ProtocolError

MAX_FDS = 256
"""Most descriptors one message may carry; SCM_RIGHTS itself allows 253 per send."""

RECEIVE = 64 << 10
"""Room offered to each receive; 64 posted writes of 8 bytes need 2.5 KiB."""


class Framed(Protocol):
    """A protocol's messages as a framer sees them: a header of fixed size that tells how long the whole is."""

    header_size: ClassVar[int]
    max_size: ClassVar[int]
    """The longest message that is taken where its framer is told nothing else."""

    @classmethod
    def size_at(cls, buffer: bytearray, at: int) -> int:
        """Bytes of the message that begins at `at`, its header included, as that says: it may be wrong."""

    @classmethod
    def decode(cls, buffer: bytearray, at: int, payload: bytes, fds: list[int]) -> Self:
        """The message whose header is at `at`, of what follows it and of the descriptors that belong to it."""


M = TypeVar("M", bound=Framed)


class Framer(Generic[M]):
    """Cuts one direction of one connection into messages.

    Bytes are received into `room()` and announced by `received()`; `messages()` takes the complete ones out. Memory is
    bounded by `max_message`, descriptors by `max_fds` per message. A reader in a hurry may look at `buffer` from
    `start` to `end` itself and move `start` (a server of registers does), as long as `has_fds` is false.
    """

    __slots__ = ("_fds", "_kind", "_received", "_view", "buffer", "end", "max_fds", "max_message", "start")

    def __init__(self, kind: type[M], *, max_message: int | None = None, max_fds: int = MAX_FDS) -> None:
        self._kind = kind
        self.max_message = max_message or kind.max_size
        self.max_fds = max_fds
        self.buffer = bytearray(RECEIVE)
        self.start = 0
        self.end = 0
        self._view = memoryview(self.buffer)
        self._received = 0  # bytes since the connection began: the clock that descriptors are dated by
        self._fds: deque[tuple[int, list[int] | None]] = deque()
        """(count of bytes received with and before them, descriptors; None: descriptors that were lost)"""

    def room(self) -> memoryview:
        """The buffer for the next receive: at least one byte."""
        if self.start == self.end:
            self.start = self.end = 0
            if len(self.buffer) > RECEIVE:
                self._resize(RECEIVE)
        elif self.end == len(self.buffer) or self._wanted() > len(self.buffer) - self.start:
            self._make_room()
        return self._view[self.end :]

    def received(self, count: int, fds: Iterable[int] = ()) -> None:
        """Announce that `count` bytes are now in `room()`, and that `fds` came with them."""
        self.end += count
        self._received += count
        if fds and (fds := list(fds)):
            self._fds.append((self._received, fds))

    def lost(self, count: int) -> None:
        """Take bytes, as `received`, whose descriptors the kernel has dropped: their message will be an error."""
        self.end += count
        self._received += count
        self._fds.append((self._received, None))

    def feed(self, data: bytes, fds: Iterable[int] = ()) -> None:
        """Copy `data` in, as one receive; for tests and for transports that hand out bytes. At most `len(room())`."""
        room = self.room()
        while len(data) > len(room):
            room[:] = data[: len(room)]
            data = data[len(room) :]
            self.received(len(room))
            room = self.room()
        room[: len(data)] = data
        self.received(len(data), fds)

    @property
    def has_fds(self) -> bool:
        """Whether descriptors wait for their message: a fast path that ignores them must stand back."""
        return bool(self._fds)

    @property
    def pending(self) -> int:
        """Bytes received and not yet taken."""
        return self.end - self.start

    @property
    def taken(self) -> int:
        """Bytes taken out since the connection began."""
        return self._received - self.pending

    def next(self) -> M | None:
        """Take the next complete message out, or None when more bytes are needed.

        Raises:
            ProtocolError: the header cannot be right. The message at fault is in the error's `message`, without
                payload, so that a server can answer. With a size below the header's only that is consumed and the
                stream goes on behind it, as libvfio-user does; a message that has lost its descriptors is left out
                too, with EMFILE; with a size over `max_message`, or too many descriptors, the error is fatal.
        """
        kind, start = self._kind, self.start
        available = self.end - start
        if available < kind.header_size:
            if self._fds:
                self._check_fds()
            return None
        size = kind.size_at(self.buffer, start)
        first = start + kind.header_size
        if size < kind.header_size:
            self.start = first
            self._close(self._take_fds() or ())
            raise self._bad(start, f"message size {size} is below the header's {kind.header_size} bytes")
        if size > self.max_message:
            raise self._bad(start, f"message size {size} is over the limit of {self.max_message} bytes", fatal=True)
        if available < size:
            self._check_fds()
            return None
        self.start = start + size
        payload = bytes(self._view[first : self.start])
        fds = self._take_fds() if self._fds else []
        if fds is None:
            raise self._bad(start, "file descriptors are lost: this process has too many", errno=errno.EMFILE)
        if len(fds) > self.max_fds:
            self._close(fds)
            raise self._bad(start, f"{len(fds)} file descriptors with one message", fatal=True)
        return kind.decode(self.buffer, start, payload, fds)

    def messages(self) -> Iterable[M]:
        """The complete messages received so far; see `next`."""
        while (message := self.next()) is not None:
            yield message

    def close(self) -> None:
        """Close the descriptors of messages that will never be complete. Their bytes may be somebody's yet."""
        for _, fds in self._fds:
            self._close(fds or ())
        self._fds.clear()

    def _take_fds(self) -> list[int] | None:
        """The descriptors of the message that ends at `start`: those whose receive ended within it.

        None where some of them are lost; the rest is closed.
        """
        consumed = self.taken
        taken: list[list[int] | None] = []
        while self._fds and self._fds[0][0] <= consumed:
            taken.append(self._fds.popleft()[1])
        fds = [fd for some in taken for fd in some or ()]
        if None not in taken:
            return fds
        self._close(fds)
        return None

    def _check_fds(self) -> None:
        """A message that trickles in with descriptors on every byte must not hold thousands of them."""
        if sum(len(fds or ()) for _, fds in self._fds) > self.max_fds:
            self.close()
            what = "too many file descriptors with an unfinished message"
            raise BadFrame[M](what, None, fatal=True)

    def _bad(self, at: int, what: str, *, fatal: bool = False, errno: int = errno.EINVAL) -> BadFrame[M]:
        message = self._kind.decode(self.buffer, at, b"", [])
        return BadFrame(f"{message}: {what}", message, fatal=fatal, errno=errno)

    def _wanted(self) -> int:
        """Size of the message at `start` where its header is known, within the limit."""
        if self.end - self.start < self._kind.header_size:
            return self._kind.header_size
        return min(self._kind.size_at(self.buffer, self.start), self.max_message)

    def _make_room(self) -> None:
        """Move the unfinished message to the front, in a larger buffer where it needs one."""
        rest = bytes(self._view[self.start : self.end])
        wanted = max(RECEIVE, self._wanted() + 1, len(rest) + 1)
        if wanted > len(self.buffer):
            self._resize(wanted)
        self._view[: len(rest)] = rest
        self.start, self.end = 0, len(rest)

    def _resize(self, size: int) -> None:
        self.buffer = bytearray(size)
        self._view = memoryview(self.buffer)

    @staticmethod
    def _close(fds: Iterable[int]) -> None:
        for fd in fds:
            os.close(fd)


class BadFrame(ProtocolError, Generic[M]):
    """A header that cannot be right; `message` is what it says, without payload, so that a server can answer.

    None where no header is whole.
    """

    def __init__(self, what: str, message: M | None, *, fatal: bool = False, errno: int = errno.EINVAL) -> None:
        super().__init__(what, errno, fatal=fatal)
        self.message = message
