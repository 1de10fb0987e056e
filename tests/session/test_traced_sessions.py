"""A server that records its own sessions writes what an interposer would: all messages, in order, in pairs."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from time import monotonic_ns

import pytest

from tests.conftest import PATIENCE
from tests.everything_device import Everything
from tests.processes import until
from tests.session_kit import GUEST, Prober, comes_to_read, message_memory
from userdev.descriptors import FdKind
from userdev.relay.direction import Direction
from userdev.trace import Note, TraceWriter
from userdev.transport import Framer, Stream, close_all, connect
from vfio_user.client import Client, GuestMemory, RemoteError
from vfio_user.device import Quiesce
from vfio_user.interposer.trace import MessageRecord, read_trace
from vfio_user.server import Server, serve
from vfio_user.wire import CURRENT, NO_REPLY, Capabilities, Command, Message, encode_version
from vfio_user.wire.layouts import DMA_MAP, REGION_ACCESS, REGION_INFO

TO_SERVER, TO_CLIENT = Direction


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    return tmp_path / "trace"


@pytest.fixture
def traced(device: Prober, tmp_path: Path, trace: Path) -> Iterator[Server]:
    writer = TraceWriter(trace, "vfio-user", {"dialect": CURRENT.name})
    with Server(device, str(tmp_path / "traced"), trace=writer) as server:
        yield server
    writer.close()


def recorded(trace: Path) -> list[MessageRecord]:
    return [entry for entry in read_trace(trace).entries if isinstance(entry, MessageRecord)]


def negotiated(server: Server) -> Stream:
    """A connection with nothing but VERSION behind it."""
    proposal = Message(1, CURRENT.number(Command.VERSION), payload=encode_version(CURRENT, 0, Capabilities()))
    stream, framer = connect(str(server.listener.address)), Framer(Message)
    stream.send(proposal.encode())
    while framer.next() is None:
        framer.received(*stream.receive(framer.room()))
    return stream


def test_a_program_that_serves_records_where_it_is_told_to(
    device: Prober, tmp_path: Path, trace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(make: Callable[[Callable[[], None]], Server], _: str | None) -> None:
        with make(lambda: None) as server:
            Client.connect(str(server.listener.address)).close()

    monkeypatch.setattr("vfio_user.server.server.run", run)
    serve(device, str(tmp_path / "served"), trace=str(trace))
    assert recorded(trace)[0].message.command == CURRENT.number(Command.VERSION)


def access(command: Command, id: int, offset: int, data: bytes = b"", flags: int = 0, count: int = 4) -> Message:
    return Message(id, CURRENT.number(command), flags, payload=REGION_ACCESS.pack(offset, 0, count, tail=data))


def test_each_request_is_recorded_with_its_reply_whichever_way_it_went(traced: Server, trace: Path) -> None:
    with Client.connect(str(traced.listener.address)) as client, GuestMemory(4096) as mapped:
        client.dma_map(0x10000, mapped)
        memory = message_memory(client)
        memory.view[:4] = (77).to_bytes(4, "little")
        client.store(0, 0, 4, 5)
        assert client.load(0, 0, 4) == 5
        assert client.region_read(0, 1, 2) == b"\0\0"
        with pytest.raises(RemoteError):
            client.region_read(77, 0, 4)
        client.store(0, 8, 8, GUEST)
        assert comes_to_read(client, 8, 8, 77)
        memory.close()
    traced.close()
    records = recorded(trace)
    by_number = {record.number: record for record in records}
    for record in records:
        if record.message.is_reply:
            asked = by_number[record.pair]
            assert (asked.message.id, asked.message.command) == (record.message.id, record.message.command)
            assert asked.direction is record.direction.opposite
    wanting = [record.number for record in records if record.message.wants_reply]
    assert sorted(record.pair for record in records if record.message.is_reply) == wanting
    commands = {record.message.command for record in records if record.direction is TO_CLIENT and not record.pair}
    assert commands == {CURRENT.number(Command.DMA_READ)}
    maps = [record for record in records if record.message.command == CURRENT.number(Command.DMA_MAP)]
    assert [[fd.kind for fd in record.fds] for record in maps] == [[FdKind.MEMFD], [], [], []]


@pytest.mark.parametrize("piece", [7, 48])
def test_what_comes_in_pieces_or_with_descriptors_in_between_is_recorded_as_it_came(
    traced: Server, trace: Path, piece: int
) -> None:
    proposal = Message(1, CURRENT.number(Command.VERSION), payload=encode_version(CURRENT, 0, Capabilities()))
    sent = [proposal, *(access(Command.REGION_WRITE, id, 0, bytes(4), NO_REPLY) for id in range(2, 9))]
    mapped = Message(9, CURRENT.number(Command.DMA_MAP), payload=DMA_MAP.pack(32, 3, 0, GUEST, 4096))
    behind = [access(Command.REGION_READ, 10, 0), access(Command.REGION_READ, 11, 1, count=2)]
    last = access(Command.REGION_READ, 12, 0)
    file = os.memfd_create("guest")
    os.truncate(file, 4096)
    with closing(connect(str(traced.listener.address))) as stream:
        stream.send(b"".join(message.encode() for message in sent))
        stream.send(mapped.encode()[:piece], [file])
        rest = mapped.encode()[piece:] + b"".join(message.encode() for message in behind)
        stream.send(rest + last.encode()[:7])
        stream.send(last.encode()[7:])
        framer, replies = Framer(Message), 0
        while replies < 5:  # VERSION, DMA_MAP, and three reads
            framer.received(*stream.receive(framer.room()))
            replies += len(list(framer.messages()))
    os.close(file)
    traced.close()
    came = [record.message for record in recorded(trace) if record.direction is TO_SERVER]
    assert [message.encode() for message in came] == [message.encode() for message in [*sent, mapped, *behind, last]]


def test_a_size_that_cannot_be_right_stops_no_recording(traced: Server, trace: Path) -> None:
    proposal = Message(1, CURRENT.number(Command.VERSION), payload=encode_version(CURRENT, 0, Capabilities()))
    wrong = Message(2, CURRENT.number(Command.REGION_READ)).encode()
    with closing(connect(str(traced.listener.address))) as stream:
        stream.send(proposal.encode() + wrong[:4] + (7).to_bytes(4, "little") + wrong[8:])
        framer, seen = Framer(Message), list[Message]()
        for id in range(3, 6):
            stream.send(access(Command.REGION_READ, id, 0).encode())
            while not seen or seen[-1].id != id:
                framer.received(*stream.receive(framer.room()))
                seen += framer.messages()
    traced.close()
    answered = [record.message.id for record in recorded(trace) if record.message.is_reply]
    assert answered == [1, 2, 3, 4, 5]
    assert [record.message.id for record in recorded(trace) if record.direction is TO_SERVER][-2:] == [4, 5]


def test_what_comes_in_one_piece_with_a_size_that_cannot_be_right_is_recorded(traced: Server, trace: Path) -> None:
    wrong = Message(2, CURRENT.number(Command.REGION_READ)).encode()
    behind = access(Command.REGION_READ, 3, 1, count=2)
    with closing(negotiated(traced)) as stream:
        stream.send(wrong[:4] + (7).to_bytes(4, "little") + wrong[8:] + behind.encode())
        framer, seen = Framer(Message), list[Message]()
        while not seen or seen[-1].id != 3:
            framer.received(*stream.receive(framer.room()))
            seen += framer.messages()
    traced.close()
    assert [record.message.id for record in recorded(trace) if record.direction is TO_SERVER] == [1, 3]


class Stamped(dict[int, int]):
    """Notes when something was put in."""

    at = 0

    def __setitem__(self, key: int, value: int) -> None:
        self.at = monotonic_ns()
        super().__setitem__(key, value)


def test_a_request_is_recorded_with_the_time_at_which_it_came(traced: Server, trace: Path, device: Prober) -> None:
    served = device.fetched = Stamped()
    with Client.connect(str(traced.listener.address)) as client, GuestMemory(4096) as mapped:
        client.dma_map(GUEST, mapped)
        client.store(0, 8, 8, GUEST)
    traced.close()
    request, reply = recorded(trace)[-2:]
    assert request.time < served.at < reply.time


def test_descriptors_that_go_out_are_recorded_with_their_message(tmp_path: Path, trace: Path) -> None:
    """BAR 2 of this device may be mapped, BAR 0 not."""
    writer = TraceWriter(trace, "vfio-user", {"dialect": CURRENT.name})
    with (
        closing(Everything()) as device,
        Server(device, str(tmp_path / "s"), trace=writer) as server,
        closing(negotiated(server)) as stream,
    ):
        framer = Framer(Message)
        for bar in (0, 2):
            ask = REGION_INFO.pack(4096, 0, bar, 0, 0, 0)
            stream.send(Message(2 + bar, CURRENT.number(Command.GET_REGION_INFO), payload=ask).encode())
            while (reply := framer.next()) is None:
                framer.received(*stream.receive(framer.room()))
            close_all(reply.fds)
    writer.close()
    replies = [record for record in recorded(trace) if record.message.is_reply]
    assert [len(record.fds) for record in replies] == [0, 0, 1]
    assert replies[-1].fds[0].kind is FdKind.MEMFD


def test_what_came_in_the_turn_that_ends_a_session_is_recorded(traced: Server, trace: Path) -> None:
    posted = access(Command.REGION_WRITE, 2, 0, bytes(4), NO_REPLY).encode()
    endless = Message(3, CURRENT.number(Command.REGION_READ), NO_REPLY).encode()
    with closing(negotiated(traced)) as stream:
        stream.send(posted + endless[:4] + (1 << 31).to_bytes(4, "little") + endless[8:])
        assert stream.receive(memoryview(bytearray(16)))[0] == 0
    traced.close()
    assert [record.message.id for record in recorded(trace) if record.direction is TO_SERVER] == [1, 2]


class Conversation:
    """A client that has said VERSION, and sends what it likes in one piece."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._framer = Framer(Message)
        self.say(Message(1, CURRENT.number(Command.VERSION), payload=encode_version(CURRENT, 0, Capabilities())))
        self.answers(1)

    def say(self, *messages: Message | bytes) -> None:
        self._stream.send(b"".join(each if isinstance(each, bytes) else each.encode() for each in messages))

    def answers(self, count: int) -> list[int]:
        """The ids of so many replies."""
        found: list[int] = []
        while len(found) < count:
            self._framer.received(*self._stream.receive(self._framer.room()))
            found += [message.id for message in self._framer.messages()]
        return found


