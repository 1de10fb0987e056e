"""What goes in at one side comes out at the other: the same bytes, the same descriptors, the same end."""

from __future__ import annotations

import gc
import os
import random
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.cases import for_each
from tests.descriptors import fd_count
from tests.fuzzing_interposer import campaign
from tests.interposer_bench import Bench, Peer, answer, dma_map, kept_back, read, request, write
from userdev.relay import Outlet, Pump
from userdev.relay.direction import Direction
from userdev.trace.format import BOTH, View
from userdev.transport import Stream, close_all
from vfio_user.interposer.codec import CODEC, MessageHeader
from vfio_user.interposer.trace import MessageRecord, read_trace
from vfio_user.wire import DIALECTS, HEADER, Command, Dialect, Message


@pytest.fixture
def bench() -> Iterator[Bench]:
    with Bench() as bench:
        yield bench


def test_a_request_and_its_reply_arrive_unchanged(bench: Bench) -> None:
    bench.client.send(read(0, 0x10))
    asked = bench.server.receive()
    assert asked == read(0, 0x10)
    bench.server.send(answer(asked, b"\1\2\3\4"))
    assert bench.client.receive() == answer(asked, b"\1\2\3\4")


def test_requests_of_the_server_arrive_unchanged(bench: Bench) -> None:
    bench.server.send(request(Command.DMA_READ, bytes(16), id=3))
    assert bench.client.receive() == request(Command.DMA_READ, bytes(16), id=3)


def test_descriptors_arrive_with_the_message_they_were_sent_with(bench: Bench) -> None:
    """Messages without, with and again without descriptors, received by the interposer at one go."""
    memory = os.memfd_create("guest")
    event = os.eventfd(0)
    try:
        bench.client.send(write(0, 0, b"abcd", id=1))
        bench.client.send(dma_map(0, 4096, memory, id=2))
        bench.client.send(read(0, 0, id=3))
        bench.client.send(request(Command.SET_IRQS, bytes(20), id=4, fds=[event, event]))
        arrived = [bench.server.receive() for _ in range(4)]
        assert [message.id for message in arrived] == [1, 2, 3, 4]
        assert [len(message.fds) for message in arrived] == [0, 1, 0, 2]
        assert os.fstat(arrived[1].fds[0]).st_ino == os.fstat(memory).st_ino
        for message in arrived:
            for fd in message.fds:
                os.close(fd)
    finally:
        os.close(memory)
        os.close(event)


def test_forwarding_keeps_no_descriptor_open(bench: Bench) -> None:
    bench.negotiate()
    before = fd_count()
    event = os.eventfd(0)
    for _ in range(50):
        bench.exchange(request(Command.SET_IRQS, bytes(20), fds=[event]))
    os.close(event)
    assert fd_count() == before


def test_a_message_larger_than_any_buffer_arrives(bench: Bench) -> None:
    message = request(Command.MIG_DATA_WRITE, random.Random(1).randbytes(3 << 20)).encode()
    rest, arrived = memoryview(message), bytearray()
    while len(arrived) < len(message):
        rest = rest[_send_some(bench.client.socket, rest) :]
        bench.loop.turn(0)
        arrived += _take_some(bench.server.socket)
    assert arrived == message


def _send_some(sock: socket.socket, data: memoryview) -> int:
    try:
        return sock.send(data) if data else 0
    except BlockingIOError:
        return 0


def _take_some(sock: socket.socket) -> bytes:
    try:
        return sock.recv(1 << 20)
    except BlockingIOError:
        return b""


def test_a_header_that_a_client_sends_alone_arrives_alone(bench: Bench) -> None:
    """A client that stalls within a message is shown to the server as it is."""
    message = write(0, 8, b"wxyz").encode()
    bench.client.socket.send(message[:16])
    assert bench.server.receive_bytes(16) == message[:16]
    bench.client.socket.send(message[16:])
    assert bench.server.receive_bytes(len(message) - 16) == message[16:]
    bench.client.send(read(0, 0))
    assert bench.server.receive() == read(0, 0)


def test_a_message_that_a_server_sends_in_pieces_arrives_whole(bench: Bench) -> None:
    """Whatever the pieces are: a client waits for a message that has begun, and some do not survive that."""
    message = answer(read(0, 0), b"wxyz").encode()
    bench.client.send(read(0, 0))
    bench.server.receive()
    for at in range(len(message)):
        assert bench.client.is_silent()
        bench.server.socket.send(message[at : at + 1])
        bench.settle()
    assert _take_some(bench.client.socket) == message


