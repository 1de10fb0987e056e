"""Making visible what goes past the interposer: DMA through mapped memory, and interrupts through eventfds.

`CaptureDma` keeps the client's descriptors to itself, so that the server has to ask for every byte (DMA_READ,
DMA_WRITE), and answers in the client's place, from the client's own memory. So the trace holds exactly what the device
read and wrote, and when, and a replay can hand it the same again. It costs a message per access, and needs a server
that can do DMA by message. So that one which does DMA within its register handlers can, it is offered a second socket
to ask on, whatever the client offers.

`CaptureInterrupts` gives the server eventfds of its own and passes each interrupt on.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass, replace

from userdev.descriptors import FdKind, describe, duplicate
from userdev.errors import ProtocolError
from userdev.eventfd import drain, signal_eventfd
from userdev.interposer.errors import PeerLost
from userdev.relay.direction import Direction
from userdev.trace import View
from userdev.transport import Stream, close_all
from vfio_user.interposer import own_calls, twin
from vfio_user.interposer.codec import MAX_FRAME
from vfio_user.interposer.errors import RequestRefused
from vfio_user.interposer.guest_memory import read_memory, write_memory
from vfio_user.interposer.passing import Passing
from vfio_user.interposer.session import ForwardedSession
from vfio_user.interposer.session_model import SessionModel
from vfio_user.interposer.trace.files import TWIN
from vfio_user.interposer.twin import TwinSocket
from vfio_user.interposer.undecided import Undecided
from vfio_user.wire import COMMAND, MAX_DATA, Command, Message
from vfio_user.wire import layouts as at
from vfio_user.wire.constants import DmaFlags, IrqSetFlags

CLIENT_SECONDS = 2.0
"""Seconds that a client has to answer what the server asks on its second socket: less than it waits for a register
itself, for within one it may be that the server asks."""
_EVENTFD_TRIGGER = IrqSetFlags.DATA_EVENTFD | IrqSetFlags.TRIGGER
_DISABLE = IrqSetFlags.DATA_NONE | IrqSetFlags.TRIGGER


class CaptureDma:
    """Both directions' stage: maps go on without descriptors, DMA messages are answered here.

    `warn` is told where the server has only its connection to ask on.
    """

    def __init__(self, session: ForwardedSession, warn: Callable[[str], None] = lambda text: None) -> None:
        self._session, self._warn = session, warn
        self._memory = session.memory = SessionModel(session.dialect)
        dialect = session.dialect
        self._version = dialect.number(Command.VERSION)
        self._maps = {dialect.number(Command.DMA_MAP), dialect.number(Command.DMA_UNMAP)}
        self._accesses = {dialect.number(Command.DMA_READ), dialect.number(Command.DMA_WRITE)}
        self._write = dialect.number(Command.DMA_WRITE)
        self._twin: TwinSocket | None = None
        self._clients_end: socket.socket | None = None
        """Where the client believes its own twin socket to be."""
        self._client_offers = False
        session.version_answered = self._take_twin
        self._undecided = Undecided(self._learn, self._release)
        session.add_stage(self, *Direction)

    def __call__(self, passing: Passing) -> Message | None:
        """Take the descriptors off a map, answer a DMA message from the client's memory, and let all else through as
        it is, but for what VERSION says of a second socket.
        """
        direction, message = passing.direction, passing.message
        if message.command == self._version:
            is_agreed = message.is_reply and direction is Direction.TO_CLIENT and not message.failed
            return self._agree(message) if is_agreed else self._propose(message)
        if message.is_reply:
            return message
        if direction is Direction.TO_SERVER and message.command in self._maps:
            return self._map(passing)
        if direction is Direction.TO_CLIENT and message.command in self._accesses:
            return self._answer(passing)
        return message

    def closed(self) -> None:
        """Close the client's descriptors that were kept, and the second socket."""
        self._undecided.close()
        self._memory.close()
        if self._twin is not None:
            self._twin.close()
        if self._clients_end is not None:
            self._clients_end.close()

    # the second socket

    def _propose(self, message: Message) -> Message:
        """Offer the server a second socket, in a dialect that has them."""
        if message.is_reply or self._session.dialect.shapes[Command.VERSION].fds != "reply":
            return message
        payload = twin.offered(message.payload)
        self._client_offers = payload is None
        return replace(message, payload=payload) if payload is not None else message

    def _agree(self, reply: Message) -> Message:
        """Keep the server's second socket; the client is told of one only where it has offered it itself."""
        at = self._take_twin(reply)
        if at is None:
            return reply
        fds = list(reply.fds)
        os.close(fds[at])
        if not self._client_offers:
            del fds[at]
            return replace(reply, payload=twin.without_twin(reply.payload), fds=fds)
        self._clients_end, theirs = socket.socketpair()
        fds[at] = theirs.detach()
        return replace(reply, fds=fds)

    def _take_twin(self, reply: Message) -> int | None:
        """Answer on the second socket that comes with a server's VERSION, from now on; its place in the message."""
        at = twin.place_of_twin(reply.payload)
        if at is None or at >= len(reply.fds):
            self._session.note("no-twin-socket")
            self._warn(
                "the server takes no second socket to ask for DMA on: what it asks within a register handler, it has to"
                " ask while the client waits for that register"
            )
            return None
        if self._twin is not None:
            self._twin.close()
        self._twin = None
        if describe(reply.fds[at]).kind is not FdKind.SOCKET:
            self._session.note("twin-socket-lost", why="the descriptor is no socket")
            return at
        try:
            stream = Stream(socket.socket(fileno=duplicate(reply.fds[at])))
        except OSError as error:  # there are as many descriptors as there may be
            self._session.note("twin-socket-lost", why=error.strerror)
        else:
            self._twin = TwinSocket(self._session.loop, stream, self._asked)
        return at

    def _asked(self, twin: TwinSocket, request: Message) -> None:
        """A request has come on the second socket: an answer out of the client's memory, or the client's own."""
        close_all(request.fds)
        request = replace(request, fds=[])
        if request.is_reply:
            return
        record = self._record(Direction.TO_CLIENT, View.RECEIVED, request)
        reply = self._from_memory(request) if request.command in self._accesses else None
        if reply is None:
            self._session.loop.spawn(self._ask_client(twin, request, record))
        elif request.wants_reply:
            self._reply(twin, reply, record)

    async def _ask_client(self, twin: TwinSocket, request: Message, record: int) -> None:
        """What cannot be answered here the client has to."""
        twin.asks_elsewhere()
        asked = replace(request, flags=COMMAND)
        try:
            answer = await own_calls.exchange(self._session, Direction.TO_CLIENT, asked, timeout=CLIENT_SECONDS)
            close_all(answer.fds)
            reply = replace(answer, id=request.id, fds=[])
        except (PeerLost, RequestRefused, TimeoutError) as error:
            reply = request.error(getattr(error, "errno", 0) or errno.EIO)
        if request.wants_reply:
            self._reply(twin, reply, record)
        twin.answered_elsewhere()

    def _reply(self, twin: TwinSocket, reply: Message, record: int) -> None:
        self._record(Direction.TO_SERVER, View.SENT, reply, record)
        twin.send(reply)

    def _record(self, direction: Direction, view: View, message: Message, pair: int = 0) -> int:
        trace = self._session.trace
        return trace.message(direction, view, message, pair, TWIN) if trace is not None else 0

    # memory

    def _map(self, passing: Passing) -> Message:
        """The map or unmap as the server gets it; where DMA goes changes with its answer. What it asks until then of
        new memory the client answers.
        """
        message = passing.message
        if (asked := self._kept(message)) is not None:
            self._undecided.add(passing, asked)
        if not message.fds:
            return message
        close_all(message.fds)
        return replace(message, payload=self._without_descriptors(message), fds=[])

    def _kept(self, message: Message) -> Message | None:
        fds: list[int] = []
        try:
            fds.extend(self._memory.fds.keep(fd) for fd in message.fds)  # what was kept before an error is in it
        except OSError as error:
            asked = replace(message, fds=fds)
            self._memory.miss(asked, error)
            self._release(asked)
            return None
        return replace(message, fds=fds)

    def _learn(self, asked: Message) -> None:
        self._memory.exchanged(asked, None)
        self._release(asked)

    def _release(self, asked: Message) -> None:
        for fd in asked.fds:
            self._memory.fds.drop(fd)

    def _without_descriptors(self, message: Message) -> bytes:
        """The draft says in each entry whether a descriptor comes with it; a table that is none is the server's."""
        if self._session.dialect.shapes[Command.DMA_MAP].request is not None:
            return message.payload
        try:
            entries = list(at.DMA_ENTRY_V6.unpack_all(message.payload))
        except ProtocolError:
            return message.payload
        return b"".join(at.DMA_ENTRY_V6.pack(*entry[:4], 0) for entry in entries)

    def _answer(self, passing: Passing) -> Message | None:
        """The reply out of the client's memory; where that cannot be had, the client is asked after all."""
        message = passing.message
        if message.command != self._write and self._session.backlog.full(Direction.TO_CLIENT):
            return message  # it asks for much and takes nothing: a client gives it as much as it takes
        reply = self._from_memory(message)
        if reply is None:
            return message
        if message.wants_reply:
            passing.afterwards(lambda: self._send(reply, passing.record))
        close_all(message.fds)  # those that came with it are nobody's
        return None

    def _from_memory(self, message: Message) -> Message | None:
        """A DMA message done in the client's memory, and its reply; None where that cannot be reached."""
        command = Command.DMA_WRITE if message.command == self._write else Command.DMA_READ
        shape = self._session.dialect.shapes[command]
        assert shape.request is not None
        try:
            access = shape.request.unpack(message.payload)
            written = message.payload[shape.request.size :]
            if access.length > self._most() or len(written) != (access.length if command is Command.DMA_WRITE else 0):
                return None  # whose client says no, as without us
            if not self._allows(access, DmaFlags.WRITE if command is Command.DMA_WRITE else DmaFlags.READ):
                return None
            count, data = access.length, b""
            if command is Command.DMA_WRITE:
                write_memory(self._session, access.address, written)
                count = access.length if self._session.dialect.write_reply_counts else 0
            else:
                data = read_memory(self._session, access.address, access.length)
        except (RequestRefused, ProtocolError, OSError):
            return None
        return message.reply(shape.reply.pack(access.address, count, tail=data) if shape.reply is not None else b"")

    def _allows(self, access: at.VfioUserDmaAccess, right: DmaFlags) -> bool:
        """Whether the client has given memory for this: a descriptor says nothing of what it was given for."""
        touched = self._memory.maps.within(access.address, access.address + access.length)
        return all(mapping.protections & right for mapping in touched)

    def _most(self) -> int:
        """Bytes that the client takes or gives in one message."""
        client = self._session.model.client
        return min(client.capabilities.data_per_message if client is not None else MAX_DATA, MAX_FRAME)

    def _send(self, reply: Message, pair: int) -> None:
        self._session.send(Direction.TO_SERVER, reply, pair=pair)


