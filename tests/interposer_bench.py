"""A session on the test bench: scripted peers on socketpairs, and a loop that the test itself turns."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any, Generic, Protocol, Self, TypeVar

import pytest

from userdev.interposer.session import BaseSession
from userdev.relay.backlog import MAX_BYTES
from userdev.relay.loop import Future, Loop, Task
from userdev.trace import TraceWriter
from userdev.transport import Framed, Framer, Stream, close_all
from vfio_user.interposer.session import ForwardedSession
from vfio_user.interposer.trace.files import NAME
from vfio_user.wire import CURRENT, HEADER_SIZE, NO_REPLY, REPLY, Command, Dialect, Message
from vfio_user.wire import layouts as at

T = TypeVar("T")
DEADLINE = 60.0


class Carried(Framed, Protocol):
    """A message of either protocol."""

    fds: list[int]

    def encode(self) -> bytes:
        """Its bytes."""


M = TypeVar("M", bound=Carried)


class AnyPeer(Generic[M]):
    """One end of a session: sends what it is told, and receives messages with a deadline."""

    def __init__(self, bench: Looped, sock: socket.socket, kind: type[M]) -> None:
        self.socket = sock
        self.stream = Stream(sock)
        self.framer = Framer(kind, max_message=70 << 20, max_fds=1024)
        self.bench = bench
        sock.setblocking(False)

    def send(self, message: M) -> None:
        self.stream.send(message.encode(), message.fds)

    def receive(self) -> M:
        """The next message that arrives."""
        return self.bench.until(self.next)

    def receive_bytes(self, count: int) -> bytes:
        """Exactly so many bytes, whatever they are."""
        framer = self.framer
        found = framer.buffer[framer.start : framer.end][:count]
        framer.start += len(found)

        def enough() -> bool | None:
            if len(found) == count:
                return True
            try:
                found.extend(self.socket.recv(count - len(found)))
            except BlockingIOError:
                return None
            return len(found) == count or None

        self.bench.until(enough)
        return bytes(found)

    def at_end(self) -> bool:
        """Wait for the end of the stream; False where a message comes instead."""
        return self.bench.until(self._end)

    def is_silent(self) -> bool:
        """Whether nothing is there once the interposer has nothing more to do."""
        self.bench.settle()
        return self.next() is None

    def close(self) -> None:
        self.framer.close()
        self.socket.close()

    def next(self) -> M | None:
        """The next message where one has come whole."""
        if (message := self.framer.next()) is not None:
            return message
        try:
            count, fds = self.stream.receive(self.framer.room())
        except BlockingIOError:
            return None
        assert count, "the stream has ended where a message was expected"
        self.framer.received(count, fds)
        return self.framer.next()

    def take_all(self) -> None:
        """Take what is there, and the descriptors with it."""
        room = memoryview(bytearray(1 << 20))
        with suppress(OSError):
            while True:
                count, fds = self.stream.receive(room)
                close_all(fds)
                if not count:
                    return

    def _end(self) -> bool | None:
        try:
            return not self.socket.recv(1)
        except BlockingIOError:
            return None
        except ConnectionResetError:
            return True


class Looped:
    """A loop that the test turns, and what is waited for by turning it."""

    most_idle: int | None = None
    """Turns of 20 ms in which nothing happens, after which nothing will; None: somebody else may yet do something."""

    def __init__(self) -> None:
        self.loop = Loop()

    def until(self, found: Callable[[], T | None]) -> T:
        """Turn the loop until `found` returns something."""
        deadline, idle = time.monotonic() + DEADLINE, 0
        while (result := found()) is None:
            assert time.monotonic() < deadline, "nothing came within the deadline"
            idle = 0 if self.loop.turn(0.02) else idle + 1
            assert self.most_idle is None or idle < self.most_idle, "nothing happens any more"
        return result

    def run(self, coroutine: Coroutine[Future[Any], None, T]) -> T:
        """Turn the loop until the coroutine has returned."""
        task = Task(coroutine)
        self.until(lambda: task.done or None)
        return task.result()

    def settle(self) -> None:
        """Turn the loop until it has nothing to do."""
        while self.loop.turn(0):
            pass


class SessionBench(Looped):
    """A session, and the peers at its ends."""

    trace: TraceWriter | None
    session: BaseSession[Any, Any]
    ended = False

    def peers(self) -> list[AnyPeer[Any]]:
        """Both ends."""
        raise NotImplementedError

    def close(self) -> None:
        self.session.close()
        if self.trace is not None:
            self.trace.close()
        for peer in self.peers():
            peer.close()
        self.loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _end(self) -> None:
        self.ended = True


Peer = AnyPeer[Message]


class Bench(SessionBench):
    """Client, session and server in one thread. `until` turns the loop."""

    session: ForwardedSession

    def __init__(self, *, dialect: Dialect = CURRENT, trace: Path | None = None) -> None:
        super().__init__()
        self.trace = TraceWriter(trace, NAME, {"dialect": dialect.name}) if trace is not None else None
        if self.trace is not None:
            self.loop.at_end_of_turn(self.trace.flush)
        self.client, near_client = self.pair()
        self.server, near_server = self.pair()
        self.session = ForwardedSession(
            self.loop, Stream(near_client), Stream(near_server), dialect, trace=self.trace, on_end=self._end
        )
        self.session.start()

    def pair(self) -> tuple[Peer, socket.socket]:
        """A peer, and the socket at its other end."""
        far, near = socket.socketpair()
        return AnyPeer(self, far, Message), near

    def negotiate(self) -> None:
        """VERSION, as QEMU and our server do it."""
        text = b'{"capabilities":{"max_msg_fds":16}}\0'
        self.client.send(request(Command.VERSION, at.VERSION.pack(0, 0, tail=text), id=1))
        self.server.send(self.server.receive().reply(at.VERSION.pack(0, 0, tail=text)))
        assert self.client.receive().is_reply

    def exchange(self, message: Message, payload: bytes = b"", errno: int = 0) -> Message:
        """The client asks, the server answers; returns the request as the server got it, its descriptors closed."""
        self.client.send(message)
        asked = self.server.receive()
        close_all(asked.fds)
        self.server.send(asked.error(errno) if errno else asked.reply(payload))
        self.client.receive()
        return asked

    def peers(self) -> list[AnyPeer[Any]]:
        return [self.client, self.server]


def request(
    command: Command, payload: bytes = b"", *, id: int = 7, fds: list[int] | None = None, posted: bool = False
) -> Message:
    """A request of the current dialect."""
    return Message(id, CURRENT.number(command), NO_REPLY if posted else 0, 0, payload, fds or [])


def read(region: int, offset: int, size: int = 4, *, id: int = 7) -> Message:
    return request(Command.REGION_READ, at.REGION_ACCESS.pack(offset, region, size), id=id)


def write(region: int, offset: int, data: bytes, *, id: int = 7, posted: bool = False) -> Message:
    access = at.REGION_ACCESS.pack(offset, region, len(data), tail=data)
    return request(Command.REGION_WRITE, access, id=id, posted=posted)


def dma_map(
    iova: int, size: int, fd: int | None = None, *, id: int = 7, offset: int = 0, posted: bool = False
) -> Message:
    payload = at.DMA_MAP.pack(at.DMA_MAP.size, 3, offset, iova, size)
    return request(Command.DMA_MAP, payload, id=id, fds=[] if fd is None else [fd], posted=posted)


def answer(asked: Message, data: bytes) -> Message:
    """The reply to a REGION_READ."""
    return asked.reply(asked.payload[:16] + data)


__all__ = ["REPLY", "Bench", "Peer", "answer", "dma_map", "read", "request", "write"]


class BulkWrites:
    """Posted writes of these sizes, their places in line as ids, given to a socket as it takes them."""

    def __init__(self, sock: socket.socket, sizes: list[int]) -> None:
        self._socket = sock
        self._rest = [write(0, 0, bytes(size), id=number, posted=True).encode() for number, size in enumerate(sizes)]
        self._at = 0
        self.sent = 0

    def go_on(self) -> bool:
        """False when all is sent, or the socket takes no more."""
        if not self._rest:
            return False
        try:
            taken = self._socket.send(memoryview(self._rest[0])[self._at :])
        except BlockingIOError:
            return False
        self.sent += taken
        self._at += taken
        if self._at == len(self._rest[0]):
            self._rest.pop(0)
            self._at = 0
        return True


def kept_back(bench: Bench, let_go: Callable[[], object]) -> None:
    """Send more than the session keeps back, an eighth of what it may: the client's socket takes no more, as with a
    server that is busy. After `let_go` everything arrives in order.
    """
    count, size, most = 40, 512 << 10, MAX_BYTES // 8
    sending = BulkWrites(bench.client.socket, [size] * count)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("userdev.relay.backlog.MAX_BYTES", most)
        while sending.go_on():
            bench.settle()
    assert most // 2 < sending.sent < most + (2 << 20)
    let_go()

    def next_arrival() -> Message | None:
        sending.go_on()
        return bench.server.next()

    for number in range(count):
        message = bench.until(next_arrival)
        assert (message.id, message.size) == (number, HEADER_SIZE + at.REGION_ACCESS.size + size)
    assert bench.server.is_silent()