def test_what_comes_with_more_descriptors_than_any_message_goes_on_as_bytes_without_them(bench: Bench) -> None:
    """Whether it has come whole or not."""
    pump = bench.session._relay.source(Direction.TO_SERVER).pump
    assert pump._framer is not None
    pump._framer.max_fds = 3
    data = write(0, 0, bytes(20)).encode()
    with open(os.devnull) as file:
        for at in range(0, 5 * 5, 5):
            bench.client.stream.send(data[at : at + 5], [file.fileno()])
            bench.settle()
        bench.client.stream.send(data[25:], [])
        assert bench.server.receive_bytes(len(data)) == data


def test_what_a_server_leaves_unfinished_does_not_arrive(bench: Bench) -> None:
    """It is in the trace, and counted."""
    message = answer(read(0, 0), b"wxyz").encode()
    bench.client.send(read(0, 0))
    bench.server.receive()
    bench.server.socket.send(message[:20])
    bench.server.socket.close()
    assert bench.client.at_end()
    assert bench.session.counters.unframed == 20


@pytest.mark.parametrize("seed", range(5))
def test_any_way_of_cutting_the_stream_arrives_the_same(bench: Bench, seed: int) -> None:
    chance = random.Random(seed)
    stream = b"".join(write(0, n, chance.randbytes(chance.randrange(200)), id=n).encode() for n in range(200))
    arrived = b""
    rest = stream
    while rest:
        count = chance.randrange(1, 400)
        bench.client.socket.send(rest[:count])
        rest = rest[count:]
        bench.settle()
        arrived += _take_some(bench.server.socket)
    assert arrived == stream


@pytest.mark.parametrize("parts", [1, 15, 16, 17, 31])
def test_a_request_that_was_sent_in_part_reaches_another_server_whole(bench: Bench, parts: int) -> None:
    """The one before has its beginning, and took it along."""
    whole = write(0, 4, b"data").encode()
    bench.client.stream.send(whole[:parts])
    assert bench.server.receive_bytes(parts) == whole[:parts]
    bench.session.lose_server()
    server, near = bench.pair()
    bench.session.replace_server(Stream(near))
    assert server.is_silent()
    bench.client.stream.send(whole[parts:])
    assert server.receive().encode() == whole
    bench.client.send(read(0, 0))
    assert server.receive() == read(0, 0)
    server.close()


@pytest.mark.parametrize("size", [0xFFFFFFFF, 100 << 20, 3])
def test_garbage_is_passed_through(bench: Bench, size: int) -> None:
    garbage = HEADER.pack(1, 9, size, 0, 0) + b"nothing that anyone could read"
    bench.client.send(read(0, 0))
    bench.client.socket.send(garbage)
    assert bench.server.receive_bytes(32 + len(garbage)) == read(0, 0).encode() + garbage
    bench.server.send(answer(read(0, 0), b"good"))
    assert bench.client.receive() == answer(read(0, 0), b"good")


def test_descriptors_that_come_with_garbage_are_passed_through_and_not_kept(bench: Bench) -> None:
    bench.negotiate()
    bench.client.socket.send(garbage := HEADER.pack(1, 9, 0xFFFFFFFF, 0, 0))
    assert bench.server.receive_bytes(len(garbage)) == garbage
    before, event = fd_count(), os.eventfd(0)
    bench.server.socket.setblocking(False)
    socket.send_fds(bench.client.socket, [b"more"], [event])
    data, fds = bench.until(lambda: _with_descriptors(bench.server.socket))
    assert (data, len(fds)) == (b"more", 1)
    close_all([event, *fds])
    assert fd_count() == before


def _with_descriptors(sock: socket.socket) -> tuple[bytes, list[int]] | None:
    try:
        data, fds, *_ = socket.recv_fds(sock, 100, 4)
    except BlockingIOError:
        return None
    return data, fds


@for_each(range(20))
def test_random_bytes_both_ways_neither_crash_nor_change(seed: int) -> None:
    chance = random.Random(seed)
    with Bench() as bench:
        for sender, receiver in [(bench.client, bench.server), (bench.server, bench.client)] * 3:
            noise = chance.randbytes(chance.randrange(1, 3000))
            sender.socket.send(noise)
            assert receiver.receive_bytes(len(noise)) == noise


