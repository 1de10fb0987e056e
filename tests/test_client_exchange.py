"""The client's conversation: replies by id, requests of the server in between, deadlines, and peers that do wrong."""

from __future__ import annotations

import errno
import itertools
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext, suppress
from dataclasses import replace

import pytest

from tests.cases import for_each, for_each_row
from tests.descriptors import fd_count
from tests.scripted_server import Answer, Script, ScriptedServer
from userdev.errors import ProtocolError, UserdevError, UserError
from userdev.transport import Framer, Stream, close_all
from vfio_user.client import Client, Disconnected, GuestMemory, Mapping, NoAnswer, RemoteError, channel
from vfio_user.wire import (
    COMMAND,
    CURRENT,
    DIALECTS,
    DRAFT_V6,
    ERROR,
    HEADER,
    MAX_MESSAGE,
    NO_REPLY,
    REGION_MIGRATION,
    REPLY,
    Capabilities,
    Command,
    Dialect,
    Message,
)
from vfio_user.wire.constants import NO_FD, RegionFlags
from vfio_user.wire.layouts import DMA_ACCESS, IO_FD, REGION_ACCESS, REGION_INFO, REGION_IO_FDS, VM_INTERRUPT
from vfio_user.wire.region_info import RegionDescription, encode_region_info


@contextmanager
def talking(
    script: Script, *, dialect: Dialect = CURRENT, capabilities: Capabilities | None = None, timeout: float = 60.0
) -> Iterator[tuple[Client, ScriptedServer]]:
    with (
        ScriptedServer(script, dialect=dialect, capabilities=capabilities) as server,
        Client(server.client_stream, dialect=dialect) as client,
    ):
        client.negotiate(minor=0)
        client.channel.timeout = timeout
        yield client, server


def echo_read(server: ScriptedServer, message: Message) -> Message | None:
    """A region whose bytes are the low byte of their offset."""
    if not message.wants_reply:
        return None
    offset, region, length = REGION_ACCESS.unpack(message.payload)
    data = bytes((offset + i) & 0xFF for i in range(length))
    return message.reply(REGION_ACCESS.pack(offset, region, length, tail=data))


def test_a_read_returns_the_bytes_of_the_reply() -> None:
    with talking(echo_read) as (client, _):
        assert client.region_read(0, 0x10, 4) == b"\x10\x11\x12\x13"
        assert client.load(0, 1, 2) == 0x0201


def test_an_error_reply_raises_its_errno_and_command() -> None:
    with talking(lambda _, message: message.error(errno.EPERM)) as (client, _):
        with pytest.raises(RemoteError) as caught:
            client.reset()
        assert (caught.value.errno, caught.value.command) == (errno.EPERM, "DEVICE_RESET")


def test_errors_name_the_command_that_was_asked_whatever_the_reply_says() -> None:
    """The specification has the id echoed, and nothing else."""

    def anonymous(server: ScriptedServer, message: Message) -> Message:
        if message.command == server.number(Command.DEVICE_RESET):
            return Message(message.id, 0, REPLY | ERROR, errno.EPERM)
        server.fds.append(os.open("/dev/null", os.O_RDONLY))
        return Message(message.id, 0, REPLY, 0, b"", server.fds[-1:])

    with talking(anonymous) as (client, _):
        with pytest.raises(RemoteError, match="answers DEVICE_RESET with EPERM"):
            client.reset()
        with pytest.raises(ProtocolError, match="the reply to DEVICE_GET_IRQ_INFO"):
            client.irq_info(0)


def test_an_error_without_errno_is_an_error() -> None:
    """The draft lets the errno be 0 although the Error flag is set."""
    with (
        talking(lambda _, message: message.error(0), dialect=DRAFT_V6) as (client, _),
        pytest.raises(RemoteError) as caught,
    ):
        client.reset()
    assert caught.value.errno == 0
    assert "Success" not in str(caught.value)