@dataclass
class _Vector:
    """One interrupt: the server signals `ours`, and we the client's."""

    index: int
    number: int
    ours: int
    clients: int


@dataclass
class _Rewiring:
    """A request to let go of the vectors of one index from `start` to before `end`, for others in their places."""

    index: int
    start: int
    end: int
    offered: list[_Vector]


class CaptureInterrupts:
    """The stage of the direction to the server."""

    def __init__(self, session: ForwardedSession) -> None:
        self._session = session
        self._vectors: dict[tuple[int, int], _Vector] = {}
        self._undecided = Undecided(self._rewire, self._withdraw)
        self._set_irqs = session.dialect.number(Command.SET_IRQS)
        self.fired = 0
        session.add_stage(self, Direction.TO_SERVER)

    def __call__(self, passing: Passing) -> Message | None:
        """Put an eventfd of ours in the place of each that the client gives for a trigger, and let go of those that it
        takes back, once the server has done what it was asked; what cannot be read goes on as it is.
        """
        message = passing.message
        if message.is_reply or message.command != self._set_irqs:
            return message
        try:
            asked = at.IRQ_SET.unpack(message.payload)
        except ProtocolError:
            return message
        given = len(message.fds)
        if asked.flags & _EVENTFD_TRIGGER == _EVENTFD_TRIGGER:
            change = _Rewiring(asked.irq, asked.start, asked.start + max(asked.nr_vectors, given), [])
            fds = [self._stand_in(change, asked.start + place, fd) for place, fd in enumerate(message.fds)]
            self._undecided.add(passing, change)
            return replace(message, fds=fds) if given else message
        if asked.flags & _DISABLE == _DISABLE and not asked.nr_vectors:
            self._undecided.add(passing, _Rewiring(asked.irq, 0, 1 << 32, []))
        return message

    def _rewire(self, change: _Rewiring) -> None:
        replaced = [one for one in self._vectors if one[0] == change.index and change.start <= one[1] < change.end]
        for one in replaced:
            self._close(self._vectors.pop(one))
        for vector in change.offered:
            self._vectors[vector.index, vector.number] = vector

    def _withdraw(self, change: _Rewiring) -> None:
        for vector in change.offered:
            self._close(vector)

    def _stand_in(self, change: _Rewiring, number: int, clients: int) -> int:
        """A descriptor for the server; `clients` is ours from now on."""
        try:
            ours = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        except OSError as error:
            return self._left_to_the_server(clients, error)
        try:
            servers = duplicate(ours)
        except OSError as error:
            os.close(ours)
            return self._left_to_the_server(clients, error)
        vector = _Vector(change.index, number, ours, clients)
        change.offered.append(vector)
        self._session.loop.watch(ours, lambda _: self._pass(vector))
        return servers

    def _left_to_the_server(self, clients: int, why: OSError) -> int:
        """One interrupt more than there are descriptors for goes past us."""
        self._session.note("interrupt-not-captured", why=why.strerror)
        return clients

    def _pass(self, vector: _Vector) -> None:
        if not (count := drain(vector.ours)):  # whose server may have made it one that waits
            return
        self.fired += count
        signal_eventfd(vector.clients, count)
        self._session.note("interrupt", index=vector.index, vector=vector.number, count=count)

    def _close(self, vector: _Vector) -> None:
        self._session.loop.forget(vector.ours)
        os.close(vector.ours)
        os.close(vector.clients)

    def closed(self) -> None:
        """Stop looking at all vectors and close their eventfds."""
        self._undecided.close()
        while self._vectors:
            self._close(self._vectors.popitem()[1])
