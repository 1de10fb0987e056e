"""Each use of a client, of a server that refuses, that leaves, or that sends more than is wanted."""

from __future__ import annotations

import errno
import os
import socket
import threading
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from tests.cases import for_each, for_each_row
from tests.descriptors import fd_count
from tests.device_kit import descriptors_left
from tests.scripted_server import ScriptedServer
from tests.test_client_exchange import talking
from userdev.errors import ProtocolError
from userdev.transport import close_all
from vfio_user.client import Client, Disconnected, EventFd, GuestMemory, RemoteError
from vfio_user.client.memory import Mapping
from vfio_user.wire import CURRENT, NO_REPLY, REPLY, Capabilities, Command, Message
from vfio_user.wire.constants import IrqSetFlags, RegionFlags
from vfio_user.wire.layouts import DEVICE_INFO, DMA_ACCESS, IRQ_SET, REGION_INFO

MASK, UNMASK, TRIGGER = IrqSetFlags.MASK, IrqSetFlags.UNMASK, IrqSetFlags.TRIGGER
DATA_NONE, DATA_BOOL, DATA_EVENTFD = IrqSetFlags.DATA_NONE, IrqSetFlags.DATA_BOOL, IrqSetFlags.DATA_EVENTFD

ASKED: dict[Command, list[Callable[[Client], object]]] = {
    Command.GET_INFO: [Client.device_info],
    Command.DEVICE_RESET: [Client.reset],
    Command.GET_REGION_INFO: [lambda client: client.region_info(0)],
    Command.GET_REGION_IO_FDS: [lambda client: client.io_fds(0)],
    Command.GET_IRQ_INFO: [lambda client: client.irq_info(0)],
    Command.SET_IRQS: [lambda client: client.mask_irqs(0), lambda client: client.disable_irqs(0)],
    Command.REGION_READ: [
        lambda client: client.region_read(0, 0, 4),
        lambda client: client.load(0, 0, 4),
        lambda client: client.read_many([(0, 0, 4), (0, 4, 4)]),
    ],
    Command.REGION_WRITE: [lambda client: client.store(0, 0, 4, 1)],
    Command.REGION_WRITE_MULTI: [lambda client: client.write_multi([(0, 0, b"x")])],
    Command.DMA_UNMAP: [lambda client: client.dma_unmap(0, 0x1000)],
    Command.DEVICE_FEATURE: [
        Client.migration_support,
        Client.migration_state,
        Client.stop_logging,
        lambda client: client.report_logging(0, 0x1000, 0x1000),
    ],
    Command.MIG_DATA_READ: [lambda client: client.mig_data_read(1)],
    Command.MIG_DATA_WRITE: [lambda client: client.mig_data_write(b"x")],
}


@for_each_row({f"{command.value}-{n}": (command, ask) for command, asks in ASKED.items() for n, ask in enumerate(asks)})
def test_a_refusal_is_of_the_command_that_was_asked_whatever_asked_it(
    command: Command, ask: Callable[[Client], object]
) -> None:
    with talking(lambda _, message: message.error(errno.EPERM)) as (client, server):
        with pytest.raises(RemoteError) as refused:
            ask(client)
        assert {message.command for message in server.received[1:]} == {server.number(command)}
    assert refused.value.command.split()[0] == command.value
    assert refused.value.errno == errno.EPERM


def test_of_the_descriptors_that_come_with_a_region_one_is_kept_until_it_is_described_again() -> None:
    def with_three(server: ScriptedServer, message: Message) -> Message:
        server.fds += (fds := [os.memfd_create("region") for _ in range(3)])
        return message.reply(REGION_INFO.pack(32, RegionFlags.READ | RegionFlags.MMAP, 2, 0, 0x1000, 0), fds)

    before = fd_count()
    with talking(with_three) as (client, server):
        connected = fd_count()
        for _ in range(3):
            region = client.region_info(2)
            assert region.descriptors == 3
            close_all(server.fds)
            server.fds.clear()
            assert fd_count() == connected + 1
    assert fd_count() == before


def test_a_region_that_its_server_makes_smaller_ends_no_client() -> None:
    fd = os.memfd_create("region")
    os.ftruncate(fd, 0x1000)

    def with_it(server: ScriptedServer, message: Message) -> Message:
        return message.reply(REGION_INFO.pack(32, RegionFlags.READ | RegionFlags.MMAP, 2, 0, 0x1000, 0), [fd])

    with talking(with_it) as (client, _):
        mapped = client.map_region(client.region_info(2))
        mapped[0] = 7
        os.ftruncate(fd, 0)
        assert mapped[0] == 0
        mapped.close()
    os.close(fd)


def test_nobody_waits_for_an_eventfd_that_the_other_side_has_made_one_that_waits() -> None:
    """Whether it does is a flag of the open file, which both have; and the other side may take its signal back."""
    with EventFd() as eventfd:
        os.set_blocking(eventfd.fd, True)
        taken: list[int] = []
        taking = threading.Thread(target=lambda: taken.append(eventfd.take()), daemon=True)
        taking.start()
        taking.join(10)
        assert taken == [0]
        os.eventfd_write(eventfd.fd, 3)
        assert eventfd.wait() == 3