def test_replies_find_their_requests_in_any_order() -> None:
    held: list[Message] = []

    def backwards(server: ScriptedServer, message: Message) -> list[Message | None]:
        held.append(message)
        if len(held) < 4:
            return []
        return [echo_read(server, m) for m in reversed(held)]

    with talking(backwards) as (client, _):
        assert client.read_many([(0, offset, 1) for offset in range(4)]) == [b"\0", b"\1", b"\2", b"\3"]


def test_an_id_may_be_in_use_twice() -> None:
    with talking(echo_read) as (client, server):
        first = client.channel.expect(9, "first")
        second = client.channel.expect(9, "second")
        for offset in (1, 2):
            message = Message(9, server.number(Command.REGION_READ), payload=REGION_ACCESS.pack(offset, 0, 1))
            client.channel.send_bytes(message.encode())
        assert client.wait(second).payload[-1] == 2
        assert client.wait(first).payload[-1] == 1


def test_a_posted_write_waits_for_nothing() -> None:
    with talking(echo_read) as (client, server):
        client.region_write(0, 0, b"abcd", posted=True)
        client.region_read(0, 0, 1)
        posted = server.received[1]
        assert posted.flags == NO_REPLY
        assert posted.payload[REGION_ACCESS.size :] == b"abcd"


