"""Making visible what goes past the interposer: DMA through mapped memory, and interrupts through eventfds.

`CaptureDma` keeps the client's descriptors to itself, so that the server has to ask for every byte (DMA_READ,
DMA_WRITE), and answers in the client's place, from the client's own memory. So the trace holds exactly what the device
read and wrote, and when, and a replay can hand it the same again. It costs a message per access, and needs a server
that can do DMA by message.

`CaptureInterrupts` gives the server eventfds of its own and passes each interrupt on.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace

from userdev.descriptors import duplicate
from userdev.errors import ProtocolError
from userdev.eventfd import signal_eventfd
from userdev.relay.direction import Direction
from userdev.transport import close_all
from vfio_user.interposer.errors import RequestRefused
from vfio_user.interposer.guest_memory import read_memory, write_memory
from vfio_user.interposer.passing import Passing
from vfio_user.interposer.session import ForwardedSession
from vfio_user.interposer.session_model import SessionModel
from vfio_user.wire import Command, Message
from vfio_user.wire import layouts as at
from vfio_user.wire.constants import IrqSetFlags

_EVENTFD_TRIGGER = IrqSetFlags.DATA_EVENTFD | IrqSetFlags.TRIGGER


class CaptureDma:
    """Both directions' stage: maps go on without descriptors, DMA messages are answered here."""

    def __init__(self, session: ForwardedSession) -> None:
        self._session = session
        self._memory = session.memory = SessionModel(session.dialect)
        dialect = session.dialect
        self._maps = {dialect.number(Command.DMA_MAP), dialect.number(Command.DMA_UNMAP)}
        self._accesses = {dialect.number(Command.DMA_READ), dialect.number(Command.DMA_WRITE)}
        self._write = dialect.number(Command.DMA_WRITE)
        session.add_stage(self, *Direction)

    def __call__(self, passing: Passing) -> Message | None:
        """Take the descriptors off a map, answer a DMA message from the client's memory, and let all else through as
        it is.
        """
        direction, message = passing.direction, passing.message
        if message.is_reply:
            return message
        if direction is Direction.TO_SERVER and message.command in self._maps:
            return self._map(message)
        if direction is Direction.TO_CLIENT and message.command in self._accesses:
            return self._answer(passing)
        return message

    def closed(self) -> None:
        """Close the client's descriptors that were kept."""
        self._memory.close()

    def _map(self, message: Message) -> Message:
        self._memory.exchanged(message, None)
        if not message.fds:
            return message
        close_all(message.fds)
        return replace(message, payload=self._without_descriptors(message), fds=[])

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
        command = Command.DMA_WRITE if message.command == self._write else Command.DMA_READ
        shape = self._session.dialect.shapes[command]
        assert shape.request is not None
        try:
            access = shape.request.unpack(message.payload)
            if command is Command.DMA_WRITE:
                write_memory(self._session, access.address, message.payload[shape.request.size :])
                data = b""
            else:
                data = read_memory(self._session, access.address, access.length)
        except (RequestRefused, ProtocolError, OSError):
            return message
        payload = shape.reply.pack(access.address, access.length, tail=data) if shape.reply is not None else b""
        if message.wants_reply:
            reply = message.reply(payload)
            passing.afterwards(lambda: self._send(reply, passing.record))
        close_all(message.fds)  # those that came with it are nobody's
        return None

    def _send(self, reply: Message, pair: int) -> None:
        self._session.send(Direction.TO_SERVER, reply, pair=pair)


@dataclass
class _Vector:
    """One interrupt: the server signals `ours`, and we the client's."""

    ours: int
    clients: int


class CaptureInterrupts:
    """The stage of the direction to the server."""

    def __init__(self, session: ForwardedSession) -> None:
        self._session = session
        self._vectors: dict[tuple[int, int], _Vector] = {}
        self._set_irqs = session.dialect.number(Command.SET_IRQS)
        self.fired = 0
        session.add_stage(self, Direction.TO_SERVER)

    def __call__(self, passing: Passing) -> Message | None:
        """Put an eventfd of ours in the place of each that the client gives for a trigger; what cannot be read goes
        on as it is.
        """
        message = passing.message
        if message.is_reply or message.command != self._set_irqs:
            return message
        try:
            asked = at.IRQ_SET.unpack(message.payload)
        except ProtocolError:
            return message
        if asked.flags & _EVENTFD_TRIGGER == _EVENTFD_TRIGGER and message.fds:
            fds = [self._stand_in(asked.irq, asked.start + place, fd) for place, fd in enumerate(message.fds)]
            return replace(message, fds=fds)
        return message

    def _stand_in(self, index: int, vector: int, clients: int) -> int:
        """A descriptor for the server; `clients` is ours from now on."""
        self._drop(index, vector)
        try:
            ours = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        except OSError as error:
            return self._left_to_the_server(clients, error)
        try:
            servers = duplicate(ours)
        except OSError as error:
            os.close(ours)
            return self._left_to_the_server(clients, error)
        self._vectors[index, vector] = _Vector(ours, clients)
        self._session.loop.watch(ours, self._passer(index, vector))
        return servers

    def _left_to_the_server(self, clients: int, why: OSError) -> int:
        """One interrupt more than there are descriptors for goes past us."""
        self._session.note("interrupt-not-captured", why=why.strerror)
        return clients

    def _passer(self, index: int, vector: int) -> Callable[[int], None]:
        return lambda _: self._pass(index, vector)

    def _pass(self, index: int, vector: int) -> None:
        found = self._vectors[index, vector]
        try:
            count = os.eventfd_read(found.ours)
        except BlockingIOError:
            return
        self.fired += count
        signal_eventfd(found.clients, count)
        self._session.note("interrupt", index=index, vector=vector, count=count)

    def _drop(self, index: int, vector: int) -> None:
        if (old := self._vectors.pop((index, vector), None)) is not None:
            self._session.loop.forget(old.ours)
            os.close(old.ours)
            os.close(old.clients)

    def closed(self) -> None:
        """Stop looking at all vectors and close their eventfds."""
        for index, vector in list(self._vectors):
            self._drop(index, vector)
