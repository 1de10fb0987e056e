"""What is exactly at a limit is served, one more is refused and changes nothing; and who may wait for how long."""

from __future__ import annotations

import errno
import socket
import struct
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.everything_device import Everything
from tests.session_kit import GUEST, Prober, comes_to_read, message_memory
from userdev.busy_wait import BusyWait
from userdev.errors import ProtocolError
from userdev.transport import Stream, close_all, connect
from vfio_user.client import Client, Disconnected, GuestMemory, RemoteError
from vfio_user.server import Offer, Server
from vfio_user.server import server as program
from vfio_user.server.connection import ServerConnection
from vfio_user.wire import CURRENT, HEADER_SIZE, Capabilities, Command, Message, encode_version
from vfio_user.wire.constants import UnmapFlags
from vfio_user.wire.layouts import BITMAP, DMA_UNMAP, IRQ_INFO, REGION_ACCESS, REGION_IO_FDS, WRITE_MULTI

ADD, FETCH = 0, 8
SIZE = 0x10000


def refused(client: Client, command: Command, payload: bytes) -> int:
    """The errno of a request that must be refused."""
    with pytest.raises(RemoteError) as refusal:
        client.request(command, payload)
    return refusal.value.errno


def writes(*entries: tuple[int, int, bytes], count: int | None = None) -> bytes:
    """A request with several writes to region 0: offset, length, data."""
    packed = [struct.pack("<QII8s", offset, 0, length, data) for offset, length, data in entries]
    return WRITE_MULTI.pack(len(entries) if count is None else count) + b"".join(packed)


def number(value: int, width: int = 4) -> bytes:
    return value.to_bytes(width, "little")


def test_several_writes_in_one_message_take_effect_in_their_order(device: Prober, client: Client) -> None:
    reply = client.request(Command.REGION_WRITE_MULTI, writes(*((ADD, 4, number(digit)) for digit in (1, 2, 3))))
    assert WRITE_MULTI.unpack(reply.payload).nr_writes == 3
    assert device.total == 123


def test_a_write_among_several_may_have_eight_bytes(device: Prober, client: Client) -> None:
    with GuestMemory(SIZE) as memory:
        client.dma_map(GUEST, memory)
        memory.view[:4] = number(7)
        client.request(Command.REGION_WRITE_MULTI, writes((ADD, 4, number(5)), (FETCH, 8, number(GUEST, 8))))
    assert (device.total, device.fetched) == (5, {GUEST: 7})


@pytest.mark.parametrize(
    "payload", [writes((ADD, 4, number(1)), (ADD, 0, b"")), writes((ADD, 4, number(1)), (ADD, 9, b""))]
)
def test_a_write_of_no_bytes_or_of_nine_has_all_of_them_refused(device: Prober, client: Client, payload: bytes) -> None:
    assert refused(client, Command.REGION_WRITE_MULTI, payload) == errno.EINVAL
    assert device.total == 0


@pytest.mark.parametrize("count", [1, 3])
def test_as_many_writes_come_as_were_said(device: Prober, client: Client, count: int) -> None:
    payload = writes((ADD, 4, number(1)), (ADD, 4, number(2)), count=count)
    assert refused(client, Command.REGION_WRITE_MULTI, payload) == errno.EINVAL
    assert device.total == 0


def test_the_first_of_several_writes_that_fails_ends_them(device: Prober, client: Client) -> None:
    payload = writes((ADD, 4, number(1)), (4096, 4, number(2)), (ADD, 4, number(3)))
    assert refused(client, Command.REGION_WRITE_MULTI, payload) == errno.EINVAL
    assert device.total == 1


@pytest.mark.parametrize(("iova", "size"), [(GUEST, 0), (0, SIZE), (GUEST, SIZE)])
def test_all_that_is_mapped_is_forgotten_without_address_and_size_alone(
    device: Prober, client: Client, iova: int, size: int
) -> None:
    with GuestMemory(SIZE) as memory:
        client.dma_map(GUEST, memory)
    request = DMA_UNMAP.pack(DMA_UNMAP.size, UnmapFlags.ALL, iova, size)
    assert refused(client, Command.DMA_UNMAP, request) == errno.EINVAL
    assert device.dma.read(GUEST, 4) == bytes(4)
    client.request(Command.DMA_UNMAP, DMA_UNMAP.pack(DMA_UNMAP.size, UnmapFlags.ALL, 0, 0))
    with pytest.raises(ProtocolError, match="no client memory is mapped"):
        device.dma.read(GUEST, 4)