def test_a_server_that_takes_no_answers_is_not_asked_for_more_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once it takes them it gets all of them."""
    monkeypatch.setattr("vfio_user.client.channel.MAX_OWED", 1 << 20, raising=False)
    ours, theirs = socket.socketpair()
    asked = Message(7, CURRENT.number(Command.DMA_READ), payload=DMA_ACCESS.pack(0, 16 << 10)).encode()
    sent, got, most = 0, 0, 3000
    with ours, Client(Stream(theirs)) as client, GuestMemory(1 << 16) as ram:
        client.memory.add(Mapping(0, 1 << 16, ram))
        ours.setblocking(False)
        with suppress(BlockingIOError):
            while sent < most:
                ours.send(asked)
                sent += 1
                client.serve_until(lambda: False, timeout=0)
        assert sent < most
        while got < sent * (32 + (16 << 10)):
            client.serve_until(lambda: False, timeout=0)
            with suppress(BlockingIOError):
                got += len(ours.recv(1 << 20))
        assert got == sent * (32 + (16 << 10))


@for_each_row([(1, False), (0, True)])
def test_a_server_that_owes_it_to_read_is_asked_no_more_from_the_bound_on(missing: int, full: bool) -> None:
    with closing(socket.socket(socket.AF_UNIX)) as one:
        lane = channel._Lane(Stream(one), Framer(Message), owed=channel.MAX_OWED - missing)
        assert lane.is_full is full


def test_silence_ends_at_the_deadline_and_the_late_reply_harms_nothing() -> None:
    late: list[Message] = []

    def slow(server: ScriptedServer, message: Message) -> list[Message | None]:
        late.append(message)
        return [] if len(late) == 1 else [echo_read(server, m) for m in late]

    with talking(slow, timeout=0.05) as (client, _):
        started = time.monotonic()
        with pytest.raises(NoAnswer):
            client.region_read(0, 0, 1)
        assert time.monotonic() - started < 30, "and not at another's"
        client.channel.timeout = 60.0
        assert client.region_read(0, 7, 1) == b"\7"


@for_each_row([(4 * MAX_MESSAGE, 0.05, NoAnswer), (4 * MAX_MESSAGE + 1, 60.0, ProtocolError)])
def test_a_message_that_is_longer_than_any_is_not_waited_for(
    size: int, timeout: float, raised: type[Exception]
) -> None:
    def begin(server: ScriptedServer, message: Message) -> bytes:
        return HEADER.pack(message.id, message.command, size, REPLY, 0)

    with talking(begin, timeout=timeout) as (client, _), pytest.raises(raised):
        client.region_read(0, 0, 1)


def test_a_server_that_leaves_is_told_apart_from_a_slow_one() -> None:
    def leave(server: ScriptedServer, message: Message) -> None:
        server.stream.shutdown()

    with talking(leave) as (client, _):
        with pytest.raises(Disconnected):
            client.reset()
        assert not client.is_connected


def test_what_the_server_said_before_it_left_is_heard() -> None:
    def last_words(server: ScriptedServer, message: Message) -> None:
        server.send(message.error(errno.EINVAL))
        server.stream.shutdown()

    with talking(last_words) as (client, _), pytest.raises(RemoteError):
        client.reset()


@for_each(
    [
        lambda m: Message(m.id ^ 1, m.command, REPLY),
        lambda m: Message(m.id, m.command, 2),
        lambda m: b"\0" * 16,
        lambda m: Message(m.id, m.command, REPLY, 0, b"", [os.open("/dev/null", os.O_RDONLY)]),
    ],
    ids=["an id nobody used", "a type that is none", "a size of 0", "descriptors that nothing announces"],
)
def test_what_no_server_may_send_is_a_protocol_error(wrong: Callable[[Message], Message | bytes]) -> None:
    def script(server: ScriptedServer, message: Message) -> Message | bytes:
        answer = wrong(message)
        if isinstance(answer, Message):
            server.fds += answer.fds
        return answer

    with talking(script) as (client, _), pytest.raises(ProtocolError):
        client.reset()


@for_each([b"", REGION_ACCESS.pack(0, 0, 4), REGION_ACCESS.pack(0, 0, 3, tail=b"abc")])
def test_a_read_that_brings_too_little_is_a_protocol_error(payload: bytes) -> None:
    with talking(lambda _, message: message.reply(payload)) as (client, _), pytest.raises(ProtocolError):
        client.region_read(0, 0, 4)


def test_closing_leaves_no_descriptor_open() -> None:
    before = fd_count()
    with talking(echo_read) as (client, _):
        client.region_read(0, 0, 1)
    assert fd_count() == before


def test_two_peers_that_both_talk_at_once_do_not_deadlock() -> None:
    """The server floods before it reads on, with more than the sockets hold."""
    flood = DMA_ACCESS.pack(0x1000, 4096, tail=bytes(4096))

    def flooding(server: ScriptedServer, message: Message) -> Message | None:
        if not message.wants_reply:
            return None
        for id in range(500):
            server.send(Message(id, server.number(Command.DMA_WRITE), NO_REPLY, 0, flood))
        return echo_read(server, message)

    with GuestMemory(0x10000, shared=False) as ram, talking(flooding) as (client, _):
        client.memory.add(mapping_of(ram))
        pending = [client.submit(Command.REGION_READ, REGION_ACCESS.pack(0, 0, 1)) for _ in range(4)]
        for _ in range(200):
            client.region_write(0, 0, bytes(4096), posted=True)
        assert [reply.payload[-1] for reply in client.gather(pending)] == [0] * 4
        assert client.service.served[Command.DMA_WRITE] == 2000


# the server's requests

BOTH_COUNTS = pytest.mark.parametrize("dialect", DIALECTS.values(), ids=DIALECTS)


def mapping_of(ram: GuestMemory) -> Mapping:
    return Mapping(0x1000, ram.size, ram)


def test_interrupt_messages_of_the_draft_are_kept_in_order() -> None:
    def script(server: ScriptedServer, message: Message) -> Message:
        for vector in (3, 1):
            assert server.ask(Command.VM_INTERRUPT, VM_INTERRUPT.pack(vector)).flags == REPLY
        return message.reply()

    with talking(script, dialect=DRAFT_V6) as (client, _):
        client.reset()
        assert [client.wait_vm_interrupt(), client.wait_vm_interrupt()] == [3, 1]
        with pytest.raises(NoAnswer):
            client.wait_vm_interrupt(timeout=0.01)


# VERSION


@for_each(DIALECTS, [64, 32, 0])  # it says what it needs, what it sent, nothing
def test_a_region_that_has_capabilities_and_shows_none_is_asked_for_again(name: str, said: int) -> None:
    """Taken for all there is, it would be a region of which everything may be mapped."""
    region = RegionDescription(2, 0x4000, RegionFlags.READ | RegionFlags.MMAP, sparse=((0x1000, 0x1000),))
    rooms = []

    def in_two_steps(server: ScriptedServer, message: Message) -> Message:
        rooms.append(REGION_INFO.unpack(message.payload).argsz)
        if rooms[-1] < 64:
            return message.reply(REGION_INFO.pack(said, region.flags | RegionFlags.CAPS, 2, 0, region.size, 0))
        return message.reply(encode_region_info(region, rooms[-1])[0])

    with talking(in_two_steps, dialect=DIALECTS[name]) as (client, _):
        assert client.region_info(2).mappable == ((0x1000, 0x1000),)
    assert len(rooms) == 2


def test_a_server_that_tells_of_more_regions_than_it_has_is_asked_of_no_more_than_it_answers() -> None:
    """What it says of their number may be a lie."""

    def one_region(server: ScriptedServer, message: Message) -> Message:
        index = REGION_INFO.unpack(message.payload).region
        if index:
            return message.error(errno.EINVAL)
        return message.reply(REGION_INFO.pack(32, RegionFlags.READ, 0, 0, 0x1000, 0))

    with talking(one_region) as (client, server):
        found = list(itertools.islice(client.region_infos(range(0xFFFF_FFFF)), 3))
        assert [each.errno if isinstance(each, RemoteError) else each.size for each in found] == [0x1000, 22, 22]
        assert len(server.received) < 100


def test_descriptors_of_answers_that_nobody_gets_any_more_are_closed() -> None:
    def and_leaves(server: ScriptedServer, message: Message) -> Message | bytes:
        if message.id != first:
            return b"\xff" * 16
        server.fds.append(os.open("/dev/null", os.O_RDONLY))
        return message.reply(REGION_INFO.pack(32, RegionFlags.READ, 0, 0, 0x1000, 0), [server.fds[0]])

    with talking(and_leaves) as (client, server):
        before = fd_count()
        first = client.channel.fresh_id() + 1
        with pytest.raises(UserdevError):
            list(client.region_infos([0, 1]))
        assert fd_count() == before + len(server.fds)


def test_capabilities_that_never_come_are_a_protocol_error() -> None:
    empty = REGION_INFO.pack(32, RegionFlags.CAPS, 2, 0, 0x4000, 0)
    with talking(lambda _, message: message.reply(empty)) as (client, _), pytest.raises(ProtocolError):
        client.region_info(2)


def test_a_minor_above_the_proposed_one_is_refused() -> None:
    with (
        ScriptedServer(echo_read, minor=2) as server,
        Client(server.client_stream) as client,
        pytest.raises(ProtocolError),
    ):
        client.negotiate(minor=1)


def test_a_server_of_another_dialect_is_recognised() -> None:
    with (
        ScriptedServer(echo_read, dialect=DRAFT_V6) as server,
        Client(server.client_stream, dialect=CURRENT) as client,
        pytest.raises(ProtocolError),
    ):
        client.negotiate()


def test_descriptors_of_a_reply_that_came_too_late_are_closed() -> None:
    late: list[Message] = []

    def answer(server: ScriptedServer, message: Message) -> list[Message]:
        if message.command == server.number(Command.GET_REGION_INFO):
            late.append(message)
            return []
        return [*(each.reply(bytes(REGION_INFO.size), [devnull.fileno()]) for each in late), message.reply()]

    with open(os.devnull) as devnull, talking(answer) as (client, _):
        before = fd_count()
        asked = client.submit_all(Command.GET_REGION_INFO, [bytes(REGION_INFO.size)] * 2)
        with pytest.raises(NoAnswer):
            client.gather(asked, timeout=0.02)
        client.reset()
        assert all(each.reply is not None for each in asked), "they are taken all the same"
        assert fd_count() == before


@for_each([0, 1, 2])
def test_the_servers_requests_may_come_on_a_twin_socket(index: int) -> None:
    """Whichever of the descriptors it is."""

    def script(server: ScriptedServer, message: Message) -> Message:
        assert server.twin is not None
        server.twin.send(Message(5, server.number(Command.DMA_READ), payload=DMA_ACCESS.pack(0x1000, 2)).encode())
        reply = bytearray(34)
        server.twin.socket.recv_into(reply)
        return message.reply(bytes(reply))

    with (
        GuestMemory(0x1000, shared=False) as ram,
        ScriptedServer(script, twin=True) as server,
        Client(server.client_stream) as client,
    ):
        ram.view[:2] = b"hi"
        client.memory.add(mapping_of(ram))
        server._capabilities = replace(server._capabilities, twin_socket_fd_index=index)
        for _ in range(index):
            server.fds.insert(0, os.open(os.devnull, os.O_RDONLY))
        client.negotiate(twin_socket=True)
        reply = client.request(Command.DEVICE_RESET)
        assert reply.payload[-2:] == b"hi"


def test_a_message_of_the_server_has_the_same_bound_on_either_socket() -> None:
    for on_twin in (False, True):
        for size, fails in ((channel.MAX_RECEIVED, None), (channel.MAX_RECEIVED + 1, ProtocolError)):

            def announce(server: ScriptedServer, message: Message, twin: bool = on_twin, size: int = size) -> Answer:
                stream = server.twin if twin else server.stream
                assert stream is not None
                stream.send(HEADER.pack(5, server.number(Command.DMA_WRITE), size, 0, 0))
                if twin:
                    return message.reply()
                stream.shutdown(socket.SHUT_WR)
                return None

            with ScriptedServer(announce, twin=True) as server, Client(server.client_stream) as client:
                client.negotiate(twin_socket=True)
                with nullcontext() if (on_twin and not fails) else pytest.raises(fails or Disconnected):
                    client.request(Command.DEVICE_RESET)


@for_each([lambda: os.memfd_create("none"), lambda: socket.socket(type=socket.SOCK_DGRAM).detach()])
def test_a_twin_socket_that_is_no_stream_is_the_servers_mistake(other: Callable[[], int]) -> None:
    with ScriptedServer(echo_read, twin=True) as server:
        close_all(server.fds)
        server.fds[:] = [other()]
        with Client(server.client_stream) as client:
            with pytest.raises(ProtocolError, match="twin socket"):
                client.negotiate(twin_socket=True)
            assert not client.channel.has_twin


def test_a_twin_socket_whose_place_is_not_said_is_the_servers_mistake() -> None:
    """The specification lets no client guess which of the descriptors it is."""
    with ScriptedServer(echo_read, twin=True) as server:
        server._capabilities = replace(server._capabilities, twin_socket_fd_index=None)
        with Client(server.client_stream) as client:
            with pytest.raises(ProtocolError, match="twin socket"):
                client.negotiate(twin_socket=True)
            assert not client.channel.has_twin


def test_as_many_ioeventfds_come_as_are_announced() -> None:
    def one_of_two(_: ScriptedServer, message: Message) -> Message:
        needed = REGION_IO_FDS.size + IO_FD.size
        room = REGION_IO_FDS.unpack(message.payload).argsz
        entry = IO_FD.pack(0, 4, NO_FD, 0, 0, NO_FD, 0, 0) if room >= needed else b""
        return message.reply(REGION_IO_FDS.pack(needed, 0, 0, 2, tail=entry))

    with talking(one_of_two) as (client, _), pytest.raises(ProtocolError, match="2 sub-regions"):
        client.io_fds(0)


def test_a_command_that_the_dialect_lacks_is_the_callers_mistake() -> None:
    with talking(echo_read, dialect=REGION_MIGRATION) as (client, _), pytest.raises(UserError):
        client.migration_state()


def test_raw_sends_any_lie_and_returns_any_answer() -> None:
    with talking(lambda _, message: message.error(errno.EINVAL)) as (client, server):
        reply = client.raw(0x1234, b"xyz", flags=COMMAND | 0xFFC0, id=0xABCD)
        assert reply is not None
        assert (reply.id, reply.command, reply.errno) == (0xABCD, 0x1234, errno.EINVAL)
        assert client.raw(0x1234, flags=NO_REPLY) is None
        assert server.received[1].flags == 0xFFC0
