"""One client's session with one server, seen from between them.

A `Session` owns both connections, the two pumps and everything known of the conversation. What is to happen to
messages on the way is not in here: faults, capture and survival are `Stage`s, asked only while there are any.
"""

from __future__ import annotations

import errno as errnos
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from userdev.transport import Stream, close_all
from vfio_user.interposer.backlog import Backlog
from vfio_user.interposer.descriptors import duplicates
from vfio_user.interposer.direction import Direction
from vfio_user.interposer.loop import Loop
from vfio_user.interposer.pairing import Pairing, Pending
from vfio_user.interposer.picture import CONFIG_REGION, Picture
from vfio_user.interposer.requests import Lost, OwnRequests
from vfio_user.interposer.sides import Sides
from vfio_user.interposer.trace import TraceWriter, View
from vfio_user.wire import ERROR, HEADER, HEADER_SIZE, NO_REPLY, REPLY, Command, Dialect, Message
from vfio_user.wire.header import TYPE_MASK

if TYPE_CHECKING:
    from vfio_user.interposer.migration import Migration

BOTH = View.RECEIVED | View.SENT
_NOBODY = Pending(0, 0, None)
"""What a reply answers that nobody asked for."""
Stage = Callable[[Direction, Message], Message | None]
"""Sees every message of one direction before it goes on, and returns the one to go on with: the very same object where
nothing changes, None where the stage has taken it. What is to happen instead it asks for with `Session.afterwards`."""


class Held(NamedTuple):
    """A request of the client's that is kept back."""

    message: Message
    since: float
    """Monotonic seconds."""


@dataclass
class Counters:
    """What has happened so far; `status` shows it."""

    messages: list[int] = field(default_factory=lambda: [0, 0])
    """By direction."""
    bytes: list[int] = field(default_factory=lambda: [0, 0])
    unframed: int = 0
    unframed_by_client: int = 0
    own_requests: int = 0
    held: int = 0
    faults: int = 0


