"""Descriptors that reach the interposer and go no further are closed."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest

from tests.descriptors import fd_count
from tests.interposer_bench import Bench, Peer, dma_map, request
from userdev.transport import close_all
from vfio_user.interposer.capture import CaptureDma, CaptureInterrupts
from vfio_user.interposer.pairing import LIMIT
from vfio_user.wire import CURRENT, MAX_DATA, Command, Message
from vfio_user.wire import layouts as at
from vfio_user.wire.constants import IrqIndex, IrqSetFlags


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
        bench.client.send(dma_map(0, 4096, memory))
        os.close(memory)
        assert bench.server.receive().fds == []
        before = fd_count(collect=True)
        with_an_eventfd(bench.server, Message(7, CURRENT.number(Command.DMA_READ), payload=at.DMA_ACCESS.pack(0, 16)))
        assert bench.server.receive().is_reply
        assert fd_count(collect=True) == before


def test_those_of_interrupts_that_the_client_takes_back() -> None:
    """It closes its own then, and believes that nobody signals it any more."""
    wired = IrqSetFlags.DATA_EVENTFD | IrqSetFlags.TRIGGER
    disabled = IrqSetFlags.DATA_NONE | IrqSetFlags.TRIGGER

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
        none = set_irqs(disabled, 0, 0)
        assert none == before
        each = set_irqs(wired, 0, 1, given=1) - before
        assert set_irqs(wired, 1, 3, given=3) == before + 4 * each
        assert set_irqs(wired, 0, 1, IrqIndex.INTX, given=1) == before + 5 * each
        assert set_irqs(wired, 1, 2, given=2) == before + 5 * each, "in the place of others"
        assert set_irqs(wired, 2, 1) == before + 4 * each
        assert set_irqs(wired, 0, 4, given=1) == before + 2 * each, "those without a descriptor have none"
        assert set_irqs(disabled, 0, 0) == before + each
        assert set_irqs(disabled, 0, 0, IrqIndex.INTX) == before


def access(command: Command, length: int, data: bytes = b"") -> Message:
    return Message(9, CURRENT.number(command), payload=at.DMA_ACCESS.pack(0x10, length, tail=data))


@pytest.mark.parametrize(
    "asked",
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
