"""Descriptors that reach the interposer and go no further are closed; what is captured is where the server has it."""

from __future__ import annotations

import errno
import os
import socket
import threading
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.cases import for_each, for_each_row
from tests.descriptors import fd_count
from tests.interposer_bench import Bench, Peer, dma_map, request
from userdev.descriptors import file_key
from userdev.transport import close_all
from vfio_user.client import EventFd
from vfio_user.interposer.capture import CaptureDma, CaptureInterrupts
from vfio_user.interposer.faults.scenario import Scenario
from vfio_user.interposer.faults.stage import Faults
from vfio_user.interposer.pairing import LIMIT
from vfio_user.wire import CURRENT, DRAFT_V6, MAX_DATA, Command, Dialect, Message
from vfio_user.wire import layouts as at
from vfio_user.wire.constants import DmaFlags, IrqIndex, IrqSetFlags

_WIRED = IrqSetFlags.DATA_EVENTFD | IrqSetFlags.TRIGGER
_DISABLED = IrqSetFlags.DATA_NONE | IrqSetFlags.TRIGGER


def with_an_eventfd(peer: Peer, message: Message) -> None:
    """Send the message with an eventfd that the peer keeps no other descriptor of."""
    fd = os.eventfd(0)
    peer.send(replace(message, fds=[fd]))
    os.close(fd)


def test_those_of_a_dma_access_that_is_answered_here() -> None:
    with Bench() as bench:
        CaptureDma(bench.session)
        memory = os.memfd_create("guest")
        os.ftruncate(memory, 4096)
        assert bench.exchange(dma_map(0, 4096, memory)).fds == []
        os.close(memory)
        before = fd_count(collect=True)
        with_an_eventfd(bench.server, Message(7, CURRENT.number(Command.DMA_READ), payload=at.DMA_ACCESS.pack(0, 16)))
        assert bench.server.receive().is_reply
        assert fd_count(collect=True) == before


def test_those_of_interrupts_that_the_client_takes_back() -> None:
    """It closes its own then, and believes that nobody signals it any more."""

    def set_irqs(flags: IrqSetFlags, start: int, count: int, index: int = IrqIndex.MSIX, given: int = 0) -> int:
        """How many descriptors there are afterwards."""
        payload = at.IRQ_SET.pack(at.IRQ_SET.size, flags, index, start, count)
        fds = [os.eventfd(0) for _ in range(given)]
        bench.exchange(request(Command.SET_IRQS, payload, fds=fds))
        close_all(fds)
        return fd_count(collect=True)

    with Bench() as bench:
        CaptureInterrupts(bench.session)
        before = fd_count(collect=True)
        none = set_irqs(_DISABLED, 0, 0)
        assert none == before
        each = set_irqs(_WIRED, 0, 1, given=1) - before
        assert set_irqs(_WIRED, 1, 3, given=3) == before + 4 * each
        assert set_irqs(_WIRED, 0, 1, IrqIndex.INTX, given=1) == before + 5 * each
        assert set_irqs(_WIRED, 1, 2, given=2) == before + 5 * each, "in the place of others"
        assert set_irqs(_WIRED, 2, 1) == before + 4 * each
        assert set_irqs(_WIRED, 0, 4, given=1) == before + 2 * each, "those without a descriptor have none"
        assert set_irqs(_DISABLED, 0, 0) == before + each
        assert set_irqs(_DISABLED, 0, 0, IrqIndex.INTX) == before


# What the server refuses changes nothing


@pytest.mark.parametrize("wanted", [True, False], ids=["refused", "done"])
def test_an_interrupt_goes_where_the_server_has_it_wired(wanted: bool) -> None:
    """Whichever eventfd of ours a server signals, from the moment that it has it."""
    with Bench() as bench, EventFd() as first, EventFd() as second:
        before = fd_count(collect=True)
        capture = CaptureInterrupts(bench.session)
        wired = []
        for eventfd, refused in ((first, False), (second, wanted)):
            payload = at.IRQ_SET.pack(at.IRQ_SET.size, _WIRED, IrqIndex.MSIX, 0, 1)
            bench.client.send(request(Command.SET_IRQS, payload, fds=[eventfd.fd]))
            asked = bench.server.receive()
            wired += asked.fds
            bench.server.send(asked.error(errno.EINVAL) if refused else asked.reply())
            bench.client.receive()
        os.eventfd_write(wired[not wanted], 3)
        bench.settle()
        assert [first.take(), second.take()] == ([3, 0] if wanted else [0, 3])
        payload = at.IRQ_SET.pack(at.IRQ_SET.size, _DISABLED, IrqIndex.MSIX, 0, 0)
        bench.exchange(request(Command.SET_IRQS, payload), errno=errno.EINVAL)
        os.eventfd_write(wired[not wanted], 1)
        bench.settle()
        assert (capture.fired, first.take() + second.take()) == (4, 1), "what was to be disabled is not"
        bench.exchange(request(Command.SET_IRQS, payload))
        close_all(wired)
        assert fd_count(collect=True) == before + len(bench.session.model.fds)