def test_a_structure_of_exactly_its_size_is_enough(client: Client) -> None:
    assert IRQ_INFO.unpack(client.request(Command.GET_IRQ_INFO, IRQ_INFO.pack(16, 0, 2, 0)).payload).nr_vectors == 2
    assert refused(client, Command.GET_IRQ_INFO, IRQ_INFO.pack(15, 0, 2, 0)) == errno.EINVAL


def test_a_bitmap_of_what_is_unmapped_comes_where_there_is_exactly_room_for_it(tmp_path: Any) -> None:
    everything = Everything()
    with (
        Server(everything, str(tmp_path / "everything")) as server,
        Client.connect(str(server.listener.address)) as client,
        GuestMemory(SIZE) as memory,
    ):
        client.dma_map(GUEST, memory)
        client.start_logging(4096)
        everything.dma.write(GUEST + 4096, b"x")
        bitmap = BITMAP.pack(4096, 8)
        size = DMA_UNMAP.size + len(bitmap) + 8
        too_little = DMA_UNMAP.pack(size - 1, UnmapFlags.GET_DIRTY_BITMAP, GUEST, SIZE, tail=bitmap)
        assert refused(client, Command.DMA_UNMAP, too_little) == errno.EINVAL
        enough = DMA_UNMAP.pack(size, UnmapFlags.GET_DIRTY_BITMAP, GUEST, SIZE, tail=bitmap)
        assert client.request(Command.DMA_UNMAP, enough).payload[-8:] == bytes([2]) + bytes(7)
    everything.close()


def test_as_much_is_read_and_written_at_once_as_the_server_has_said(device: Prober, tmp_path: Any) -> None:
    offer = Offer(max_data_xfer_size=64)
    with (
        Server(device, str(tmp_path / "few"), offer=offer) as server,
        Client.connect(str(server.listener.address)) as client,
    ):
        for size, errors in ((64, 0), (65, errno.EINVAL)):
            reading = client.wait(client.submit(Command.REGION_READ, REGION_ACCESS.pack(0x100, 0, size)))
            data = REGION_ACCESS.pack(0x100, 0, size, tail=bytes(size))
            writing = client.wait(client.submit(Command.REGION_WRITE, data))
            assert (reading.errno, writing.errno) == (errors, errors)


def test_a_message_that_is_longer_than_the_server_said_ends_the_session_by_its_header(
    device: Prober, tmp_path: Any
) -> None:
    """64 KiB go beside the data that it takes at once."""
    longest, number = 64 + (64 << 10), CURRENT.number(Command.REGION_WRITE)
    with (
        Server(device, str(tmp_path / "few"), offer=Offer(max_data_xfer_size=64)) as server,
        Client.connect(str(server.listener.address)) as client,
    ):
        assert client.raw(number, bytes(longest - HEADER_SIZE)) is not None
        assert client.load(0, ADD, 4) == 0
        refusal = client.raw(number, size=longest + 1)
        assert refusal is not None
        assert refusal.failed
        with pytest.raises(Disconnected):
            client.load(0, ADD, 4)


def test_a_client_that_is_refused_is_nothing_to_the_device(device: Prober, server: Server) -> None:
    stranger = Client(connect(str(server.listener.address), timeout=60))
    reply = stranger.raw(CURRENT.number(Command.VERSION), b"\1\0\0\0{}\0")
    assert reply is not None
    assert reply.failed
    stranger.close()
    with Client.connect(str(server.listener.address)) as client:
        assert client.load(0, ADD, 4) == 0
        assert device.resets == []


def connection() -> tuple[ServerConnection, socket.socket]:
    ours, theirs = socket.socketpair()
    return ServerConnection(Stream(ours), 1 << 20, BusyWait()), theirs


