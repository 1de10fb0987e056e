"""One direction of a session: what one side sends is taken apart, and sent on to the other.

The usual message costs one `recvmsg` and one `send`: it goes on as it came, before anyone looks at it. Only where
something has to see a message before it goes on (a fault scenario, a hold, an answer to a request of our own) are
messages handed over first; `Pump.intercept` says so.

Towards the client a message goes on when all of it is here, and what a server leaves unfinished does not: a client may
not survive a reply that stops half-way, and a server may be replaced before the rest comes. Towards the server a
message goes on as the client split it.

Descriptors leave with the message they came with, in a `sendmsg` of its own, as the rule of `userdev.transport.framing`
wants it. What cannot be framed is passed on as bytes: the peer that sends it is what is being studied.
"""

from __future__ import annotations

import errno as errnos
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from userdev.relay.direction import Direction
from userdev.relay.outlet import Outlet
from userdev.transport import BadFrame, DescriptorsLost, Framed, Framer, Stream, close_all

MOST_AT_ONCE = 16
"""Receives from a source before others have their turn: one that is never empty would leave them none."""


class Relayed(Framed, Protocol):
    """A message, as far as a pump has to know it."""

    fds: list[int]

    def encode(self) -> bytes:
        """Its bytes, as they came."""


M = TypeVar("M", bound=Relayed)
H = TypeVar("H")
MC = TypeVar("MC", bound=Relayed, contravariant=True)
HC = TypeVar("HC", contravariant=True)


@dataclass(frozen=True)
class Codec(Generic[M, H]):
    """A protocol, as far as a pump has to know it: how to take its messages out of bytes."""

    kind: type[M]
    """Its messages, one by one, with their descriptors."""
    split: Callable[[memoryview, int, int], tuple[list[tuple[H, memoryview]], int]]
    """Many at once: of each complete message between two places what its header says, and its bytes; up to a header
    that cannot be right. And where those messages end."""
    max_message: int
    """Bytes of the longest that is taken for one."""
    max_fds: int = 1024
    """Descriptors that come with one, at most."""


class PumpOwner(Protocol[MC, HC]):
    """The owner of a pump, which it tells of what passes."""

    def overfull(self, direction: Direction) -> bool:
        """Whether so much is kept that no more is to be read."""

    def passed(self, direction: Direction, header: HC, data: memoryview) -> None:
        """A message without descriptors has been sent on unchanged: its header, and all its bytes.

        The bytes are the pump's, and good until this returns.
        """

    def observe(self, direction: Direction, message: MC) -> None:
        """`message` has been sent on unchanged; its descriptors are closed when this returns."""

    def deliver(self, direction: Direction, message: MC) -> None:
        """`message` has come and gone nowhere: it, and its descriptors, are the owner's now."""

    def unframed(self, direction: Direction, data: bytes, why: str) -> None:
        """These bytes are no message, for the reason `why`; they have been sent on as they are."""

    def lost(self, direction: Direction, header: MC) -> None:
        """A message has gone nowhere, as the kernel has dropped its descriptors: this is what is left of it."""

    def ended(self, direction: Direction) -> None:
        """Hear that nothing more comes from this direction's source."""


class Pump(Generic[M, H]):
    """Moves one direction's bytes. Sockets are non-blocking; back-pressure is a source that is not read."""

    def __init__(
        self, codec: Codec[M, H], direction: Direction, source: Stream, outlet: Outlet, owner: PumpOwner[M, H]
    ) -> None:
        self.direction = direction
        self.source = source
        self.outlet = outlet
        self.intercept = False
        """Whether messages are handed over (`deliver`) rather than sent on and shown (`passed`, `observe`)."""
        self.ended = False
        self._codec = codec
        self._framer: Framer[M] | None = self._new_framer()
        self._whole = direction is Direction.TO_CLIENT
        self._ahead = 0  # bytes of the unfinished message that have been sent on already
        self._owner = owner

    def ready(self) -> None:
        """The source can be read: take what is there and send it on."""
        framer = self._framer
        if framer is None:
            self._pass_bytes()
            return
        for _ in range(MOST_AT_ONCE):
            if self.ended:
                return
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
            if self._owner.overfull(self.direction):
                return

    def close(self) -> None:
        """Forget what has not come whole, and close its descriptors."""
        if self._framer is not None:
            self._framer.close()

    def source_replaced(self, source: Stream) -> None:
        """Go on with another source: what the old one left unfinished is gone."""
        self.close()
        self.source = source
        self._framer = self._new_framer()
        self._ahead = 0
        self.ended = False

    def sink_replaced(self, outlet: Outlet) -> None:
        """Go on with another sink: it gets the unfinished message from its first byte."""
        self.outlet = outlet
        self._ahead = 0

    def _new_framer(self) -> Framer[M]:
        return Framer(self._codec.kind, max_message=self._codec.max_message, max_fds=self._codec.max_fds)

    def _take(self, framer: Framer[M], count: int, fds: list[int]) -> None:
        if count == 0:
            self._end(framer)
            return
        framer.received(count, fds)
        if self.intercept or fds or framer.has_fds:
            self._take_each(framer)
        else:
            self._pass_on(framer)

    def _failed(self, framer: Framer[M], error: OSError) -> None:
        """A receive has failed: the source is gone, or descriptors of its are lost, and with them their message."""
        if isinstance(error, DescriptorsLost):
            framer.lost(error.count)
            self._take_each(framer)
        else:
            self._end(framer)

    def _pass_on(self, framer: Framer[M]) -> None:
        """The usual way: send on all messages that are complete, then tell the owner of each."""
        view, start, end = memoryview(framer.buffer), framer.start, framer.end
        messages, stop = self._codec.split(view, start, end)
        first = start + self._ahead
        if stop > first:
            self.outlet.send(view[first:stop])
            if self.outlet.broken:
                self._take_each(framer)  # none of them has gone on: each is shown as one that may not
                return
            self._ahead = 0
        passed, direction = self._owner.passed, self.direction
        for header, data in messages:
            passed(direction, header, data)
        framer.start = stop
        if end - stop >= self._codec.kind.header_size:
            self._refuse(framer)

    def _refuse(self, framer: Framer[M]) -> None:
        """Where the next header cannot be right, the framer says what is wrong, and it is passed on as bytes."""
        while self._framer is framer and (message := self._next(framer)) is not None:
            self.outlet.send(message.encode())
            self._owner.observe(self.direction, message)

    def _take_each(self, framer: Framer[M]) -> None:
        """The slow way: message by message, each with its descriptors."""
        while self._framer is framer and (message := self._next(framer)) is not None:
            ahead, self._ahead = self._ahead, 0
            if self.intercept and not ahead:
                self._owner.deliver(self.direction, message)
                continue
            try:
                self.outlet.send(message.encode()[ahead:], message.fds)
                self._owner.observe(self.direction, message)
            finally:
                close_all(message.fds)

    def _next(self, framer: Framer[M]) -> M | None:
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

    def _pass_unfinished(self, framer: Framer[M]) -> None:
        """Pass on what there is of a request, as the sender split it: nothing more is there for now."""
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
        try:
            self.outlet.send(room[:count], fds)
        finally:
            close_all(fds)
        self._owner.unframed(self.direction, bytes(room[:count]), "")

    def _end(self, framer: Framer[M] | None) -> None:
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
