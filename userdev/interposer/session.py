"""One connection of a client's to a server, seen from between them: relayed, recorded, shown to stages.

A protocol's session is a `BaseSession` that knows what its messages mean. What is to happen to messages on the way is
not in here: faults and captures are `Stage`s, asked only while there are any.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Generic

from userdev.interposer.holding import Holding
from userdev.interposer.passing import M, Passing, Stage
from userdev.relay import Backlog, Codec, Direction, Loop, Relay
from userdev.relay.pump import H
from userdev.trace import TraceWriter, View
from userdev.transport import Stream, close_all

BOTH = View.RECEIVED | View.SENT


@dataclass
class Counters:
    """Counts of a session so far; `status` shows them."""

    messages: list[int] = field(default_factory=lambda: [0, 0])
    """By direction."""
    bytes: list[int] = field(default_factory=lambda: [0, 0])
    unframed: int = 0
    held: int = 0
    faults: int = 0


class BaseSession(ABC, Generic[M, H]):
    """Forwards until either side is gone. `on_end` is called once, when nothing is left to do."""

    def __init__(
        self,
        codec: Codec[M, H],
        loop: Loop,
        client: Stream,
        server: Stream,
        *,
        trace: TraceWriter | None = None,
        channel: int = 0,
        on_end: Callable[[], None] = lambda: None,
    ) -> None:
        """Prepare to forward; `channel` is the connection's number in the trace."""
        self.loop = loop
        self.trace = trace
        self.counters = Counters()
        self.closed = False
        self.backlog = Backlog(self._backlog_changed, self._backlog_emptied)
        self._half_closed: set[Direction] = set()
        """Directions of which the source has ended, and the other side is not told yet."""
        self.holding: Holding[M] = Holding(self.backlog, self._hand_to_server, self.choose_path)
        """The client's requests that are kept back."""
        self._channel = channel
        self._stages: dict[Direction, list[Stage[M]]] = {direction: [] for direction in Direction}
        self._on_end = on_end
        self._relay: Relay[M, H] = Relay(codec, loop, client, server, self)

    # what a protocol says

    @property
    @abstractmethod
    def state(self) -> str:
        """Where the session is, as scenarios say it."""

    @abstractmethod
    def passed(self, direction: Direction, header: H, data: memoryview) -> None:
        """Learn of a message that the relay has forwarded: `data` is its bytes, in a buffer that is used again."""

    @abstractmethod
    def observe(self, direction: Direction, message: M) -> None:
        """Learn of a message that went on whole, with its descriptors."""

    @abstractmethod
    def deliver(self, direction: Direction, message: M) -> None:
        """Send a message on that has come while messages are looked at."""

    @abstractmethod
    def lost(self, direction: Direction, header: M) -> None:
        """Answer for a message whose descriptors are lost: without them it would say something else."""

    @abstractmethod
    def request_sent(self, passing: Passing[M]) -> None:
        """A request has been sent on: its reply will want it."""

    def wants_all(self, direction: Direction) -> bool:
        """Whether messages of a direction have to be looked at before they go on, stages and holds aside."""
        return False

    def survives(self, direction: Direction) -> bool:
        """Whether the session is kept though nothing more comes from this direction's source."""
        return False

    def ending(self) -> None:
        """The session ends, and its peers are still there."""

    def ended_for_good(self) -> None:
        """The session has ended: let go of what was kept."""

    # the life of a session

    def start(self) -> None:
        """Forward from now on."""
        self._relay.start()
        self.note("connected")

    def close(self) -> None:
        """End the session now: both peers see their connection closed."""
        if self.closed:
            return
        self.closed = True
        self.ending()
        for stage in dict.fromkeys(stage for stages in self._stages.values() for stage in stages):
            stage.closed()
        self._relay.close()
        self.holding.close()
        self.ended_for_good()
        self.note("disconnected")
        self._on_end()

    def close_side(self, name: str, how: int) -> None:
        """Shut the client's or the server's connection down, as `socket.shutdown` has it; the rest follows as if the
        peer had.
        """
        peer = self._relay.client if name == "client" else self._relay.server
        peer.stream.shutdown(how)

    # what else takes part

    def add_stage(self, stage: Stage[M], *directions: Direction) -> None:
        """Let `stage` see the messages of these directions before they go on, behind the stages that do already."""
        for direction in directions:
            self._stages[direction].append(stage)
        self.choose_path()

    def remove_stage(self, stage: Stage[M]) -> None:
        """Let it see no more."""
        for stages in self._stages.values():
            if stage in stages:
                stages.remove(stage)
        self.choose_path()

    def choose_path(self) -> None:
        """Have messages handed over only while something wants to see them first."""
        for direction, stages in self._stages.items():
            wanted = self.holding.active or bool(stages) or self.wants_all(direction)
            self._relay.source(direction).pump.intercept = wanted
        self._relay.update()

    def note(self, event: str, **details: object) -> None:
        """Record in the trace that something has happened."""
        if self.trace is not None:
            self.trace.note(event, **details)

    # sending

    def send(self, direction: Direction, message: M, *, pair: int = 0) -> int:
        """Send a message of ours; returns the number of its record. `pair` is that of the request it answers.

        Whoever takes no answers of ours is at some point no longer read.
        """
        peer = self._relay.towards(direction)
        peer.outlet.send(message.encode(), message.fds)
        if message.is_reply and peer.outlet.waiting:
            asker = direction.opposite
            self.backlog.keep(asker, message.size)
            peer.outlet.when_taken(partial(self.backlog.let_go, asker, message.size))
        self._relay.update_peer(peer)
        return self.record(direction, View.SENT, message, pair)

    def send_on(self, passing: Passing[M]) -> None:
        """Send a message that a stage or a watcher had taken, as if it had come just now. Its descriptors stay the
        caller's.
        """
        self._send_on(passing, View.SENT)
        self._relay.update_peer(self._relay.towards(passing.direction))

    def send_bytes(self, direction: Direction, data: bytes, fds: list[int]) -> None:
        """Send bytes that need not be a message."""
        peer = self._relay.towards(direction)
        peer.outlet.send(data, fds)
        if self.trace is not None and (view := self._seen(direction, View.SENT)):
            self.trace.raw(direction, data, view, self._channel)
        self._relay.update_peer(peer)

    @abstractmethod
    def expect_reply(self, passing: Passing[M]) -> None:
        """A request has been sent as bytes: its reply will come."""

    # what the relay asks and tells

    def overfull(self, direction: Direction) -> bool:
        """Whether so much is kept that no more is to be read."""
        return self.backlog.full(direction)

    def unframed(self, direction: Direction, data: bytes, why: str) -> None:
        """Note bytes that are no message and go on as they are; `why` is given with the first of them."""
        self.counters.unframed += len(data)
        if self.trace is not None:
            if why:
                self.trace.note("unframed", direction=direction.label, why=why)
            self.trace.raw(direction, data, self._seen(direction, BOTH), self._channel)

    def ended(self, direction: Direction) -> None:
        """Note that no more comes from one side, and end the other's stream behind all that is kept, unless the session
        is.
        """
        peer = self._relay.source(direction)
        self.note("end-of-stream", side=peer.name)
        if self.survives(direction):
            return
        self._half_closed.add(direction)
        self._end(direction)
        self._relay.update_peer(peer)

    # in between

    def hand_over(self, passing: Passing[M], came: M) -> None:
        """Take one message through the stages and send what comes out. `came` is the message as it was received."""
        direction = passing.direction
        after: M | None = passing.message
        for stage in self._stages[direction]:
            after = stage(passing)
            if after is None:
                break
            passing.message = after
        view = BOTH if after is came else View.SENT
        if view is not BOTH:
            passing.record = self.record(direction, View.RECEIVED, came, passing.pair)
        if after is not None:
            try:
                self._send_on(passing, view)
            finally:
                close_all(after.fds)
        for action in passing.actions:
            action()

    def record(self, direction: Direction, view: View, message: M, pair: int = 0) -> int:
        """Record a message; returns the number of its record, 0 where nothing is recorded."""
        if self.trace is None or not (view := self._seen(direction, view)):
            return 0
        return self.trace.message(direction, view, message, pair, self._channel)

    def _seen(self, direction: Direction, view: View) -> View:
        """The sides that something was seen on: to a peer that takes nothing any more it was not sent."""
        return view & ~View.SENT if self._relay.towards(direction).outlet.broken else view

    def count(self, direction: Direction, size: int) -> None:
        """Count a message that has come."""
        self.counters.messages[direction] += 1
        self.counters.bytes[direction] += size

    def hold_back(self, request: M) -> None:
        """Keep a request until it is let go."""
        self.counters.held += 1
        number = self.record(Direction.TO_SERVER, View.RECEIVED, request)
        self.holding.keep(Passing(Direction.TO_SERVER, request, record=number))

    def _hand_to_server(self, held: Passing[M]) -> None:
        """A request that was held goes on."""
        self.hand_over(held, held.message)

    def _backlog_changed(self, direction: Direction) -> None:
        self._relay.update_peer(self._relay.source(direction))

    def _backlog_emptied(self, direction: Direction) -> None:
        if direction in self._half_closed:  # whoever has let go of the last sends it now
            self.loop.after(0, partial(self._end, direction))

    def _end(self, direction: Direction) -> None:
        """End a stream whose source has ended, unless something of it is still to be sent."""
        if not self.closed and not self.backlog.has(direction) and direction in self._half_closed:
            self._half_closed.discard(direction)
            self._relay.towards(direction).outlet.end()

    def _send_on(self, passing: Passing[M], view: View) -> None:
        direction, message = passing.direction, passing.message
        self._relay.towards(direction).outlet.send(message.encode(), message.fds)
        passing.record = self.record(direction, view, message, passing.pair)
        if not message.is_reply:
            self.request_sent(passing)
