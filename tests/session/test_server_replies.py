"""Nothing answers a reply: one that nobody waits for is dropped, on either socket, and the session goes on."""

from __future__ import annotations

import errno
import logging
import os
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from tests.device_kit import open_fds
from tests.everything_device import Everything
from tests.session_kit import GUEST, Prober, comes_to_read, message_memory
from userdev.errors import ProtocolError
from vfio_user.client import Client
from vfio_user.client.description import describe
from vfio_user.client.service import Service
from vfio_user.device import Quiesce, register
from vfio_user.server import Server
from vfio_user.wire import CURRENT, DRAFT_V6, ERROR, REPLY, Command, Message
from vfio_user.wire.layouts import DEVICE_INFO, DMA_ACCESS, REGION_ACCESS

RING = 0x20


@pytest.mark.parametrize("flags", [REPLY, REPLY | ERROR])
def test_a_reply_that_nobody_asked_for_is_dropped_and_said_once(
    client: Client, caplog: pytest.LogCaptureFixture, flags: int
) -> None:
    for id in (0, 7, 0xFFFF):
        client.channel.send_bytes(Message(id, CURRENT.number(Command.DMA_READ), flags, payload=bytes(20)).encode())
    client.store(0, 0, 4, 5)
    assert client.load(0, 0, 4) == 5  # a client that had been sent something for it would have raised
    said = [record.levelno for record in caplog.records if "nobody asked" in record.message]
    assert said == [logging.WARNING]


def test_bytes_behind_a_register_access_are_no_message_of_their_own(client: Client) -> None:
    """However short the way of an access that is just a register is."""
    client.store(0, 0, 4, 5)
    for command, tail in ((Command.REGION_READ, b""), (Command.REGION_WRITE, b"\5\0\0\0")):
        client.raw(CURRENT.number(command), REGION_ACCESS.pack(0, 0, 4, tail=tail + bytes(4)))
        assert client.load(0, 0, 4) == 5, command


def test_a_reply_while_the_device_gets_quiet_is_dropped(device: Prober, client: Client) -> None:
    device.busy = Quiesce()
    reset = client.submit(Command.DEVICE_RESET)
    client.channel.send_bytes(Message(9, 2, REPLY).encode())
    reading = client.submit(Command.GET_INFO, DEVICE_INFO.pack(DEVICE_INFO.size, 0, 0, 0))
    device.busy.done()
    assert not any(reply.failed for reply in client.gather([reset, reading]))


def test_a_second_reply_to_a_request_is_dropped(server: Server, answering: Callable[..., None]) -> None:
    """The first counts, whatever the second says."""

    heard: list[int] = []

    def twice(request: Message, answer: Message) -> list[Message]:
        heard.append(request.id)
        wrong = DMA_ACCESS.pack(GUEST, 4, tail=b"\1\1\1\1")
        return [answer, request.reply(wrong)]

    answering(twice)
    with Client.connect(str(server.listener.address)) as client:
        memory = message_memory(client)
        for value in (77, 78):
            memory.view[:4] = value.to_bytes(4, "little")
            client.store(0, 8, 8, GUEST)
            assert comes_to_read(client, 8, 8, value)
    assert len(set(heard)) == len(heard) > 1, "what is late may be taken for an answer to another request"


@pytest.mark.parametrize("twin", [False, True], ids=["main socket", "twin socket"])
def test_the_address_in_a_reply_to_dma_need_not_be_echoed(
    server: Server, answering: Callable[..., None], twin: bool
) -> None:
    def without_address(request: Message, answer: Message) -> list[Message]:
        return [request.reply(bytes(8) + answer.payload[8:])]

    answering(without_address)
    with Client.connect(str(server.listener.address), twin_socket=twin) as client:
        memory = message_memory(client)
        memory.view[:4] = (77).to_bytes(4, "little")
        client.store(0, 8, 8, GUEST)
        assert comes_to_read(client, 8, 8, 77)
        client.store(0, 0x28, 4, 78)
        assert client.serve_until(lambda: memory.view[0] == 78)


def test_a_reply_that_nobody_asked_for_is_dropped_on_the_twin_socket(
    server: Server, answering: Callable[..., None]
) -> None:
    answering(lambda request, answer: [Message(request.id ^ 0x100, request.command, REPLY), answer])
    with Client.connect(str(server.listener.address), twin_socket=True) as client:
        memory = message_memory(client)
        memory.view[:4] = (77).to_bytes(4, "little")
        client.store(0, 8, 8, GUEST)
        assert comes_to_read(client, 8, 8, 77)