def test_no_interposer_waits_for_a_server_that_takes_its_interrupt_back() -> None:
    """Whether a read of an eventfd waits is a flag of the open file, which the server has as well."""
    payload = at.IRQ_SET.pack(at.IRQ_SET.size, _WIRED, IrqIndex.MSIX, 0, 1)
    with Bench() as bench, EventFd() as eventfd:
        capture = CaptureInterrupts(bench.session)
        bench.negotiate()
        bench.client.send(request(Command.SET_IRQS, payload, fds=[eventfd.fd]))
        asked = bench.server.receive()
        bench.server.send(asked.reply())
        bench.client.receive()
        [servers] = asked.fds
        os.set_blocking(servers, True)
        [vector] = capture._vectors.values()
        looking = threading.Thread(target=capture._pass, args=(vector,), daemon=True)
        looking.start()
        looking.join(10)
        assert not looking.is_alive()
        os.eventfd_write(servers, 2)
        bench.settle()
        assert (capture.fired, eventfd.take()) == (2, 2)
        os.close(servers)


def test_memory_is_read_where_the_server_has_it_mapped() -> None:
    """What it asks of any other the client answers."""

    def read_here() -> bool:
        bench.server.send(access(Command.DMA_READ, 4))
        bench.settle()
        if (asked := bench.client.next()) is not None:
            bench.client.send(asked.error(errno.EFAULT))
        return not bench.server.receive().failed

    memory = os.memfd_create("guest")
    os.ftruncate(memory, 4096)
    unmap = request(Command.DMA_UNMAP, at.DMA_UNMAP.pack(at.DMA_UNMAP.size, 0, 0, 4096))
    with Bench() as bench:
        CaptureDma(bench.session)
        bench.negotiate()
        before = fd_count(collect=True)
        bench.exchange(dma_map(0, 4096, memory), errno=errno.EINVAL)
        assert not read_here()
        assert fd_count(collect=True) == before
        bench.client.send(dma_map(0, 4096, memory))
        asked = bench.server.receive()
        assert not read_here(), "nobody knows yet"
        bench.server.send(asked.reply())
        bench.client.receive()
        assert read_here()
        bench.exchange(unmap, errno=errno.EBUSY)
        assert read_here()
        bench.exchange(unmap)
        assert not read_here()
        bench.client.send(dma_map(0, 4096, memory, posted=True))
        bench.server.receive()
        assert read_here(), "nobody will be told otherwise"
    os.close(memory)


@for_each(
    [CaptureDma, CaptureInterrupts],
    [False, True],
    ["drop", {"reply": "EIO"}, {"truncate": {"to": 20, "size": "keep"}}, {"wrong-size": 9}, "stall-after-header"],
)
def test_what_a_fault_keeps_from_the_server_changes_nothing(capture: Any, posted: bool, act: Any) -> None:
    """Not sent, or not as what it was: nothing of it is kept, though no answer comes."""
    irqs = at.IRQ_SET.pack(at.IRQ_SET.size, _WIRED, IrqIndex.MSIX, 0, 1)
    memory = os.memfd_create("guest")
    os.ftruncate(memory, 4096)
    with Bench() as bench, EventFd() as eventfd:
        capture(bench.session)
        match = {"direction": "to-server", "command": ["DMA_MAP", "SET_IRQS"]}
        scenario = Scenario.model_validate({"rules": [{"match": match, "act": act}]})
        Faults(bench.session, scenario, lambda _: 0)
        bench.negotiate()
        before = fd_count(collect=True)
        bench.client.send(dma_map(0, 4096, memory, posted=posted))
        bench.client.send(request(Command.SET_IRQS, irqs, fds=[eventfd.fd], posted=posted))
        bench.settle()
        with suppress(BlockingIOError):
            close_all(socket.recv_fds(bench.server.socket, 1 << 10, 8)[1])
        assert fd_count(collect=True) == before
    os.close(memory)