def said_later(peer: socket.socket, seconds: float) -> threading.Timer:
    later = threading.Timer(seconds, peer.send, [Message(2, 1).encode()])
    later.start()
    return later


def test_the_deadline_of_the_first_message_is_none_of_those_that_follow() -> None:
    connection_, peer = connection()
    peer.send(Message(1, 1, payload=encode_version(CURRENT, 0, Capabilities())).encode())
    assert connection_.receive(time.monotonic() + 0.05)
    assert connection_.next() is not None
    later = said_later(peer, 0.1)
    assert connection_.receive()
    later.join()
    connection_.close()
    peer.close()


def test_replies_are_held_back_up_to_a_bound_and_leave_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vfio_user.server.connection.FLUSH", 300)
    connection_, peer = connection()
    peer.setblocking(False)
    replies = [Message(id, 9, payload=bytes(100)) for id in range(3)]
    for reply in replies[:2]:
        connection_.send(reply)
    with pytest.raises(BlockingIOError):
        peer.recv(1)
    connection_.send(replies[2])
    assert peer.recv(4096) == b"".join(reply.encode() for reply in replies)
    connection_.close()
    peer.close()


def test_who_has_answered_the_device_may_be_silent_for_as_long_as_it_likes(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time that an answer has is not what the next command has."""
    limits: list[float] = []
    limit = ServerConnection.limit_receives

    def told(connection_: ServerConnection, seconds: float) -> None:
        limits.append(seconds)
        limit(connection_, seconds)

    monkeypatch.setattr(ServerConnection, "limit_receives", told)
    memory = message_memory(client)
    memory.view[:4] = number(9)
    client.store(0, FETCH, 8, GUEST)
    assert comes_to_read(client, FETCH, 8, 9)
    assert len(limits) == 2
    assert limits[0] > 0
    assert limits[1] == 0


@pytest.mark.parametrize(("announce", "name"), [(True, "Prober"), (False, None)])
def test_a_program_offers_what_it_was_told_to_and_says_its_name_where_it_is_to(
    device: Prober, tmp_path: Any, monkeypatch: pytest.MonkeyPatch, announce: bool, name: str | None
) -> None:
    ran: list[tuple[str | None, int | None]] = []

    def run(make: Callable[[Callable[[], None]], Server], announced: str | None) -> None:
        with make(lambda: None) as server, Client.connect(str(server.listener.address)) as client:
            assert client.server is not None
            ran.append((announced, client.server.capabilities.max_data_xfer_size))

    monkeypatch.setattr(program, "run", run)
    program.serve(device, str(tmp_path / "socket"), offer=Offer(max_data_xfer_size=4096), announce=announce)
    assert ran == [(name, 4096)]


def test_a_program_whose_one_client_was_given_to_it_is_told_that_none_will_follow(
    device: Prober, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = socket.socketpair()
    ended, seen = threading.Event(), list[bool]()

    def run(make: Callable[[Callable[[], None]], Server], _: str | None) -> None:
        with make(ended.set):
            ours.close()
            seen.append(ended.wait(60))

    monkeypatch.setattr(program, "run", run)
    program.serve(device, f"fd:{theirs.detach()}")
    assert seen == [True]


def test_no_client_is_sent_more_descriptors_than_it_takes(tmp_path: Path) -> None:
    """What does not fit into its buffer the kernel drops, and the client would take another's place for it."""
    with closing(Everything()) as device, Server(device, str(tmp_path / "socket")) as server:
        device.add_ioeventfd(0, 0x20, 4, datamatch=9)
        for most, found in {0: (0, 0, 0), 1: (1, errno.ENOSPC, 0), 2: (1, 0, 2)}.items():
            limits = Capabilities(max_msg_fds=most)
            with Client.connect(str(server.listener.address), capabilities=limits) as client:
                region = client.region_info(2)
                room = REGION_IO_FDS.pack(1 << 10, 0, 0, 0)
                reply = client.raw(CURRENT.number(Command.GET_REGION_IO_FDS), room)
                assert reply is not None
                close_all(reply.fds)
            assert (region.descriptors, reply.errno, len(reply.fds)) == found, most
            assert bool(region.mappable) == bool(most), most