def test_a_client_that_answers_interrupts_keeps_its_session(tmp_path: Path, answering: Callable[..., None]) -> None:
    """VM_INTERRUPT says No_reply; libvfio-user's clients of 2021 answer it."""
    answering(lambda request, answer: [request.reply()])
    address = str(tmp_path / "s")
    with (
        closing(Everything()) as device,
        Server(device, address, dialect=DRAFT_V6),
        Client.connect(address, dialect=DRAFT_V6) as client,
    ):
        msi = next(c for c in describe(client).pci_capabilities if c.name == "MSI")
        client.config_write(msi.offset + 2, (1 | 2 << 4).to_bytes(2, "little"))
        for vector in (3, 1, 2):
            client.store(0, RING, 4, vector)
            assert client.wait_vm_interrupt() == vector
        client.store(0, 0, 4, 0xCAFE)
        assert client.load(0, 0, 4) == 0xCAFE


def test_an_interrupt_by_message_leaves_before_the_work_that_brings_it_is_done(tmp_path: Path) -> None:
    address, came, seen = str(tmp_path / "s"), threading.Event(), list[bool]()
    with (
        closing(Everything()) as device,
        Server(device, address, dialect=DRAFT_V6),
        Client.connect(address, dialect=DRAFT_V6) as client,
    ):
        msi = next(c for c in describe(client).pci_capabilities if c.name == "MSI")
        client.config_write(msi.offset + 2, (1 | 2 << 4).to_bytes(2, "little"))

        def work() -> None:
            device.interrupts.trigger(3)
            seen.append(came.wait(60))

        device.call_soon(work)
        try:
            assert client.wait_vm_interrupt() == 3
        finally:
            came.set()
        client.load(0, 0, 4)
    assert seen == [True]


def test_what_an_author_raises_is_answered_with_its_errno_or_with_eio(tmp_path: Path) -> None:
    """By the table of registers, and by the way that other accesses take."""
    raised: dict[int, Exception] = {}

    class Failing(Prober):
        @register(bar=0, offset=0x40, width=4)
        def fails(self) -> int:
            raise raised[0]

    address = str(tmp_path / "s")
    with closing(Failing()) as device, Server(device, address), Client.connect(address) as client:
        for failure, number in (
            (OSError(errno.ENOSPC, "full"), errno.ENOSPC),
            (OSError("of no number"), errno.EIO),
            (ProtocolError("busy", errno.EBUSY), errno.EBUSY),
            (ProtocolError("taken for a success", 0), errno.EIO),
            (RuntimeError("a defect"), errno.EIO),
        ):
            raised[0] = failure
            for width in (4, 2):
                reply = client.wait(client.submit(Command.REGION_READ, REGION_ACCESS.pack(0x40, 0, width)))
                assert reply.errno == number, (failure, width)
        assert client.load(0, 0, 4) == 0


def test_descriptors_that_come_with_replies_are_closed(client: Client) -> None:
    client.load(0, 0, 4)
    before = open_fds()
    with open(os.devnull) as file:
        for _ in range(5):
            client.channel.send_bytes(Message(9, 2, REPLY).encode(), [file.fileno()])
            client.load(0, 0, 4)
        client.load(0, 0, 4)
    assert open_fds() == before


@pytest.fixture
def answering(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Message, Message], list[Message]]], None]:
    """Makes clients answer the server's requests otherwise than they would: from (request, answer), messages."""
    answer = Service.answer

    def install(otherwise: Callable[[Message, Message], list[Message]]) -> None:
        def answered(service: Service, request: Message) -> Message | None:
            good = answer(service, request) or request.reply()
            *first, last = otherwise(request, good)
            return Several(last, first) if first else last

        monkeypatch.setattr(Service, "answer", answered)

    return install


class Several(Message):
    """Messages that are sent as one."""

    def __init__(self, last: Message, before: list[Message]) -> None:
        super().__init__(last.id, last.command, last.flags, last.errno, last.payload)
        self._before = b"".join(message.encode() for message in before)

    def encode(self) -> bytes:
        return self._before + super().encode()
