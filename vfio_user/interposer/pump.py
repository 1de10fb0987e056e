"""One direction of a session: what one side sends is taken apart, and sent on to the other.

The usual message costs one `recvmsg` and one `send`: it goes on as it came, before anyone looks at it. Only where
something has to see a message before it goes on (a fault scenario, a hold, an answer to a request of our own) are
messages handed over first; `Pump.intercept` says so.

Towards the client a message goes on when all of it is here, and what a server leaves unfinished does not: QEMU does not
survive every reply that stops half-way (known issue reply-crash), and a server may be replaced before the rest comes.
Towards the server a message goes on as the client split it.

Descriptors leave with the message they came with, in a `sendmsg` of its own, as the rule of `userdev.transport.framing`
wants it. What cannot be framed is passed on as bytes: the peer that sends it is what is being studied.
"""

from __future__ import annotations

import array
import errno as errnos
import socket
from collections import deque
from collections.abc import Sequence
from typing import Protocol

from userdev.transport import BadFrame, DescriptorsLost, Framer, Stream, close_all
from vfio_user.interposer.descriptors import duplicates
from vfio_user.interposer.direction import Direction
from vfio_user.wire import HEADER, HEADER_SIZE, Message

MAX_FRAME = (64 << 20) + (64 << 10)
"""Longest message that is taken for one: QEMU accepts up to 64 MiB of data from a server's VERSION."""

LOOKS = 100
"""Times that `Pump.look` looks, about 1 us each."""


class Outlet:
    """The sending half of one peer's connection: never blocks, and keeps what the peer does not take yet.

    It is bounded by its users, who stop reading while `waiting`. Descriptors passed to `send` stay the caller's.
    """

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self._queue: deque[tuple[memoryview, list[int]]] = deque()
        self._ended = False
        self._broken = False

    @property
    def waiting(self) -> bool:
        return bool(self._queue)

    @property
    def broken(self) -> bool:
        """Whether the peer no longer takes anything."""
        return self._broken

    def send(self, data: bytes | bytearray | memoryview, fds: Sequence[int] = ()) -> None:
        """Send `data`, and `fds` with its first byte, after everything that waits already."""
        if self._queue:
            self._keep(data, fds)
            return
        try:
            sent = _send(self.stream, data, fds)
        except BlockingIOError:
            self._keep(data, fds)
        except OSError:
            self._broken = True
        else:
            if sent < len(data):
                self._keep(memoryview(data)[sent:], ())

    def flush(self) -> None:
        """Send what waits, as far as the peer takes it."""
        while self._queue:
            data, fds = self._queue[0]
            try:
                sent = _send(self.stream, data, fds)
            except BlockingIOError:
                return
            except OSError:
                self._broken = True
                self.clear()
                return
            close_all(fds)
            if sent == len(data):
                self._queue.popleft()
            else:
                self._queue[0] = data[sent:], []
        if self._ended:
            self.stream.shutdown(socket.SHUT_WR)

    def end(self) -> None:
        """Tell the peer that nothing more comes, once everything that waits has been sent."""
        self._ended = True
        if not self._queue:
            self.stream.shutdown(socket.SHUT_WR)

    def clear(self) -> None:
        for _, fds in self._queue:
            close_all(fds)
        self._queue.clear()

    def _keep(self, data: bytes | bytearray | memoryview, fds: Sequence[int]) -> None:
        if not self._broken:
            self._queue.append((memoryview(bytes(data)), duplicates(fds)))


def _send(stream: Stream, data: bytes | bytearray | memoryview, fds: Sequence[int]) -> int:
    if not fds or not stream.carries_fds:
        return stream.socket.send(data)
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
    return stream.socket.sendmsg([data], rights)


class Owner(Protocol):
    """What a pump tells its session."""

    def passed(self, direction: Direction, id: int, command: int, flags: int, errno: int, data: memoryview) -> None:
        """A message without descriptors has been sent on unchanged: its header, and all its bytes.

        The bytes are the pump's, and good until this returns.
        """

    def observe(self, direction: Direction, message: Message) -> None:
        """`message` has been sent on unchanged; its descriptors are closed when this returns."""

    def deliver(self, direction: Direction, message: Message) -> None:
        """`message` has come and gone nowhere: it, and its descriptors, are the session's now."""

    def unframed(self, direction: Direction, data: bytes, why: str) -> None:
        """These bytes are no message, for the reason `why`; they have been sent on as they are."""

    def lost(self, direction: Direction, header: Message) -> None:
        """A message has gone nowhere, as the kernel has dropped its descriptors: this is what is left of it."""

    def ended(self, direction: Direction) -> None:
        """Nothing more comes from this direction's source."""