@for_each(DIALECTS.values(), ids=lambda dialect: dialect.name)
def test_nearly_right_messages_with_everything_on_raise_nothing_and_leave_nothing_open(dialect: Dialect) -> None:
    gc.collect()
    before = fd_count()
    outcome = campaign(dialect, 300, seed=5)
    gc.collect()
    assert not outcome.wrong
    assert fd_count() == before


def test_a_half_close_is_passed_on_as_one(bench: Bench) -> None:
    bench.client.send(read(0, 0))
    bench.client.socket.shutdown(socket.SHUT_WR)
    asked = bench.server.receive()
    assert bench.server.at_end()
    bench.server.send(answer(asked, b"last"))
    assert bench.client.receive() == answer(asked, b"last")
    assert not bench.ended


@for_each(["client", "server"])
def test_the_death_of_either_side_is_passed_on(dies: str) -> None:
    with Bench() as bench:
        dying, left = (bench.client, bench.server) if dies == "client" else (bench.server, bench.client)
        dying.send(read(0, 0))
        dying.close()
        assert left.receive() == read(0, 0)
        assert left.at_end()
        bench.until(lambda: bench.ended or None)


@pytest.mark.parametrize("sender", ["client", "server"])
def test_a_peer_that_does_not_read_holds_the_other_up(bench: Bench, sender: str) -> None:
    """Back-pressure: memory stays bounded however much one side would like to send."""
    sending, taking = (bench.client, bench.server) if sender == "client" else (bench.server, bench.client)
    data = write(0, 0, bytes(4096), posted=True).encode()
    sent = 0
    while True:
        if n := _send_some(sending.socket, memoryview(data)):
            sent += n
            continue
        if not bench.loop.turn(0):
            break
    assert sent < 8 << 20
    arrived = 0
    while arrived < sent:
        bench.loop.turn(0)
        taken = len(_take_some(taking.socket))
        assert taken, f"{sent - arrived} bytes are lost"
        arrived += taken
    assert arrived == sent


def test_a_busy_session_ends_when_its_client_dies_unread(bench: Bench) -> None:
    """The client is gone while the server does not take what it sent: nothing spins, and all of it arrives."""
    data = write(0, 0, bytes(4096), posted=True).encode()
    sent = 0
    while (n := _send_some(bench.client.socket, memoryview(data))) or bench.loop.turn(0):
        sent += n
    bench.client.close()
    bench.settle()
    assert not bench.loop.turn(0.05)
    arrived = 0
    while arrived < sent:
        bench.loop.turn(0)
        arrived += len(_take_some(bench.server.socket))
    bench.until(lambda: bench.ended or None)


def test_the_model_is_of_what_the_server_accepted(bench: Bench) -> None:
    memory = os.memfd_create("guest")
    os.truncate(memory, 8192)
    bench.negotiate()
    bench.exchange(dma_map(0x1000, 4096, memory))
    bench.exchange(dma_map(0x9000, 4096, memory), errno=22)
    os.close(memory)
    model = bench.session.model
    (mapping,) = model.maps
    assert (mapping.iova, os.fstat(mapping.fd).st_size) == (0x1000, 8192)
    assert model.mapping(0x1FFF) == mapping
    assert model.mapping(0x2000) is None


# one pump by itself


Piped = tuple[Peer, Peer, Pump[Message, MessageHeader]]


@pytest.fixture
def piped(bench: Bench, request: pytest.FixtureRequest) -> Iterator[Piped]:
    """What a pump takes from, what it sends to, and the pump: towards the client, unless a test says otherwise."""
    (source, near_source), (sink, near_sink) = bench.pair(), bench.pair()
    for near in (near_source, near_sink):
        near.setblocking(False)
    direction = getattr(request, "param", Direction.TO_CLIENT)
    pump = Pump(CODEC, direction, Stream(near_source), Outlet(Stream(near_sink)), bench.session)
    yield source, sink, pump
    pump.close()
    for end in (source, sink, near_source, near_sink):
        end.close()


@pytest.mark.parametrize("piped", [Direction.TO_SERVER], indirect=True)
def test_a_part_of_a_request_is_not_kept_until_the_rest_comes(piped: Piped) -> None:
    source, sink, pump = piped
    whole = request(Command.REGION_READ, bytes(16)).encode()
    source.socket.send(whole[:7])
    pump.ready()
    assert sink.receive_bytes(7) == whole[:7]
    source.socket.send(whole[7:])
    pump.ready()
    assert sink.receive_bytes(len(whole) - 7) == whole[7:]


def test_a_source_that_ends_is_noticed(piped: Piped) -> None:
    source, _, pump = piped
    source.socket.close()
    pump.ready()
    assert pump.ended