def test_what_comes_in_pieces_behind_a_message_that_nothing_follows_changes_nothing() -> None:
    irqs = at.IRQ_SET.pack(at.IRQ_SET.size, _WIRED, IrqIndex.MSIX, 0, 1)
    acts = {"DEVICE_RESET": {"stall-after-header": {}}, "SET_IRQS": {"split-header": {"at": 8, "seconds": 0.001}}}
    with Bench() as bench, EventFd() as eventfd:
        CaptureInterrupts(bench.session)
        matches = [{"direction": "to-server", "command": command} for command in acts]
        rules = [{"match": match, "act": act} for match, act in zip(matches, acts.values(), strict=True)]
        Faults(bench.session, Scenario.model_validate({"rules": rules}), lambda _: 0)
        bench.negotiate()
        bench.client.send(request(Command.DEVICE_RESET))
        bench.settle()
        before = fd_count(collect=True)
        for _ in range(3):
            bench.client.send(request(Command.SET_IRQS, irqs, fds=[eventfd.fd]))
            bench.settle()
        assert fd_count(collect=True) == before


@for_each([None, "hold", {"delay": 60}, {"delay": {"seconds": 60, "overtake": True}}, {"reorder": 5}], ids=str)
def test_what_is_kept_until_later_is_closed_with_the_session(act: Any) -> None:
    """Held on request, or by a fault in each of its ways."""
    with Bench() as bench:
        bench.negotiate()
        before = fd_count(collect=True)
        if act is None:
            bench.session.holding.hold()
        else:
            scenario = Scenario.model_validate({"rules": [{"match": {"command": "DMA_MAP"}, "act": act}]})
            Faults(bench.session, scenario, lambda _: 0)
        for page in range(3):
            with_an_eventfd(bench.client, dma_map(page << 12, 4096))
        bench.settle()
        assert fd_count(collect=True) == before + 3
        bench.session.close()
        assert fd_count(collect=True) == before - 2, "but for the session's two ends"


# A server that asks and does not listen


def sent_until_it_waits(bench: Bench, sock: socket.socket, message: Message, most: int) -> int:
    """How many of these its socket has taken, when it takes no more; `most` where it always does."""
    for count in range(most):
        bench.settle()
        try:
            sock.send(message.encode())
        except BlockingIOError:
            return count
    return most


