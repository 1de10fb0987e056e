"""Descriptors that reach the interposer and go no further are closed."""

from __future__ import annotations

import os
from dataclasses import replace

from tests.descriptors import fd_count
from tests.interposer_bench import Bench, Peer, dma_map
from userdev.transport import close_all
from vfio_user.interposer.capture import CaptureDma
from vfio_user.interposer.pairing import LIMIT
from vfio_user.wire import CURRENT, Command, Message
from vfio_user.wire import layouts as at


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


def test_those_of_requests_of_one_id_that_nobody_answers() -> None:
    """However many there are, so many are remembered."""
    with Bench() as bench:
        before = fd_count(collect=True)
        for number in range(2 * LIMIT):
            with_an_eventfd(bench.client, dma_map(number << 12, 4096, id=5))
            close_all(bench.server.receive().fds)
        assert LIMIT <= fd_count(collect=True) - before <= LIMIT + 1
