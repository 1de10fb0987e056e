"""One connection of a session, seen from between its ends: the front-end's own, or the channel of the back-end's."""

from __future__ import annotations

import errno
import socket
import time
from abc import abstractmethod
from collections.abc import Callable

from userdev.interposer.session import BOTH, BaseSession
from userdev.relay import Direction, Loop
from userdev.trace import TraceWriter
from userdev.transport import Stream
from vhost_user.interposer.asker import Asker
from vhost_user.interposer.codec import CODEC, MessageHeader
from vhost_user.interposer.passing import Passing
from vhost_user.interposer.session_model import SessionModel, is_answered
from vhost_user.interposer.unanswered import SentRequest, Unanswered
from vhost_user.wire import HEADER_SIZE, FrontEndRequest, Message, acknowledge


class Conversation(BaseSession[Message, MessageHeader]):
    """Forwards one connection until either side is gone."""

    def __init__(
        self,
        asker: Asker,
        loop: Loop,
        client: Stream,
        server: Stream,
        *,
        trace: TraceWriter | None = None,
        on_end: Callable[[], None] = lambda: None,
    ) -> None:
        self.asker = asker
        self.waiting = Unanswered()
        super().__init__(CODEC, loop, client, server, trace=trace, channel=asker.value, on_end=on_end)

    @abstractmethod
    def is_answered(self, message: Message) -> bool:
        """Whether a request will be answered."""

    def passed(self, direction: Direction, header: MessageHeader, data: memoryview) -> None:
        """Learn of a message without descriptors that the relay has forwarded."""
        self.observe(direction, Message(header[0], header[1], bytes(data[HEADER_SIZE:])))

    def observe(self, direction: Direction, message: Message) -> None:
        """Learn of a message that went on whole; its descriptors are still open."""
        self.count(direction, message.size)
        passing = self._passing(direction, message)
        passing.record = self.record(direction, BOTH, message, passing.pair)
        if not message.is_reply:
            self.request_sent(passing)

    def deliver(self, direction: Direction, message: Message) -> None:
        """Send a message on: held back while requests are held, else through the stages."""
        self.count(direction, message.size)
        if direction is Direction.TO_SERVER and self.holding.active and not message.is_reply:
            self.hold_back(message)
        else:
            self.hand_over(self._passing(direction, message), message)

    def lost(self, direction: Direction, header: Message) -> None:
        """Refuse a request that has lost its descriptors, where it is answered; else end the session, which would go
        on in the belief that it was done.
        """
        self.note("descriptors-lost", direction=direction.label, request=header.request)
        if not header.is_reply and self.is_answered(header):
            self.send(direction.opposite, acknowledge(header.request, errno.EMFILE))
        else:
            self.loop.after(0, self.close)

    def request_sent(self, passing: Passing) -> None:
        """Remember a request that will be answered."""
        message = passing.message
        if passing.direction is self.asker.asking and self.is_answered(message):
            self.waiting.sent(SentRequest(message.request, passing.record, passing.answered))

    def expect_reply(self, passing: Passing) -> None:
        """A request has been sent as bytes: its reply will come."""
        if not passing.message.is_reply:
            self.request_sent(passing)

    def _passing(self, direction: Direction, message: Message) -> Passing:
        """A message that has come; a reply knows what it answers."""
        answers = message.is_reply and direction is not self.asker.asking
        return Passing(direction, message, self._answered(message) if answers else 0)

    def _answered(self, reply: Message) -> int:
        """A reply has come: the number of the record that it answers."""
        return self.waiting.answered(reply)


class RelayedChannel(Conversation):
    """The connection on which the back-end asks; what was agreed on is that of its session."""

    def __init__(self, session: FrontEndSession, client: Stream, server: Stream, on_end: Callable[[], None]) -> None:
        self._session = session
        super().__init__(Asker.BACK_END, session.loop, client, server, trace=session.trace, on_end=on_end)

    @property
    def state(self) -> str:
        """The session's."""
        return self._session.state

    def note(self, event: str, **details: object) -> None:
        """Record that something has happened on the channel."""
        super().note(event, channel=self.asker.label, **details)

    def is_answered(self, message: Message) -> bool:
        """Whether the front-end will answer a request of the back-end's."""
        return is_answered(self._session.model.negotiated, self.asker, message)


class FrontEndSession(Conversation):
    """A front-end's session with a back-end: its connection, and the back-end's channels that it hands over on it."""

    def __init__(
        self,
        loop: Loop,
        client: Stream,
        server: Stream,
        *,
        trace: TraceWriter | None = None,
        on_end: Callable[[], None] = lambda: None,
    ) -> None:
        self.model = SessionModel()
        self.channels: list[RelayedChannel] = []
        """The back-end's: one, or none, or for a moment two."""
        self.on_channel: list[Callable[[Conversation], None]] = []
        """Called with each of them before its first message."""
        self.began = time.monotonic()
        super().__init__(Asker.FRONT_END, loop, client, server, trace=trace, on_end=on_end)
        self.choose_path()

    @property
    def state(self) -> str:
        """Where the session is: one of `session_model.STATES`."""
        return self.model.state

    def wants_all(self, direction: Direction) -> bool:
        """All that the front-end says: it may hand over a socket, in whose place there has to be one of ours."""
        return direction is Direction.TO_SERVER

    def is_answered(self, message: Message) -> bool:
        """Whether the back-end will answer a request."""
        return self.model.is_answered(message)

    def deliver(self, direction: Direction, message: Message) -> None:
        """Send a message on; a socket for the back-end's channel goes no further than here."""
        if direction is Direction.TO_SERVER and message.request == FrontEndRequest.SET_BACKEND_REQ_FD:
            self._stand_between(message)
        super().deliver(direction, message)

    def request_sent(self, passing: Passing) -> None:
        """Learn what a request says, once it is known whether it is answered."""
        if passing.direction is not Direction.TO_SERVER:
            super().request_sent(passing)
            return
        settled = self.model.awaited(passing.message)
        if settled is not None:
            passing.when_answered(settled)
        super().request_sent(passing)
        if settled is None:
            self.model.requested(passing.message)

    def ended_for_good(self) -> None:
        """End the channels too."""
        for channel in list(self.channels):
            channel.close()

    def _answered(self, reply: Message) -> int:
        self.model.answered(reply)
        return super()._answered(reply)

    def _stand_between(self, message: Message) -> None:
        """Give the back-end a socket of ours, and relay to the front-end's what comes on it."""
        try:
            theirs = socket.socket(fileno=message.fds[0]) if len(message.fds) == 1 else None
        except OSError:
            theirs = None  # no socket: let the back-end say what it makes of that
        if theirs is None:
            return
        near, far = socket.socketpair()
        message.fds[0] = far.detach()
        channel = RelayedChannel(self, Stream(theirs), Stream(near), lambda: self.channels.remove(channel))
        self.channels.append(channel)
        for prepare in self.on_channel:
            prepare(channel)
        channel.start()
