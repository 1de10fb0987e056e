"""Each use of a client, of a server that refuses, that leaves, or that sends more than is wanted."""

from __future__ import annotations

import errno
import os
import socket
import threading
from collections.abc import Callable

import pytest

from tests.descriptors import fd_count
from tests.scripted_server import ScriptedServer
from tests.test_client_exchange import talking
from userdev.transport import close_all
from vfio_user.client import Client, Disconnected, RemoteError
from vfio_user.wire import CURRENT, NO_REPLY, Command, Message
from vfio_user.wire.constants import RegionFlags
from vfio_user.wire.layouts import REGION_INFO

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


@pytest.mark.parametrize(
    ("command", "ask"),
    [
        pytest.param(command, ask, id=f"{command.value}-{n}")
        for command, asks in ASKED.items()
        for n, ask in enumerate(asks)
    ],
)
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


USES: dict[str, Callable[[Client], object]] = {
    "a request": lambda client: client.region_read(0, 0, 1),
    "several": lambda client: client.read_many([(0, 0, 1), (0, 1, 1)]),
    "a posted write": lambda client: client.region_write(0, 0, b"x", posted=True),
    "serving": lambda client: client.serve_until(lambda: False),
}


@pytest.mark.parametrize("said", [b"", b"0123456789"])
@pytest.mark.parametrize("use", USES)
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