def test_a_source_that_is_never_empty_leaves_others_their_turn(piped: Piped, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is always a part of a next message; the other direction, timers and controllers wait meanwhile."""
    _, _, pump = piped
    whole, piece = request(Command.REGION_WRITE, bytes(1009 - HEADER.size)).encode(), 700
    sent = reads = 0

    def receive(room: memoryview) -> tuple[int, list[int]]:
        nonlocal reads
        assert reads < 1000, "nobody else has had a turn"
        at = piece * reads % len(whole)
        room[:piece] = (whole * 2)[at : at + piece]
        reads += 1
        return piece, []

    def send(data: memoryview) -> None:
        nonlocal sent
        sent += len(data)

    monkeypatch.setattr(pump.source, "receive", receive)
    monkeypatch.setattr(pump.outlet, "send", send)
    for _ in range(3):
        pump.ready()
    assert sent == piece * reads // len(whole) * len(whole), "each whole message goes on, and none twice"


def test_a_source_is_not_read_on_in_the_middle_of_a_message_where_enough_is_kept(
    piped: Piped, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What has come is sent on; the rest waits until there is room."""
    source, sink, pump = piped
    monkeypatch.setattr(bench.session, "overfull", lambda _: True)
    whole = request(Command.REGION_READ, bytes(16)).encode()
    source.socket.send(whole + whole[:7])
    reads: list[None] = []
    receive = pump.source.receive

    def counted(room: memoryview) -> tuple[int, list[int]]:
        reads.append(None)
        return receive(room)

    monkeypatch.setattr(pump.source, "receive", counted)
    pump.ready()
    assert sink.receive_bytes(len(whole)) == whole
    assert len(reads) == 1


@pytest.mark.parametrize("end", [socket.SHUT_WR, socket.SHUT_RDWR])
def test_a_server_that_ends_with_its_reply_loses_neither(bench: Bench, end: int) -> None:
    """Request, reply, and the end right behind it are there at once."""
    reply = answer(read(0, 4), b"last")
    bench.client.send(read(0, 4))
    bench.server.send(reply)
    bench.server.socket.shutdown(end)
    assert bench.client.receive() == reply
    assert bench.client.at_end()


def test_requests_that_are_held_are_bounded_and_none_is_lost(bench: Bench) -> None:
    bench.session.holding.hold()
    kept_back(bench, bench.session.holding.resume)


def test_a_session_that_ends_with_something_unread_resets_neither_peer(bench: Bench) -> None:
    """A server that gave up, say. The known issue connection-abort."""
    bench.client.send(read(0, 0))
    bench.server.send(request(Command.DMA_READ, bytes(16)))
    bench.session.close()
    assert (bench.client.socket.recv(1), bench.server.socket.recv(1)) == (b"", b"")


def test_what_a_client_has_sent_of_a_message_reaches_a_server_that_is_slow_though_the_client_has_gone() -> None:
    """All that the client's end would have left in the server's own socket."""
    with Bench() as bench:
        bench.negotiate()
        near = bench.session._relay.server.stream.socket
        near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4608)
        part = write(0, 0, bytes(range(256)) * 400).encode()[:60_000]
        bench.client.socket.sendall(part)
        bench.client.close()
        bench.settle()
        assert bench.server.receive_bytes(len(part)) == part
        assert bench.server.at_end()


@pytest.mark.parametrize("stopped", ["client", "server"])
def test_what_a_peer_takes_no_more_is_recorded_as_received_and_not_as_sent(stopped: str, tmp_path: Path) -> None:
    """One that has shut its reading side, and speaks on; whatever way a message takes."""
    with Bench(trace=tmp_path / "trace") as bench:
        deaf, other = (bench.client, bench.server) if stopped == "client" else (bench.server, bench.client)
        other.send(read(0, 0, id=1))
        assert deaf.receive().id == 1
        deaf.socket.shutdown(socket.SHUT_RD)
        memory = os.memfd_create("given", os.MFD_CLOEXEC)
        for message in (read(0, 0, id=2), replace(read(0, 0, id=3), fds=[memory])):
            other.send(message)
            bench.settle()
        os.close(memory)
        deaf.send(read(0, 0, id=4))
        assert other.receive().id == 4
    views = {
        entry.message.id: entry.view
        for entry in read_trace(tmp_path / "trace").entries
        if isinstance(entry, MessageRecord)
    }
    assert views == {1: BOTH, 2: View.RECEIVED, 3: View.RECEIVED, 4: BOTH}