def test_registers_behind_what_was_no_message_are_recorded(traced: Server, trace: Path) -> None:
    """The recording has stopped before it; nobody but the framer knows that the stream goes on behind it."""
    wrong = Message(2, CURRENT.number(Command.REGION_READ)).encode()
    with closing(connect(str(traced.listener.address))) as stream:
        client = Conversation(stream)
        client.say(wrong[:4] + (7).to_bytes(4, "little") + wrong[8:])
        assert client.answers(1) == [2]
        for id in (3, 4):
            client.say(access(Command.REGION_READ, id, 0))
            assert client.answers(1) == [id]
    traced.close()
    assert [record.message.id for record in recorded(trace) if record.direction is TO_SERVER] == [1, 3, 4]


def test_what_waits_while_more_comes_is_recorded_once(
    traced: Server, trace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, busy = threading.Event(), Quiesce()

    def on_quiesce(prober: Prober) -> Quiesce:
        asked.set()
        return busy

    monkeypatch.setattr(Prober, "on_quiesce", on_quiesce)
    with closing(connect(str(traced.listener.address))) as stream:
        client = Conversation(stream)
        client.say(Message(2, CURRENT.number(Command.DEVICE_RESET)), access(Command.REGION_READ, 3, 0))
        assert asked.wait(PATIENCE)
        client.say(access(Command.REGION_READ, 4, 0))
        session = traced._session
        assert session is not None
        until(lambda: len(session._backlog) == 2)
        busy.done()
        assert client.answers(3) == [2, 3, 4]
    traced.close()
    assert [record.message.id for record in recorded(trace) if record.direction is TO_SERVER] == [1, 2, 3, 4]


def test_clients_that_come_and_go_are_in_one_trace(traced: Server, trace: Path) -> None:
    for _ in range(2):
        with Client.connect(str(traced.listener.address)) as client:
            client.load(0, 0, 4)
    traced.close()
    notes = [entry.event for entry in read_trace(trace).entries if isinstance(entry, Note)]
    assert notes == ["connected", "disconnected"] * 2
