"""One client's session with one server, seen from between them.

A `ForwardedSession` owns the relay between both connections and what is known of the conversation. What is to happen to
messages on the way is not in here: faults and capture are `Stage`s, survival is a `SessionWatcher`, asked only while
there are any.
"""

from __future__ import annotations

import errno as errnos
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from userdev.interposer.session import BOTH, BaseSession, Counters
from userdev.relay.direction import Direction
from userdev.relay.loop import Loop
from userdev.trace import TraceWriter, View
from userdev.transport import Stream, close_all
from vfio_user.interposer.codec import CODEC, MessageHeader
from vfio_user.interposer.own_requests import OwnRequests
from vfio_user.interposer.pairing import Pairing, PendingRequest
from vfio_user.interposer.passing import Passing, SessionWatcher, copy_message
from vfio_user.interposer.server_migration import ServerMigration
from vfio_user.interposer.session_model import CONFIG_REGION, SessionModel
from vfio_user.wire import ERROR, NO_REPLY, REPLY, Command, Dialect, Message
from vfio_user.wire.header import TYPE_MASK

_NOBODY = PendingRequest(0, 0, None)
"""What a reply answers that nobody asked for."""


@dataclass
class SessionCounters(Counters):
    """Counts of a session so far; `status` shows them."""

    unframed_by_client: int = 0
    own_requests: int = 0