class Pump:
    """Moves one direction's bytes. Sockets are non-blocking; back-pressure is a source that is not read."""

    def __init__(self, direction: Direction, source: Stream, outlet: Outlet, owner: Owner) -> None:
        self.direction = direction
        self.source = source
        self.outlet = outlet
        self.intercept = False
        """Whether messages are handed over (`deliver`) rather than sent on and shown (`passed`, `observe`)."""
        self.ended = False
        self._framer: Framer[Message] | None = Framer(Message, max_message=MAX_FRAME, max_fds=1024)
        self._whole = direction is Direction.TO_CLIENT
        self._ahead = 0  # bytes of the unfinished message that have been sent on already
        self._owner = owner

    def ready(self) -> None:
        """The source can be read: take what is there and send it on."""
        framer = self._framer
        if framer is None:
            self._pass_bytes()
            return
        while not self.ended:
            try:
                received = self.source.receive(framer.room())
            except BlockingIOError:
                self._pass_unfinished(framer)
                return
            except OSError as error:
                self._failed(framer, error)
            else:
                self._take(framer, *received)
            # A message that came only in part may have its rest here already; then it is not split by us.
            if framer.start == framer.end or self._framer is not framer or self.outlet.waiting:
                return

    def look(self) -> bool:
        """Take what the source sends within a moment; False where that is nothing."""
        framer = self._framer
        if framer is None or framer.start != framer.end:
            return False
        try:
            received = self.source.poll(framer.room(), LOOKS)
        except OSError as error:
            self._failed(framer, error)
        else:
            if received is None:
                return False
            self._take(framer, *received)
        if framer.start != framer.end and self._framer is framer and not self.outlet.waiting:
            self.ready()
        return True

    def close(self) -> None:
        if self._framer is not None:
            self._framer.close()

    def source_replaced(self, source: Stream) -> None:
        """Go on with another source: what the old one left unfinished is gone."""
        self.close()
        self.source = source
        self._framer = Framer(Message, max_message=MAX_FRAME, max_fds=1024)
        self._ahead = 0
        self.ended = False

    def sink_replaced(self, outlet: Outlet) -> None:
        """Go on with another sink: it gets the unfinished message from its first byte."""
        self.outlet = outlet
        self._ahead = 0

    def _take(self, framer: Framer[Message], count: int, fds: list[int]) -> None:
        if count == 0:
            self._end(framer)
            return
        framer.received(count, fds)
        if self.intercept or fds or framer.has_fds:
            self._take_each(framer)
        else:
            self._pass_on(framer)

    def _failed(self, framer: Framer[Message], error: OSError) -> None:
        """A receive has failed: the source is gone, or descriptors of its are lost, and with them their message."""
        if isinstance(error, DescriptorsLost):
            framer.lost(error.count)
            self._take_each(framer)
        else:
            self._end(framer)

    def _pass_on(self, framer: Framer[Message]) -> None:
        """The usual way: send on all messages that are complete, then tell the session of each."""
        view, start, end = memoryview(framer.buffer), framer.start, framer.end
        headers, stop = _headers(view, start, end)
        first = start + self._ahead
        if stop > first:
            self.outlet.send(view[first:stop])
            self._ahead = 0
        passed, direction = self._owner.passed, self.direction
        at = start
        for id, command, size, flags, errno in headers:
            after = at + size
            passed(direction, id, command, flags, errno, view[at:after])
            at = after
        framer.start = stop
        if end - stop >= HEADER_SIZE:
            self._refuse(framer)

    def _refuse(self, framer: Framer[Message]) -> None:
        """Where the next header cannot be right, the framer says what is wrong, and it is passed on as bytes."""
        while self._framer is framer and (message := self._next(framer)) is not None:
            self.outlet.send(message.encode())
            self._owner.observe(self.direction, message)

    def _take_each(self, framer: Framer[Message]) -> None:
        """The slow way: message by message, each with its descriptors."""
        while self._framer is framer and (message := self._next(framer)) is not None:
            ahead, self._ahead = self._ahead, 0
            if self.intercept and not ahead:
                self._owner.deliver(self.direction, message)
                continue
            self.outlet.send(message.encode()[ahead:], message.fds)
            self._owner.observe(self.direction, message)
            close_all(message.fds)

    def _next(self, framer: Framer[Message]) -> Message | None:
        """The next complete message; what is none goes on as bytes."""
        while True:
            first = framer.start
            try:
                return framer.next()
            except BadFrame as bad:
                if bad.errno == errnos.EMFILE and bad.message is not None:
                    if self._ahead:  # the other side has its beginning, and would take it for one without descriptors
                        self._end(framer)
                        return None
                    self._owner.lost(self.direction, bad.message)
                    continue
                # Behind a header that is too short, messages go on (as libvfio-user has it); else all is bytes.
                data = bytes(framer.buffer[first : framer.end if bad.fatal else framer.start])
                self.outlet.send(data[self._ahead :])
                self._ahead = max(0, self._ahead - len(data))
                self._owner.unframed(self.direction, data, str(bad))
                if bad.fatal:
                    framer.close()
                    self._framer = None
                    return None

    def _pass_unfinished(self, framer: Framer[Message]) -> None:
        """Nothing more is there for now: what there is of a request goes on, as the sender split it."""
        if self.intercept or self._whole or framer.has_fds:
            return
        first = framer.start + self._ahead
        if first < framer.end:
            self.outlet.send(memoryview(framer.buffer)[first : framer.end])
            self._ahead = framer.end - framer.start

    def _pass_bytes(self) -> None:
        room = memoryview(bytearray(64 << 10))
        try:
            count, fds = self.source.receive(room)
        except BlockingIOError:
            return
        except OSError:
            count, fds = 0, []
        if count == 0:
            self._end(None)
            return
        self.outlet.send(room[:count], fds)
        close_all(fds)
        self._owner.unframed(self.direction, bytes(room[:count]), "")

    def _end(self, framer: Framer[Message] | None) -> None:
        self.ended = True
        if framer is not None:
            rest = bytes(framer.buffer[framer.start : framer.end])
            if not self._whole and rest[self._ahead :]:
                self.outlet.send(rest[self._ahead :])
            if rest:
                self._owner.unframed(self.direction, rest, "the stream ends within a message")
            framer.close()
            self._ahead = 0
        self._owner.ended(self.direction)


def _headers(view: memoryview, at: int, end: int) -> tuple[list[tuple[int, int, int, int, int]], int]:
    """The headers of the complete messages between `at` and `end`, up to one that cannot be right; where they stop."""
    headers = []
    while end - at >= HEADER_SIZE:
        header = HEADER.unpack_from(view, at)
        size: int = header[2]
        if size > end - at or size < HEADER_SIZE:
            break
        headers.append(header)
        at += size
    return headers, at