class Session:
    """Forwards until either side is gone. `on_end` is called once, when nothing is left to do."""

    def __init__(
        self,
        loop: Loop,
        client: Stream,
        server: Stream,
        dialect: Dialect,
        *,
        trace: TraceWriter | None = None,
        on_end: Callable[[], None] = lambda: None,
    ) -> None:
        self.loop = loop
        self.dialect = dialect
        self.trace = trace
        self.picture = Picture(dialect)
        self.counters = Counters()
        self.closed = False
        self.at_close: list[Callable[[], None]] = []
        """Called when the session ends: those who keep its messages let go of them."""
        self.stages: dict[Direction, list[Stage]] = {Direction.TO_SERVER: [], Direction.TO_CLIENT: []}
        self.on_server_gone: Callable[[], bool] = lambda: False
        """Asked when the server is gone; True keeps the session, and the client, waiting for `replace_server`."""
        self.on_sent: Callable[[Direction, Message], None] | None = None
        """Shown every message that has been sent on or held back (the journal of what the server may have lost)."""
        self.pending = (Pairing(), Pairing())
        """Requests without reply, by the direction the request went."""
        self.own = (OwnRequests(self.pending[0]), OwnRequests(self.pending[1]))
        self.held: deque[Held] = deque()
        self._backlogs = {direction: Backlog() for direction in Direction}
        self.memory = self.picture
        """Where guest memory can be reached; it differs from `picture` where the server was not told."""
        self.migration: Migration | None = None
        """How the server migrates, once it has been asked: see `migration.migration_of`."""
        self.recorded = 0
        """For what stages do afterwards: the record of the message they have taken."""
        self.answers = 0
        """For stages: the record of the request that the message before them answers."""
        self.since: float | None = None
        """When the client sent the message that is being sent on, where that is not now (monotonic seconds)."""
        self._holds = 0
        self._access = {dialect.number(Command.REGION_READ), dialect.number(Command.REGION_WRITE)}
        self._on_end = on_end
        self._afterwards: list[Callable[[], None]] = []
        self._sides = Sides(loop, client, server, self)

    # the life of a session

    def start(self) -> None:
        self._sides.start()
        self.note("connected")

    def close(self) -> None:
        """End the session now: both peers see their connection closed."""
        if self.closed:
            return
        self.closed = True
        for own in self.own:
            own.lose("the session has ended")
        for let_go in self.at_close:
            let_go()
        self._sides.close()
        for pairing in self.pending:
            for request in pairing.clear():
                if request.message is not None:
                    close_all(request.message.fds)
        for held in self.held:
            close_all(held.message.fds)
        self.held.clear()
        self.picture.close()
        self.note("disconnected")
        self._on_end()

    def close_side(self, name: str, how: int) -> None:
        """Shut one side's connection down, as `socket.shutdown` has it; the rest follows as if the peer had."""
        side = self._sides.client if name == "client" else self._sides.server
        side.stream.shutdown(how)

    def server_stream(self) -> Stream:
        return self._sides.server.stream

    def replace_server(self, stream: Stream) -> None:
        """Go on with another server. The client's unfinished message, if any, will reach it whole."""
        self._sides.replace_server(stream)
        self._refresh()

    def lose_server(self) -> None:
        """The server is gone or about to be replaced: read it no longer, and fail our own requests to it."""
        self._sides.lose_server()
        self.own[Direction.TO_SERVER].lose("the server is gone")
        self.pending[Direction.TO_CLIENT].make_stale()
        for request in self.pending[Direction.TO_SERVER].clear():
            if request.message is not None:
                close_all(request.message.fds)
        self._refresh()

    @property
    def server_lost(self) -> bool:
        """The server is gone, and the session waits for another."""
        return self._sides.server_lost

    @property
    def expects_reply(self) -> bool:
        """Whether the server has something to answer."""
        return len(self.pending[Direction.TO_SERVER]) > 0

    # holding

    def keep(self, direction: Direction, message: Message) -> None:
        """A message is kept for later: its sender is not read while too much is."""
        backlog = self._backlogs[direction]
        backlog.add(message)
        if backlog.full:
            self._sides.update_side(self._sides.source(direction))

    def let_go(self, direction: Direction, message: Message) -> None:
        """A message that was kept is sent on, or dropped."""
        backlog = self._backlogs[direction]
        was_full = backlog.full
        backlog.remove(message)
        if was_full and not backlog.full and not self.closed:
            self._sides.update_side(self._sides.source(direction))

    def overfull(self, direction: Direction) -> bool:
        """Whether so much is kept that no more is to be read."""
        return self._backlogs[direction].full

    @property
    def holding(self) -> bool:
        return self._holds > 0

    def hold(self) -> None:
        """Keep the client's requests back until `resume`; holds count. Its replies go on."""
        self._holds += 1
        self._refresh()

    def resume(self) -> None:
        """Let them go on, in their order."""
        self._holds = max(0, self._holds - 1)
        while self.held and not self._holds and not self.closed:
            request, self.since = self._next_held()
            self._run_stages(Direction.TO_SERVER, self.own[Direction.TO_SERVER].outgoing(request), request, 0)
        self.since = None
        self._refresh()

    def take_held(self, since: float) -> list[Message]:
        """Take out those that have been held since that time (monotonic seconds) or longer."""
        taken = []
        while self.held and self.held[0].since <= since:
            taken.append(self._next_held().message)
        return taken

    def _next_held(self) -> Held:
        held = self.held.popleft()
        self.let_go(Direction.TO_SERVER, held.message)
        return held

    # requests of our own

    async def ask(self, towards: Direction, message: Message, *, timeout: float) -> Message:
        """Send a request of ours and wait for its reply, which may be an error. Its descriptors are there until the
        caller waits for something else.

        Raises:
            Lost: the peer is gone.
            TimeoutError: no reply within `timeout` seconds; one that comes later is dropped.
        """
        side = self._sides.towards(towards)
        if self.closed or side.outlet.broken or (towards is Direction.TO_SERVER and self.server_lost):
            raise Lost(f"no {side.name} is connected")
        own = self.own[towards]
        message, reply = own.prepare(message)
        self.counters.own_requests += 1
        self._refresh()
        number = self.send(towards, message)
        self.pending[towards].sent(message.id, Pending(number, message.command, None))
        try:
            return await self.loop.within(timeout, reply, "the reply")
        except TimeoutError:
            own.give_up(message.id)
            raise
        finally:
            self._refresh()

    async def ask_all(self, towards: Direction, command: int, payloads: Sequence[bytes], *, timeout: float) -> Message:
        """As `ask` for requests that go out together, of which only the last wants a reply: that one, or the first
        refusal. Peers do requests in their order, and tell a refusal also to a sender that wants no reply.
        """
        own = self.own[towards]
        id, refused = own.post()
        try:
            self._refresh()
            header = partial(HEADER.pack, id, command)
            posted = [header(HEADER_SIZE + len(data), NO_REPLY, 0) + data for data in payloads[:-1]]
            self._sides.towards(towards).outlet.send(b"".join(posted))
            for data in payloads[:-1] if self.trace is not None else ():
                self._record(towards, View.SENT, Message(id, command, NO_REPLY, payload=data))
            self.counters.own_requests += len(payloads) - 1
            reply = await self.ask(towards, Message(0, command, payload=payloads[-1]), timeout=timeout)
        finally:
            own.forget(id)
            self._refresh()
        return refused.result() if refused.done else reply

    def send(self, direction: Direction, message: Message, *, pair: int = 0) -> int:
        """Send a message of ours; returns the number of its record. `pair` is that of the request it answers."""
        side = self._sides.towards(direction)
        side.outlet.send(message.encode(), message.fds)
        self._sides.update_side(side)
        return self._record(direction, View.SENT, message, pair)

    def send_on(self, direction: Direction, message: Message, *, pair: int = 0) -> None:
        """Send a message that a stage or the survival had taken, as if it had come just now.

        Its descriptors stay the caller's. `pair` is the record of the request that it answers.
        """
        self._send_on(direction, message, View.SENT, pair)
        self._sides.update_side(self._sides.towards(direction))

    def send_bytes(self, direction: Direction, data: bytes, fds: list[int]) -> None:
        """Send bytes that need not be a message."""
        side = self._sides.towards(direction)
        side.outlet.send(data, fds)
        if self.trace is not None:
            self.trace.raw(direction, data, View.SENT)
        self._sides.update_side(side)

    def expect_reply(self, direction: Direction, request: Message) -> None:
        """A request has been sent as bytes: its reply will come."""
        if not request.is_reply:
            self._sent(direction, request, 0)

    # what the pumps tell

    def passed(self, direction: Direction, id: int, command: int, flags: int, errno: int, data: memoryview) -> None:
        self.counters.messages[direction] += 1
        self.counters.bytes[direction] += len(data)
        trace = self.trace
        if flags & TYPE_MASK == REPLY:
            request = self.pending[1 - direction].replied(id) or _NOBODY
            if trace is not None:
                trace.passed(direction, data, request.number)
            if request.message is not None or self.on_sent is not None:
                self._learned(direction, Message(id, command, flags, errno, bytes(data[16:])), request)
            return
        number = trace.passed(direction, data) if trace is not None else 0
        if self.on_sent is None and command in self._access and data[24:28] != CONFIG_REGION:
            self.picture.bar_accessed = True
            if not flags & NO_REPLY:
                self.pending[direction].sent(id, Pending(number, command, None))
        else:
            self._sent(direction, Message(id, command, flags, errno, bytes(data[16:])), number)

    def observe(self, direction: Direction, message: Message) -> None:
        self.counters.messages[direction] += 1
        self.counters.bytes[direction] += message.size
        if message.is_reply:
            request = self.pending[direction.opposite].replied(message.id) or _NOBODY
            self._record(direction, BOTH, message, request.number)
            self._learned(direction, message, request)
        else:
            self._sent(direction, message, self._record(direction, BOTH, message))

    def deliver(self, direction: Direction, message: Message) -> None:
        self.counters.messages[direction] += 1
        self.counters.bytes[direction] += message.size
        if direction is Direction.TO_SERVER and self._holds and not message.is_reply:
            self._hold_back(message)
        elif message.is_reply:
            self._translate_reply(direction, message)
        else:
            self._run_stages(direction, self.own[direction].outgoing(message), message, 0)

    def lost(self, direction: Direction, header: Message) -> None:
        """Answer for a message whose descriptors are lost: without them it would say something else."""
        self.note("descriptors-lost", direction=direction.label, id=header.id, command=header.command)
        if header.is_reply:
            self.deliver(direction, replace(header, flags=REPLY | ERROR, errno=errnos.EMFILE))
        elif header.wants_reply:
            self.send(direction.opposite, header.error(errnos.EMFILE))

    def unframed(self, direction: Direction, data: bytes, why: str) -> None:
        self.counters.unframed += len(data)
        if direction is Direction.TO_SERVER:
            self.counters.unframed_by_client += len(data)
        if self.trace is not None:
            if why:
                self.trace.note("unframed", direction=direction.label, why=why)
            self.trace.raw(direction, data)

    def ended(self, direction: Direction) -> None:
        side = self._sides.towards(direction.opposite)
        self.note("end-of-stream", side=side.name)
        if side is self._sides.server and self.on_server_gone():
            return
        self._sides.towards(direction).outlet.end()
        self._sides.update_side(side)

    # in between

    def afterwards(self, action: Callable[[], None]) -> None:
        """For a stage: do this once the message it has taken is recorded."""
        self._afterwards.append(action)

    def add_stage(self, direction: Direction, stage: Stage) -> None:
        self.stages[direction].append(stage)
        self._refresh()

    def remove_stage(self, stage: Stage) -> None:
        for stages in self.stages.values():
            if stage in stages:
                stages.remove(stage)
        self._refresh()

    def note(self, event: str, **details: object) -> None:
        if self.trace is not None:
            self.trace.note(event, **details)

    def _hold_back(self, request: Message) -> None:
        self.counters.held += 1
        self._record(Direction.TO_SERVER, View.RECEIVED, request)
        self.held.append(Held(request, time.monotonic()))
        self.keep(Direction.TO_SERVER, request)

    def _translate_reply(self, direction: Direction, reply: Message) -> None:
        """A reply has come in while messages are looked at: ours, one for nobody, or one to send on."""
        asked = direction.opposite
        request = self.pending[asked].replied(reply.id) or _NOBODY
        translated = self.own[asked].incoming(reply)
        if translated is None or request.stale:
            self._record(direction, View.RECEIVED, reply, request.number)
            if translated is None:
                self.own[asked].deliver_arrived()
            close_all(reply.fds)
            return
        # What the server has answered it has done, whatever becomes of its answer on the way.
        self._learned(direction, reply, request)
        self._run_stages(direction, translated, reply, request.number)

    def _run_stages(self, direction: Direction, message: Message, came: Message, pair: int) -> None:
        """Take one message through the stages and send what comes out.

        `came` is the message as it was received; `pair` the number of the request that it answers, if it does.
        """
        self.answers = pair
        after: Message | None = message
        for stage in self.stages[direction]:
            after = stage(direction, after) if after is not None else None
        afterwards, self._afterwards = self._afterwards, []
        view = BOTH if after is came else View.SENT
        if view is not BOTH:
            self.recorded = self._record(direction, View.RECEIVED, came, pair)
        if after is not None:
            self._send_on(direction, after, view, pair)
            close_all(after.fds)
        for action in afterwards:
            action()

    def _send_on(self, direction: Direction, message: Message, view: View, pair: int) -> None:
        self._sides.towards(direction).outlet.send(message.encode(), message.fds)
        number = self._record(direction, view, message, pair)
        if not message.is_reply:
            self._sent(direction, message, number)

    def _record(self, direction: Direction, view: View, message: Message, pair: int = 0) -> int:
        return self.trace.message(direction, view, message, pair) if self.trace is not None else 0

    def _sent(self, direction: Direction, request: Message, number: int) -> None:
        """A request has been sent on: its reply will want it."""
        wanted = direction is Direction.TO_SERVER and self.picture.wants(request)
        if request.wants_reply:
            kept = self._kept(request) if wanted else None
            self.pending[direction].sent(request.id, Pending(number, request.command, kept))
        elif wanted:
            self.picture.exchanged(request, None)
        if self.on_sent is not None:
            self.on_sent(direction, request)

    def _kept(self, request: Message) -> Message | None:
        try:
            return copy_message(request) if request.fds else request
        except OSError as error:
            self.picture.miss(request, error)
            return None

    def _learned(self, direction: Direction, reply: Message, request: Pending) -> None:
        """A reply has come."""
        if request.message is not None:
            self.picture.exchanged(request.message, reply)
            close_all(request.message.fds)
        if self.on_sent is not None:
            self.on_sent(direction, reply)

    def _refresh(self) -> None:
        """Messages are handed over only while something wants to see them first."""
        if self.closed:
            return
        wanted = self._holds > 0 or any(own.active for own in self.own) or self.pending[Direction.TO_CLIENT].stale > 0
        self._sides.client.pump.intercept = wanted or bool(self.stages[Direction.TO_SERVER])
        self._sides.server.pump.intercept = wanted or bool(self.stages[Direction.TO_CLIENT])
        self._sides.update()


def copy_message(message: Message) -> Message:
    """The message with descriptors of its own."""
    return replace(message, fds=duplicates(message.fds))