def test_a_client_that_is_out_of_descriptors_is_told_so_and_goes_on() -> None:
    made: list[int] = []

    def with_one(server: ScriptedServer, message: Message) -> Message:
        fds = made if message.command == CURRENT.number(Command.GET_REGION_INFO) else []
        return message.reply(REGION_INFO.pack(32, RegionFlags.READ | RegionFlags.MMAP, 2, 0, 0x1000, 0), list(fds))

    with talking(with_one) as (client, _):
        made.append(os.memfd_create("region"))
        with descriptors_left(0), pytest.raises(ProtocolError) as lost:
            client.region_info(2)
        assert lost.value.errno == errno.EMFILE
        assert client.region_info(2).descriptors == 1
    close_all(made)


def _refuse(number: int, _: ScriptedServer, message: Message) -> Message:
    return message.error(number)


def test_a_feature_that_a_server_does_not_have_is_told_from_one_that_it_refuses_to_tell_of() -> None:
    for number in (errno.EINVAL, errno.ENOTTY, errno.EPERM, errno.EIO, 0):
        with talking(partial(_refuse, number)) as (client, _):
            if number in (errno.EINVAL, errno.ENOTTY):
                assert not client.has_feature(1), number
            else:
                with pytest.raises(RemoteError) as refused:
                    client.has_feature(1)
                assert refused.value.errno == number


IRQS: dict[str, tuple[Callable[[Client, list[EventFd]], object], int]] = {
    "enable": (lambda client, fds: client.enable_irqs(2, fds, start=3), TRIGGER | DATA_EVENTFD),
    "detach": (lambda client, fds: client.detach_irqs(2, start=3, count=5), TRIGGER | DATA_EVENTFD),
    "trigger": (lambda client, fds: client.trigger_irqs(2, start=3, count=5), TRIGGER | DATA_NONE),
    "mask": (lambda client, fds: client.mask_irqs(2, start=3, count=5), MASK | DATA_NONE),
    "unmask": (lambda client, fds: client.unmask_irqs(2, start=3, count=5), UNMASK | DATA_NONE),
    "trigger some": (lambda client, fds: client.trigger_irqs(2, start=3, bools=b"\0\1\0\1\1"), TRIGGER | DATA_BOOL),
    "mask some": (lambda client, fds: client.mask_irqs(2, start=3, bools=b"\0\1\0\1\1"), MASK | DATA_BOOL),
    "unmask some": (lambda client, fds: client.unmask_irqs(2, start=3, bools=b"\0\1\0\1\1"), UNMASK | DATA_BOOL),
}


def test_what_is_done_to_vectors_is_done_from_the_one_named_on() -> None:
    """In as many messages as the server takes descriptors in one."""
    fds = [EventFd() for _ in range(5)]
    for name, (use, flags) in IRQS.items():
        with talking(lambda _, message: message.reply(), capabilities=Capabilities(max_msg_fds=2)) as (client, server):
            use(client, fds)
            asked = [(IRQ_SET.unpack(message.payload), message) for message in server.received[1:]]
            close_all(server.fds)
            server.fds.clear()
        assert [place for each, _ in asked for place in range(each.start, each.start + each.nr_vectors)] == [
            *range(3, 8)
        ], name
        assert {(each.irq, each.flags) for each, _ in asked} == {(2, flags)}, name
        for each, message in asked:
            assert len(message.fds) == (each.nr_vectors if name == "enable" else 0), name
            assert message.payload[IRQ_SET.size :] == (b"\0\1\0\1\1" if flags & DATA_BOOL else b""), name
    for fd in fds:
        fd.close()


USES: dict[str, Callable[[Client], object]] = {
    "a request": lambda client: client.region_read(0, 0, 1),
    "several": lambda client: client.read_many([(0, 0, 1), (0, 1, 1)]),
    "a posted write": lambda client: client.region_write(0, 0, b"x", posted=True),
    "serving": lambda client: client.serve_until(lambda: False),
}


@for_each([b"", b"0123456789"], USES)
def test_how_a_server_has_left_is_said_by_whatever_meets_it(said: bytes, use: str) -> None:
    how = "the server closed the connection" + (" in the middle of a message, 10 bytes into it" if said else "")

    def leave(server: ScriptedServer, message: Message) -> bytes:
        server.stream.send(said)
        server.stream.shutdown()
        return b""

    with talking(leave) as (client, _):
        with pytest.raises(Disconnected, match=f"^{how} while {Command.DEVICE_RESET.value} was under way$"):
            client.reset()
        for _ in range(2):
            with pytest.raises(Disconnected, match=f"^{how}$"):
                USES[use](client)


