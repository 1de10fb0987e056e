"""Relay and trace know no protocol: one whose header is of another size, and has no ids, is relayed and recorded."""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import pytest

from userdev import trace
from userdev.errors import UserError
from userdev.relay import Codec, Direction, Loop, Relay
from userdev.transport import Stream, close_all
from vfio_user.interposer.trace import read_trace

T = TypeVar("T")
HEADER = struct.Struct("<III")


@dataclass
class Memo:
    """A message: a number, flags, and the size of what follows."""

    header_size: ClassVar[int] = HEADER.size
    max_size: ClassVar[int] = 4096

    number: int
    payload: bytes = b""
    fds: list[int] = field(default_factory=list)

    @classmethod
    def size_at(cls, buffer: bytearray, at: int) -> int:
        return HEADER.size + int(HEADER.unpack_from(buffer, at)[2])

    @classmethod
    def decode(cls, buffer: bytes | bytearray, at: int, payload: bytes, fds: list[int]) -> Memo:
        return cls(HEADER.unpack_from(buffer, at)[0], payload, fds)

    def encode(self) -> bytes:
        return HEADER.pack(self.number, 0, len(self.payload)) + self.payload


def split(view: memoryview, at: int, end: int) -> tuple[list[tuple[int, memoryview]], int]:
    found = []
    while end - at >= HEADER.size:
        number, _, size = HEADER.unpack_from(view, at)
        after = at + HEADER.size + int(size)
        if after > end:
            break
        found.append((int(number), view[at:after]))
        at = after
    return found, at


@dataclass(frozen=True)
class Record(trace.TraceRecord[Memo]):
    """A message as it was recorded."""


NOTES = Codec(Memo, split, max_message=4096)
TRACED = trace.TracedProtocol("notes", Memo, HEADER.size, Record)


class Recorder:
    """The relay's owner: writes down what passes."""

    def __init__(self, path: Path) -> None:
        self.trace = trace.TraceWriter(path, "notes", {})
        self.numbers: list[int] = []
        self.delivered: list[Memo] = []
        self.closed = False
        self.relay: Relay[Memo, int] | None = None

    def passed(self, direction: Direction, header: int, data: memoryview) -> None:
        self.numbers.append(header)
        self.trace.passed(direction, data)

    def observe(self, direction: Direction, message: Memo) -> None:
        self.numbers.append(message.number)
        self.trace.message(direction, trace.View.RECEIVED | trace.View.SENT, message)

    def deliver(self, direction: Direction, message: Memo) -> None:
        self.delivered.append(message)

    def unframed(self, direction: Direction, data: bytes, why: str) -> None:
        self.trace.raw(direction, data)

    def lost(self, direction: Direction, header: Memo) -> None:
        raise AssertionError("no descriptors are lost here")

    def ended(self, direction: Direction) -> None:
        assert self.relay is not None
        self.relay.towards(direction).outlet.end()
        self.relay.update_peer(self.relay.source(direction))

    def overfull(self, direction: Direction) -> bool:
        return False

    def close(self) -> None:
        self.closed = True


class Bench:
    """Two peers with a relay between them, in one thread."""

    def __init__(self, path: Path) -> None:
        self.loop = Loop()
        self.client, near_client = socket.socketpair()
        self.server, near_server = socket.socketpair()
        self.recorder = Recorder(path)
        self.relay = Relay(NOTES, self.loop, Stream(near_client), Stream(near_server), self.recorder)
        self.recorder.relay = self.relay
        self.relay.start()
        for end in (self.client, self.server):
            end.setblocking(False)

    def until(self, found: Callable[[], T | None]) -> T:
        end = time.monotonic() + 60
        while (result := found()) is None:
            assert time.monotonic() < end
            self.loop.turn(0.02)
        return result

    def receive(self, end: socket.socket) -> tuple[bytes, list[int]]:
        def there() -> tuple[bytes, list[int]] | None:
            try:
                data, fds, _, _ = socket.recv_fds(end, 4096, 4)
            except BlockingIOError:
                return None
            return data, list(fds)

        return self.until(there)

    def close(self) -> None:
        self.relay.close()
        self.recorder.trace.close()
        self.client.close()
        self.server.close()
        self.loop.close()


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path / "trace")
    yield bench
    bench.close()


def test_what_passes_is_sent_on_and_shown_with_its_header(bench: Bench) -> None:
    bench.client.sendall(Memo(1, b"one").encode() + Memo(2, b"two").encode())
    assert bench.receive(bench.server)[0] == Memo(1, b"one").encode() + Memo(2, b"two").encode()
    bench.server.sendall(Memo(3).encode())
    assert bench.receive(bench.client)[0] == Memo(3).encode()
    assert bench.recorder.numbers == [1, 2, 3]


def test_descriptors_go_with_their_message(bench: Bench) -> None:
    read, write = os.pipe()
    socket.send_fds(bench.client, [Memo(1, b"fd").encode()], [write])
    data, fds = bench.receive(bench.server)
    assert data == Memo(1, b"fd").encode()
    os.write(fds[0], b"here")
    assert os.read(read, 4) == b"here"
    close_all([read, write, *fds])


def test_a_message_is_handed_over_where_somebody_wants_it_first(bench: Bench) -> None:
    bench.relay.client.pump.intercept = True
    bench.client.sendall(Memo(1, b"mine").encode())
    bench.until(lambda: bench.recorder.delivered or None)
    assert bench.recorder.delivered == [Memo(1, b"mine")]
    with pytest.raises(BlockingIOError):
        bench.server.recv(1)


def test_a_message_towards_the_client_goes_on_when_it_is_whole(bench: Bench) -> None:
    data = Memo(1, b"in two pieces").encode()
    bench.server.sendall(data[:14])
    bench.loop.turn(0.02)
    with pytest.raises(BlockingIOError):
        bench.client.recv(1)
    bench.server.sendall(data[14:])
    assert bench.receive(bench.client)[0] == data


def test_another_server_that_stops_within_a_message_keeps_nobody_waiting(bench: Bench) -> None:
    """Nor does its connection, whatever that was made for."""
    bench.server.close()
    bench.server, near = socket.socketpair()
    near.settimeout(0.2)
    bench.relay.replace_server(Stream(near))
    bench.relay.update()
    data = Memo(1, b"in two pieces").encode()
    bench.server.sendall(data[:14])
    assert bench.loop.turn(0.02)
    bench.server.sendall(data[14:])
    assert bench.receive(bench.client)[0] == data


def test_its_end_is_the_other_sides(bench: Bench) -> None:
    bench.server.close()
    assert bench.receive(bench.client) == (b"", [])
    bench.client.close()
    bench.until(lambda: bench.recorder.closed or None)


def test_its_trace_is_read_back_as_its_messages(bench: Bench, tmp_path: Path) -> None:
    bench.client.sendall(Memo(7, b"kept").encode())
    bench.receive(bench.server)
    bench.server.sendall(b"x")
    bench.server.close()
    bench.receive(bench.client)
    bench.close()
    found: trace.Trace[Any] = trace.read_trace(tmp_path / "trace", TRACED)
    assert found.header.protocol == "notes"
    assert [entry.message for entry in found.entries if isinstance(entry, Record)] == [Memo(7, b"kept")]
    assert [entry.data for entry in found.entries if isinstance(entry, trace.Raw)] == [b"x"]


def test_a_trace_of_another_protocol_is_refused_by_its_name(bench: Bench, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a trace of notes, and not of vfio-user"):
        read_trace(tmp_path / "trace")
