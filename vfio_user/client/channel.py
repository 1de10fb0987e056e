"""Messages both ways over one connection, seen from the side that asks.

Requests go out without waiting and replies are matched by id; ids may be in use more than once, oldest first. The
server's own requests are served whenever the channel waits, on the main socket and on the twin. Nothing here blocks in
a send: while the server does not read, its messages are read, so that two peers that both talk never deadlock.
"""

from __future__ import annotations

import errno
import select
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Self

from userdev.busy_wait import BusyWait
from userdev.errors import ProtocolError
from userdev.transport import BadFrame, DescriptorsLost, Framer, Stream, close_all
from vfio_user.client.errors import Disconnected, NoAnswer, StrayReply
from vfio_user.wire import COMMAND, MAX_MESSAGE, NO_REPLY, Message
from vfio_user.wire.open_requests import OpenRequests, free_id

Serve = Callable[[Message], Message | None]
"""Answers one request of the server; None where it wants no answer. Owns the request's descriptors."""


MAX_OWED = 16 << 20
"""Bytes of answers that a server has not taken, after which it is asked no more questions."""
MAX_RECEIVED = 4 * MAX_MESSAGE
"""Bytes of a message of the server's, which may say more than its own bound allows."""
_ENTRY = 64
"""Bytes that each is counted as beside its own."""
Outgoing = tuple[memoryview, Sequence[int], int]
"""What is to be sent: bytes, descriptors, and what an answer of ours counts in `owed`."""


@dataclass(eq=False)
class Pending:
    """A request under way. `reply` is there once `Channel.wait` has returned it. A block of it that fails gives up."""

    id: int
    name: str
    reply: Message | None = None
    request: str = ""
    """Its name where it was made of a call, and not as somebody else made it, perhaps wrong."""
    given_up: bool = False
    """Whether nobody waits for it any more, so that descriptors of its reply are nobody's."""

    def give_up(self) -> None:
        """Wait no more: descriptors of the reply, which may be still to come, are closed."""
        self.given_up = True
        if self.reply is not None:
            fds, self.reply.fds = self.reply.fds, []
            close_all(fds)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self.give_up()


@contextmanager
def giving_up(requests: Sequence[Pending]) -> Iterator[None]:
    """Have nobody wait for any of these any more where this block fails."""
    with ExitStack() as stack:
        for request in requests:
            stack.enter_context(request)
        yield


@dataclass(eq=False)
class _Lane:
    """One socket of the channel: the main one or the twin."""

    stream: Stream
    framer: Framer[Message] = field(default_factory=partial(Framer, Message, max_message=MAX_RECEIVED))
    out: deque[Outgoing] = field(default_factory=deque)
    """What waits to be sent."""
    owed: int = 0
    gone: str = ""
    """Why nothing more comes, once that is so."""

    @property
    def is_full(self) -> bool:
        """Whether the peer owes it to us to read first."""
        return self.owed >= MAX_OWED

    def drop(self) -> None:
        """Send nothing of what waits."""
        self.out.clear()
        self.owed = 0

    def take_back(self, unsent: Outgoing) -> None:
        """Do not send this, if none of it has gone yet: what has begun goes on, or the peer would lose its place."""
        if self.out:
            self.out = deque(each for each in self.out if each is not unsent)