def test_a_server_that_leaves_while_it_is_told_much_is_met_by_who_tells_it() -> None:
    let_go = threading.Event()

    def read_no_more(server: ScriptedServer, message: Message) -> None:
        server.stream.shutdown(socket.SHUT_WR)
        assert let_go.wait(10)

    written = Message(1, CURRENT.number(Command.REGION_WRITE), NO_REPLY, payload=bytes(1 << 20))
    with talking(read_no_more) as (client, _):
        try:
            with pytest.raises(Disconnected, match=r"^the server closed the connection$"):
                client.channel.send_bytes(16 * written.encode())
        finally:
            let_go.set()


EACH: dict[str, tuple[Callable[[Client, list[Mapping]], object], set[int]]] = {
    "map": (lambda client, pieces: client.dma_map_all(pieces), {0x1000, 0x3000}),
    "unmap": (lambda client, pieces: client.dma_unmap_each([(each.iova, each.size) for each in pieces]), {0x2000}),
}


def test_of_several_pieces_of_memory_the_client_knows_which_the_server_has_though_it_refused_one() -> None:
    for name, (use, there) in EACH.items():
        answers = iter([0, errno.EBUSY, 0])

        def refuse_one(_: ScriptedServer, message: Message, answers: Iterator[int] = answers) -> Message:
            error = next(answers)
            return message.error(error) if error else message.reply(message.payload)

        with talking(refuse_one) as (client, _), GuestMemory(0x3000) as memory:
            pieces = [Mapping(0x1000 * place, 0x1000, memory) for place in (1, 2, 3)]
            if name == "unmap":
                for piece in pieces:
                    client.memory.add(piece)
            with pytest.raises(RemoteError) as refused:
                use(client, pieces)
            assert refused.value.errno == errno.EBUSY, name
            assert {each.iova for each in client.memory} == there, name


def _announces_more(message: Message, fds: list[int]) -> Message:
    flags = RegionFlags.READ | RegionFlags.MMAP | RegionFlags.CAPS
    return message.reply(REGION_INFO.pack(64, flags, 2, 0, 0x1000, 0), fds)


BROKEN: dict[str, tuple[Callable[[Client], object], Callable[[Message, list[int]], Message]]] = {
    "a region's second half": (lambda client: client.region_info(2), _announces_more),
    "the room for ioeventfds": (lambda client: client.io_fds(2), lambda message, fds: message.reply(b"short", fds)),
    "a register among several": (
        lambda client: client.read_many([(0, 0, 4), (0, 4, 4)]),
        lambda message, fds: message.reply(bytes(20), fds),
    ),
    "memory": (
        lambda client: client.dma_unmap_each([(0, 0x1000), (0x1000, 0x1000)]),
        lambda message, fds: message.reply(message.payload, fds),
    ),
}


def test_the_descriptors_of_a_reply_that_breaks_the_protocol_are_closed_once() -> None:
    for name, (use, first) in BROKEN.items():

        def with_fd_then_nonsense(
            server: ScriptedServer, message: Message, first: Callable[[Message, list[int]], Message] = first
        ) -> Message:
            server.fds += (fds := [os.memfd_create("region")])
            return first(message, fds) if len(server.received) == 2 else Message(message.id ^ 1, 0, REPLY, fds=fds)

        before = fd_count()
        with talking(with_fd_then_nonsense) as (client, server):
            with pytest.raises(ProtocolError):
                use(client)
            close_all(server.fds)
            server.fds.clear()
        assert fd_count() == before, name


def test_a_reply_that_nobody_waits_for_any_more_leaves_no_descriptor_open() -> None:
    """What the server says first is wrong, and its answer comes behind that, in one piece or later."""

    def stray_first(server: ScriptedServer, message: Message) -> Iterator[Message]:
        if message.command != server.number(Command.GET_REGION_INFO):
            yield message.reply(DEVICE_INFO.pack(16, 0, 9, 5))
            return
        yield Message(message.id ^ 0x4000, message.command, REPLY)
        server.fds.append(os.memfd_create("region"))
        yield message.reply(REGION_INFO.pack(32, RegionFlags.MMAP, 2, 0, 0x1000, 0), server.fds[-1:])

    before = fd_count()
    with talking(stray_first) as (client, server):
        with pytest.raises(ProtocolError, match="no request that waits"):
            client.region_info(2)
        assert client.device_info().num_regions == 9
        close_all(server.fds)
        server.fds.clear()
    assert fd_count() == before


def test_what_comes_behind_what_no_server_may_send_is_dealt_with_all_the_same() -> None:
    """In one piece with it: the server waits for the answer to its own question, and would for ever."""
    answered: list[Message | None] = []

    def stray_and_question(server: ScriptedServer, message: Message) -> Iterator[Message | bytes]:
        if not answered:
            stray = Message(message.id ^ 0x4000, message.command, REPLY)
            question = Message(7, server.number(Command.DMA_READ), payload=DMA_ACCESS.pack(0x1000, 4))
            yield stray.encode() + question.encode()
            answered.append(server.receive())
        yield message.reply(DEVICE_INFO.pack(16, 0, 9, 5))

    with talking(stray_and_question) as (client, _):
        with pytest.raises(ProtocolError, match="no request that waits"):
            client.device_info()
        assert client.device_info().num_regions == 9
    assert [reply and reply.id for reply in answered] == [7]