class ForwardedSession(BaseSession[Message, MessageHeader]):
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
        self.dialect = dialect
        self.model = SessionModel(dialect)
        self.memory = self.model
        """Where guest memory can be reached; it differs from `model` where the server was not told."""
        self.pending = (Pairing(), Pairing())
        """Requests without reply, by the direction the request went."""
        self.own = (OwnRequests(self.pending[0]), OwnRequests(self.pending[1]))
        self.migration: ServerMigration | None = None
        """How the server migrates, once it has been asked: see `migration.migration_of`."""
        self.version_answered: Callable[[Message], object] = lambda reply: None
        """Called with what a server answers to VERSION that takes another's place; its descriptors are there until it
        returns."""
        self._watchers: list[SessionWatcher] = []
        self._access = {dialect.number(Command.REGION_READ), dialect.number(Command.REGION_WRITE)}
        super().__init__(CODEC, loop, client, server, trace=trace, on_end=on_end)
        self.counters: SessionCounters = SessionCounters()

    # the life of a session

    def ending(self) -> None:
        """Fail our own requests, and tell watchers."""
        for own in self.own:
            own.lose("the session has ended")
        for watcher in self._watchers:
            watcher.closed()

    def ended_for_good(self) -> None:
        """Forget all requests, and what is known of the session."""
        for pairing in self.pending:
            pairing.close()
        self.model.close()

    def replace_server(self, stream: Stream) -> None:
        """Go on with another server. The client's unfinished message, if any, will reach it whole."""
        self._relay.replace_server(stream)
        self.choose_path()

    def lose_server(self) -> None:
        """The server is gone or about to be replaced: read it no longer, and fail our own requests to it."""
        self._relay.lose_server()
        self.own[Direction.TO_SERVER].lose("the server is gone")
        self.pending[Direction.TO_CLIENT].make_stale()
        self.pending[Direction.TO_SERVER].close()
        self.choose_path()

    @property
    def state(self) -> str:
        """Where the session is, as scenarios say it."""
        return self.model.state

    @property
    def server_lost(self) -> bool:
        """The server is gone, and the session waits for another."""
        return self._relay.server_lost

    def is_connected(self, towards: Direction) -> bool:
        """Whether a peer is there to be sent something."""
        lost = towards is Direction.TO_SERVER and self.server_lost
        return not (self.closed or lost or self._relay.towards(towards).outlet.broken)

    # what else takes part

    def watch(self, watcher: SessionWatcher) -> None:
        """Tell `watcher` from now on what happens."""
        self._watchers.append(watcher)

    def wants_all(self, direction: Direction) -> bool:
        """Whether replies have to be looked at: to our own requests, and to those of servers that are gone."""
        return any(own.active for own in self.own) or self.pending[Direction.TO_CLIENT].has_stale

    # sending

    def send_together(self, direction: Direction, messages: Sequence[Message]) -> None:
        """Send messages of ours that have no descriptors, at one go."""
        self._relay.towards(direction).outlet.send(b"".join([message.encode() for message in messages]))
        for message in messages if self.trace is not None else ():
            self.record(direction, View.SENT, message)

    def expect_reply(self, passing: Passing) -> None:
        """A request has been sent as bytes: its reply will come."""
        if not passing.message.is_reply:
            self.request_sent(replace(passing, record=0))

    # what the relay asks and tells

    def passed(self, direction: Direction, header: MessageHeader, data: memoryview) -> None:
        """Learn of a message that the relay has forwarded: `data` is its bytes, in a buffer that is used again."""
        id, command, _, flags, errno = header
        self.counters.messages[direction] += 1
        self.counters.bytes[direction] += len(data)
        trace = self.trace
        if flags & TYPE_MASK == REPLY:
            request = self.pending[1 - direction].replied(id) or _NOBODY
            if trace is not None:
                trace.passed(direction, data, request.number)
            if request.message is not None or self._watchers or request.answered:
                self._learned(Passing(direction, Message(id, command, flags, errno, bytes(data[16:]))), request)
            return
        number = trace.passed(direction, data) if trace is not None else 0
        if not self._watchers and command in self._access and data[24:28] != CONFIG_REGION:
            self.model.bar_accessed = True
            if not flags & NO_REPLY:
                self.pending[direction].sent(id, PendingRequest(number, command, None))
        else:
            self.request_sent(Passing(direction, Message(id, command, flags, errno, bytes(data[16:])), record=number))

    def observe(self, direction: Direction, message: Message) -> None:
        """Learn of a message that went on whole, with its descriptors; the trace, the model and watchers are told."""
        self.counters.messages[direction] += 1
        self.counters.bytes[direction] += message.size
        passing = Passing(direction, message)
        if message.is_reply:
            request = self.pending[direction.opposite].replied(message.id) or _NOBODY
            self.record(direction, BOTH, message, request.number)
            self._learned(passing, request)
        else:
            passing.record = self.record(direction, BOTH, message)
            self.request_sent(passing)

    def deliver(self, direction: Direction, message: Message) -> None:
        """Send a message on: held back while requests are held, a reply under the id that the other side knows."""
        self.counters.messages[direction] += 1
        self.counters.bytes[direction] += message.size
        if direction is Direction.TO_SERVER and self.holding.active and not message.is_reply:
            self.hold_back(message)
        elif message.is_reply:
            self._translate_reply(direction, message)
        else:
            self.hand_over(Passing(direction, self.own[direction].outgoing(message)), message)

    def lost(self, direction: Direction, header: Message) -> None:
        """Answer for a message whose descriptors are lost: without them it would say something else."""
        self.note("descriptors-lost", direction=direction.label, id=header.id, command=header.command)
        if header.is_reply:
            self.deliver(direction, replace(header, flags=REPLY | ERROR, errno=errnos.EMFILE))
        elif header.wants_reply:
            self.send(direction.opposite, header.error(errnos.EMFILE))

    def unframed(self, direction: Direction, data: bytes, why: str) -> None:
        """Note bytes that are no message and go on as they are; `why` is given with the first of them."""
        if direction is Direction.TO_SERVER:
            self.counters.unframed_by_client += len(data)
        super().unframed(direction, data, why)

    def survives(self, direction: Direction) -> bool:
        """Whether a watcher keeps the session alive, whose server is gone."""
        if direction is Direction.TO_SERVER:
            return False
        kept_alive = [watcher.server_gone() for watcher in self._watchers]  # each is told, whatever another does
        return any(kept_alive)

    # in between

    def _hand_to_server(self, held: Passing) -> None:
        """A request that was held goes on."""
        came = held.message
        held.message = self.own[Direction.TO_SERVER].outgoing(came)
        self.hand_over(held, came)

    def _translate_reply(self, direction: Direction, reply: Message) -> None:
        """A reply has come in while messages are looked at: ours, one for nobody, or one to send on."""
        asked = direction.opposite
        request = self.pending[asked].replied(reply.id) or _NOBODY
        translated = self.own[asked].incoming(reply)
        if translated is None or request.stale:
            self.record(direction, View.RECEIVED, reply, request.number)
            if translated is None:
                self.own[asked].deliver_arrived()
            close_all(reply.fds)
            return
        passing = Passing(direction, reply, request.number)
        # What the server has answered it has done, whatever becomes of its answer on the way.
        self._learned(passing, request)
        passing.message = translated
        self.hand_over(passing, reply)

    def request_sent(self, passing: Passing) -> None:
        """A request has been sent on: its reply will want it."""
        direction, request = passing.direction, passing.message
        wanted = direction is Direction.TO_SERVER and self.model.wants(request)
        if request.wants_reply:
            kept = self._kept(request) if wanted else None
            self.pending[direction].sent(
                request.id, PendingRequest(passing.record, request.command, kept, False, passing.answered)
            )
        else:
            if wanted:
                self.model.exchanged(request, None)
            for told in passing.answered:
                told(None)
        for watcher in self._watchers:
            watcher.passed(passing)

    def _kept(self, request: Message) -> Message | None:
        try:
            return copy_message(request) if request.fds else request
        except OSError as error:
            self.model.miss(request, error)
            return None

    def _learned(self, reply: Passing, request: PendingRequest) -> None:
        """A reply has come."""
        if request.message is not None:
            self.model.exchanged(request.message, reply.message)
            close_all(request.message.fds)
        for told in request.answered:
            told(reply.message)
        for watcher in self._watchers:
            watcher.passed(reply)