class Channel:
    """A client's socket, or two of them, with what waits for replies: see the module. Not for several threads at
    once.
    """

    def __init__(self, stream: Stream, serve: Serve, *, timeout: float, busy_wait: BusyWait | None = None) -> None:
        """`busy_wait` is that of the thread that waits, where it looks before it sleeps."""
        self.timeout = timeout
        self._busy_wait = busy_wait
        self._serve = serve
        self._open = OpenRequests[Pending]()
        self._last_id = 0
        self._main = _Lane(stream)
        self._lanes = [self._main]

    @property
    def carries_fds(self) -> bool:
        """Whether descriptors can go along: on UNIX sockets only."""
        return self._main.stream.carries_fds

    @property
    def is_connected(self) -> bool:
        """Whether the server is there, as far as what was received so far tells."""
        return not self._main.gone

    def fileno(self) -> int:
        """The main socket's descriptor, for `select`."""
        return self._main.stream.fileno()

    def add_twin(self, fd: int) -> None:
        """Serve the server's requests on this socket as well; owns `fd`.

        Raises:
            ProtocolError: it is no stream socket.
        """
        try:
            found = socket.socket(fileno=fd)
        except OSError as error:
            close_all([fd])
            raise ProtocolError(f"VERSION: the descriptor for a twin socket is none: {error.strerror}") from error
        if found.type != socket.SOCK_STREAM:
            found.close()
            raise ProtocolError("VERSION: the twin socket is no stream")
        self._lanes.append(_Lane(Stream(found)))

    @property
    def has_twin(self) -> bool:
        """Whether the server has a socket of its own for what it asks."""
        return len(self._lanes) > 1

    # asking

    def fresh_id(self) -> int:
        """The next id that no request under way has."""
        id = free_id(self._last_id, self._open)
        if id is None:
            raise NoAnswer("65,536 requests are under way and each has an id of its own")
        self._last_id = id
        return id

    def expect(self, id: int, name: str, *, request: str = "") -> Pending:
        """Wait for a reply with this id, whoever sends the request."""
        pending = Pending(id, name, request=request)
        self._open.sent(id, pending)
        return pending

    def submit(self, message: Message, name: str) -> Pending | None:
        """Send a request; None where it wants no reply. Descriptors stay the caller's."""
        if message.flags & NO_REPLY:
            self.send_bytes(message.encode(), message.fds)
            return None
        with self.expect(message.id, name, request=name) as pending:
            self.send_bytes(message.encode(), message.fds)
        return pending

    def submit_all(self, messages: Sequence[Message], name: str) -> list[Pending]:
        """Send requests that want replies and have no descriptors, in as few pieces as the socket takes."""
        pending = [self.expect(message.id, name, request=name) for message in messages]
        with giving_up(pending):
            self.send_bytes(b"".join(message.encode() for message in messages))
        return pending

    def send_bytes(self, data: bytes, fds: Sequence[int] = (), *, timeout: float | None = None) -> None:
        """Send any bytes at all, the descriptors with the first of them.

        Raises:
            Disconnected: the server is gone.
            NoAnswer: it does not take them.
            ValueError: descriptors on a transport that carries none.
        """
        if fds and not self.carries_fds:
            raise ValueError("this transport carries no file descriptors")
        lane = self._main
        if lane.gone:
            raise Disconnected(lane.gone)
        unsent = (memoryview(data), fds, 0)
        lane.out.append(unsent)
        try:
            self._flush(lane)
            deadline = time.monotonic() + (self.timeout if timeout is None else timeout)
            while lane.out:
                if lane.gone:
                    raise Disconnected(lane.gone)
                if not self._turn(deadline) and lane.out:
                    raise NoAnswer("the server does not read what it is sent")
        finally:
            lane.take_back(unsent)

    def await_taken(self, seconds: float) -> bool:
        """Whether the server has received all that was sent on the main socket, within so many seconds.

        Raises:
            OSError: the transport does not tell.
        """
        return self._main.stream.await_taken(seconds)

    def end_sending(self) -> None:
        """Have the server see the end behind what was sent; what it says is still taken."""
        self._main.stream.shutdown(socket.SHUT_WR)

    def wait(self, pending: Pending, *, timeout: float | None = None) -> Message:
        """The reply to a request, whatever it says; the server's own requests are served meanwhile.

        Raises:
            Disconnected: the server is gone, and everything it said has been read.
            NoAnswer: the deadline passed.
            ProtocolError: the server sent what no server may send.
        """
        limit = self.timeout if timeout is None else timeout
        deadline = time.monotonic() + limit
        with pending:
            while pending.reply is None:
                if self._main.gone:
                    raise Disconnected(f"{self._main.gone} while {pending.name} was under way")
                if not self._turn(deadline) and pending.reply is None:
                    silence = NoAnswer(f"no reply to {pending.name} within {limit:g} s")
                    silence.request = pending.request
                    raise silence
        return pending.reply

    def serve_until(self, done: Callable[[], bool], *, timeout: float, also: Sequence[int] = ()) -> bool:
        """Serve the server's requests until `done()`; whether it came to that before the deadline.

        `also` are descriptors whose readability is a reason to ask `done` again.
        """
        deadline = time.monotonic() + timeout
        while not done():
            if self._main.gone:
                raise Disconnected(self._main.gone)
            if not self._turn(deadline, also):
                return done()
        return True

    # the loop

    def _turn(self, deadline: float, also: Sequence[int] = ()) -> bool:
        """Wait once for anything to happen and deal with it; False when the deadline has passed, whatever is there."""
        poll = select.poll()
        for lane in self._lanes:
            if not lane.gone:
                events = (0 if lane.is_full else select.POLLIN) | (select.POLLOUT if lane.out else 0)
                poll.register(lane.stream, events)
        for fd in also:
            poll.register(fd, select.POLLIN)
        ready = dict(self._first_of(poll, max(0.0, deadline - time.monotonic())))
        for lane in self._lanes:
            events = 0 if lane.gone else ready.get(lane.stream.fileno(), 0)
            if events & select.POLLOUT:
                self._flush(lane)
                self._take(lane)
            if events & ~select.POLLOUT:
                self._receive(lane)
        return time.monotonic() < deadline

    def _first_of(self, poll: select.poll, seconds: float) -> list[tuple[int, int]]:
        """What happens first, of what is polled for, within so many seconds."""
        busy_wait = self._busy_wait
        if busy_wait is None or not seconds:
            return poll.poll(seconds * 1000)
        if busy_wait.is_worth_while and (found := busy_wait.until(partial(poll.poll, 0))):
            return found
        begin = time.perf_counter_ns()
        found = poll.poll(seconds * 1000)
        busy_wait.slept(time.perf_counter_ns() - begin)
        return found

    def _flush(self, lane: _Lane) -> None:
        """Send what the socket takes now."""
        while lane.out:
            data, fds, counts = lane.out[0]
            try:
                sent = lane.stream.try_send(data, fds)
            except BlockingIOError:
                return
            except (BrokenPipeError, ConnectionResetError):
                lane.drop()  # it takes nothing more, and may still have said why
                return
            if sent == len(data):
                lane.out.popleft()
                lane.owed -= counts
            else:
                lane.out[0] = (data[sent:], (), counts)

    def _receive(self, lane: _Lane) -> None:
        try:
            count, fds = lane.stream.receive(lane.framer.room())
        except ConnectionError as error:
            lane.gone = f"the server broke the connection ({error.strerror})"
            return
        except DescriptorsLost as lost:
            lane.framer.lost(lost.count)
            self._take(lane)
            return
        if count == 0:
            half = f" in the middle of a message, {lane.framer.pending} bytes into it" if lane.framer.pending else ""
            lane.gone = f"the server closed the connection{half}"
            return
        lane.framer.received(count, fds)
        self._take(lane)

    def _take(self, lane: _Lane) -> None:
        """Deal with what has come, until too many answers wait; behind what no server may send with the rest, too.

        Raises:
            ProtocolError: of the first that none may.
        """
        wrong: ProtocolError | None = None
        while not lane.is_full and (message := self._next(lane)) is not None:
            try:
                self._dispatch(lane, message)
            except ProtocolError as error:
                wrong = wrong or error
        if wrong is not None:
            raise wrong

    def _next(self, lane: _Lane) -> Message | None:
        """The next message; a reply that has lost its descriptors has come all the same, and no other answers."""
        try:
            return lane.framer.next()
        except BadFrame as bad:
            if bad.errno == errno.EMFILE and bad.message is not None and bad.message.is_reply:
                self._open.replied(bad.message.id)
            raise

    def _dispatch(self, lane: _Lane, message: Message) -> None:
        if message.is_reply:
            self._match(message)
        elif message.type == COMMAND:
            answer = self._serve(message)
            if answer is not None:
                data = memoryview(answer.encode())
                lane.owed += len(data) + _ENTRY
                lane.out.append((data, (), len(data) + _ENTRY))
                self._flush(lane)
        else:
            close_all(message.fds)
            raise ProtocolError(f"the server sent a message of type {message.type}, which is none")

    def _match(self, message: Message) -> None:
        pending = self._open.replied(message.id)
        if pending is None:
            close_all(message.fds)
            raise StrayReply(message.id, message.command)
        pending.reply = message
        if pending.given_up:
            pending.give_up()

    def close(self) -> None:
        """End the connection; idempotent."""
        for lane in self._lanes:
            lane.framer.close()
            lane.stream.close()
            lane.gone = lane.gone or "this client closed the connection"
