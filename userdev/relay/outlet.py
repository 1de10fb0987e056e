"""What goes out to one peer, without ever waiting for it."""

from __future__ import annotations

import errno
import socket
from collections import deque
from collections.abc import Callable, Sequence

from userdev.descriptors import duplicates
from userdev.transport import MAX_FDS_PER_SEND, Stream, close_all

_REFUSED = frozenset({errno.EINVAL, errno.ETOOMANYREFS})
"""What the kernel says of descriptors that it does not pass on, though the peer is there (unix(7))."""


class Outlet:
    """The sending half of one peer's connection: never blocks, and keeps what the peer does not take yet.

    It is bounded by its users, who stop reading while `waiting`, or until `when_taken`. Descriptors passed to `send`
    stay the caller's.
    """

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self._queue: deque[tuple[memoryview, list[int], Callable[[], None] | None]] = deque()
        self._ended = False
        self._broken = False

    @property
    def waiting(self) -> bool:
        """Whether there is something that the peer has not taken yet."""
        return bool(self._queue)

    @property
    def broken(self) -> bool:
        """Whether the peer no longer takes anything."""
        return self._broken

    def send(self, data: bytes | bytearray | memoryview, fds: Sequence[int] = ()) -> None:
        """Send `data`, and `fds` with its first byte, after everything that waits already.

        More descriptors than one send takes go with the bytes behind it, as they must have come.

        Raises:
            OSError: the kernel passes these descriptors to nobody, or they cannot be kept.
        """
        if fds and not self.stream.carries_fds:
            fds = ()
        while len(fds) > MAX_FDS_PER_SEND and len(data) > 1:
            self._send(data[:1], fds[:MAX_FDS_PER_SEND])
            data, fds = data[1:], fds[MAX_FDS_PER_SEND:]
        self._send(data, fds)

    def _send(self, data: bytes | bytearray | memoryview, fds: Sequence[int]) -> None:
        if self._queue:
            self._keep(data, fds)
            return
        try:
            sent = self.stream.try_send(data, fds)
        except BlockingIOError:
            self._keep(data, fds)
        except OSError as error:
            if fds and error.errno in _REFUSED:
                raise
            self._broken = True
        else:
            if sent < len(data):
                self._keep(memoryview(data)[sent:], ())

    def flush(self) -> None:
        """Send what waits, as far as the peer takes it.

        Raises:
            OSError: the kernel passes descriptors that wait to nobody.
        """
        while self._queue:
            data, fds, taken = self._queue[0]
            try:
                sent = self.stream.try_send(data, fds)
            except BlockingIOError:
                return
            except OSError as error:
                if fds and error.errno in _REFUSED:
                    raise
                self._broken = True
                self.clear()
                return
            close_all(fds)
            if sent == len(data):
                self._queue.popleft()
                if taken is not None:
                    taken()
            else:
                self._queue[0] = data[sent:], [], taken
        if self._ended:
            self.stream.shutdown(socket.SHUT_WR)

    def when_taken(self, taken: Callable[[], None]) -> None:
        """Call `taken` once the peer has the last of what waits, or never will; to be used while something does."""
        data, fds, _ = self._queue[-1]
        self._queue[-1] = data, fds, taken

    def end(self) -> None:
        """Tell the peer that nothing more comes, once everything that waits has been sent."""
        self._ended = True
        if not self._queue:
            self.stream.shutdown(socket.SHUT_WR)

    def clear(self) -> None:
        """Drop what waits, and close its descriptors."""
        dropped, self._queue = self._queue, deque()
        for _, fds, taken in dropped:
            close_all(fds)
            if taken is not None:
                taken()

    def _keep(self, data: bytes | bytearray | memoryview, fds: Sequence[int]) -> None:
        if not self._broken:
            self._queue.append((memoryview(bytes(data)), duplicates(fds), None))