@for_each_row([("MAX_BYTES", 1 << 20), ("MAX_MESSAGES", 200)])
def test_a_server_that_takes_no_answers_is_not_asked_for_more_questions(
    name: str, bound: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor forgotten: what it has asked is answered, once it reads, and what it asks then."""
    monkeypatch.setattr(f"userdev.relay.backlog.{name}", bound)
    memory, most = os.memfd_create("guest"), 3000
    os.ftruncate(memory, 1 << 20)
    owed = bytearray()

    def answered() -> Message | None:
        if (asked := bench.client.next()) is not None:  # what is too much to be kept here
            owed.extend(asked.reply(asked.payload[:16] + bytes(16 << 10)).encode())
        with suppress(BlockingIOError):
            del owed[: bench.client.socket.send(owed)]
        return bench.server.next()

    with Bench() as bench:
        CaptureDma(bench.session)
        bench.negotiate()
        bench.exchange(dma_map(0, 1 << 20, memory))
        count = sent_until_it_waits(bench, bench.server.socket, access(Command.DMA_READ, 16 << 10), most)
        assert count < most
        assert [len(bench.until(answered).payload) for _ in range(count)] == [16 + (16 << 10)] * count
        bench.server.send(access(Command.DMA_READ, 4))
        assert len(bench.server.receive().payload) == 16 + 4
    os.close(memory)


def test_a_server_whose_client_does_not_answer_is_not_asked_for_more_questions_on_its_second_socket() -> None:
    ours, theirs = socket.socketpair()
    text, most = b'{"capabilities":{"twin_socket":{"supported":true,"fd_index":0}}}\0', 3000
    with Bench() as bench, ours:
        CaptureDma(bench.session)
        bench.client.send(request(Command.VERSION, at.VERSION.pack(0, 0, tail=b"{}\0"), id=1))
        asked = bench.server.receive()
        bench.server.send(replace(asked.reply(at.VERSION.pack(0, 0, tail=text)), fds=[theirs.fileno()]))
        theirs.close()
        bench.client.receive()
        bench.most_idle = 150
        ours.setblocking(False)
        bench.settle()
        before, fd = fd_count(collect=True), os.eventfd(0)
        for _ in range(3):
            socket.send_fds(ours, [access(Command.DMA_READ, 4).encode()], [fd, fd])
            asked = bench.client.receive()
            assert not asked.fds
            bench.client.send(asked.reply(at.DMA_ACCESS.pack(0x10, 4, tail=b"data")))
            bench.settle()
        os.close(fd)
        assert fd_count(collect=True) == before
        assert len(received(ours)) == 3 * (16 + 16 + 4)
        count = sent_until_it_waits(bench, ours, access(Command.DMA_READ, 4), most)
        assert count < most
        answers = b""
        for _ in range(count):  # and is asked again as they are answered
            asked = bench.client.receive()
            bench.client.send(asked.reply(at.DMA_ACCESS.pack(0x10, 4, tail=b"data")))
            bench.settle()
            answers += received(ours)
        assert len(answers) == count * (16 + 16 + 4)


def received(sock: socket.socket) -> bytes:
    """What has come; nothing where that is so."""
    try:
        return sock.recv(1 << 16)
    except BlockingIOError:
        return b""


def access(command: Command, length: int, data: bytes = b"") -> Message:
    return Message(9, CURRENT.number(command), payload=at.DMA_ACCESS.pack(0x10, length, tail=data))


@for_each(
    [
        access(Command.DMA_READ, MAX_DATA + 1),
        access(Command.DMA_READ, 4, b"data"),
        access(Command.DMA_WRITE, 8, b"less"),
        access(Command.DMA_WRITE, 2, b"more"),
    ],
    ids=["too much", "with data", "less than said", "more than said"],
)
def test_what_no_client_would_answer_well_is_left_to_the_client(asked: Message) -> None:
    """A few bytes would otherwise have the interposer copy all of guest memory, and half a write be one."""
    with Bench() as bench:
        CaptureDma(bench.session)
        bench.negotiate()
        memory = os.memfd_create("guest")
        os.ftruncate(memory, 4 << 20)
        bench.exchange(dma_map(0, 4 << 20, memory))
        bench.server.send(asked)
        assert bench.client.receive() == asked
        assert bench.server.is_silent()
        assert os.pread(memory, 0x100, 0) == bytes(0x100)
        bench.server.send(access(Command.DMA_WRITE, 4, b"good"))
        assert bench.server.receive().is_reply
        assert os.pread(memory, 4, 0x10) == b"good"
        os.close(memory)


def test_those_of_requests_of_one_id_that_nobody_answers() -> None:
    """However many there are, so many are remembered."""
    with Bench() as bench:
        before = fd_count(collect=True)
        for number in range(2 * LIMIT):
            with_an_eventfd(bench.client, dma_map(number << 12, 4096, id=5))
            close_all(bench.server.receive().fds)
        assert LIMIT <= fd_count(collect=True) - before <= LIMIT + 1


@pytest.mark.parametrize("dialect", [CURRENT, DRAFT_V6], ids=str)
def test_what_the_client_gave_for_reading_or_writing_alone_is_used_for_nothing_else(dialect: Dialect) -> None:
    """A descriptor does not say what it was given for. And the draft wants the count of a write's answer to be 0."""
    numbers = {command: dialect.number(command) for command in (Command.DMA_READ, Command.DMA_WRITE, Command.DMA_MAP)}
    for rights in DmaFlags.READ, DmaFlags.WRITE:
        memory = os.memfd_create("guest")
        os.ftruncate(memory, 4096)
        with Bench(dialect=dialect) as bench:
            CaptureDma(bench.session)
            if dialect is DRAFT_V6:
                payload = at.DMA_ENTRY_V6.pack(0, 4096, 0, rights, 1)
            else:
                payload = at.DMA_MAP.pack(at.DMA_MAP.size, rights, 0, 0, 4096)
            bench.client.send(Message(1, numbers[Command.DMA_MAP], payload=payload, fds=[memory]))
            bench.server.send(bench.server.receive().reply())
            bench.client.receive()
            layout = dialect.shapes[Command.DMA_READ].request
            assert layout is not None
            for command, right, data in (
                (Command.DMA_READ, DmaFlags.READ, b""),
                (Command.DMA_WRITE, DmaFlags.WRITE, b"data"),
            ):
                asked = Message(9, numbers[command], payload=layout.pack(0x10, 4, tail=data))
                bench.server.send(asked)
                if right & rights:
                    count = layout.unpack(bench.server.receive().payload).length
                    assert count == (0 if dialect is DRAFT_V6 and data else 4)
                else:
                    assert bench.client.receive() == asked
                    assert bench.server.is_silent()
        os.close(memory)


def test_a_file_is_one_by_any_of_its_descriptors_and_has_a_name_until_that_is_removed(tmp_path: Path) -> None:
    """Without one nobody else opens it: a server that is started anew has another."""
    path = tmp_path / "file"
    path.touch()
    memory = os.memfd_create("test")
    named, other = os.open(path, os.O_RDONLY), os.open(path, os.O_RDWR)
    try:
        assert file_key(named) == file_key(other)
        assert not file_key(named).nameless
        assert file_key(memory).nameless
        path.unlink()
        assert file_key(named).nameless
    finally:
        for fd in (memory, named, other):
            os.close(fd)
