"""Requests of an interposer's own, and what it knows of memory."""

from __future__ import annotations

import os

import pytest

from tests.cases import for_each_row
from tests.interposer_bench import Bench, answer, dma_map, read
from userdev.interposer.errors import PeerLost
from userdev.memory.bitmap import dirty_runs
from userdev.relay.direction import Direction
from userdev.relay.loop import Task
from vfio_user.interposer import own_calls
from vfio_user.wire import Command


def test_a_client_that_uses_the_id_of_our_request_gets_its_own_reply() -> None:
    with Bench() as bench:
        bench.negotiate()
        ours = Task(own_calls.region_read(bench.session, 0, 0x40, 4))
        asked = bench.server.receive()
        bench.client.send(read(0, 0x10, id=asked.id))
        other = bench.server.receive()
        assert other.id != asked.id
        bench.server.send(answer(other, b"them"))
        bench.server.send(answer(asked, b"ours"))
        reply = bench.client.receive()
        assert (reply.id, reply.payload[16:]) == (asked.id, b"them")
        bench.until(lambda: ours.done or None)
        assert ours.result() == b"ours"
        assert bench.client.is_silent()


def test_a_reply_that_comes_too_late_reaches_nobody() -> None:
    with Bench() as bench:
        bench.negotiate()
        ours = Task(own_calls.request(bench.session, Command.DEVICE_RESET, timeout=0.01))
        asked = bench.server.receive()
        bench.until(lambda: ours.done or None)
        with pytest.raises(TimeoutError):
            ours.result()
        bench.server.send(asked.reply())
        assert bench.client.is_silent()
        assert bench.exchange(read(0, 0)).command == read(0, 0).command


def test_a_request_of_ours_fails_when_the_server_goes() -> None:
    with Bench() as bench:
        bench.negotiate()
        ours = Task(own_calls.request(bench.session, Command.DEVICE_RESET))
        bench.server.receive()
        bench.server.close()
        bench.until(lambda: ours.done or None)
        with pytest.raises(PeerLost):
            ours.result()


def test_a_descriptor_of_the_same_memory_is_kept_once() -> None:
    """A guest behind a vIOMMU maps its memory in thousands of pieces, each with a descriptor."""
    memory = os.memfd_create("guest")
    os.truncate(memory, 1 << 20)
    with Bench() as bench:
        bench.negotiate()
        for page in range(200):
            bench.exchange(dma_map(page << 12, 4096, memory, offset=page << 12))
        assert len(bench.session.model.maps) == 200
        assert len(bench.session.model.fds) == 1
    os.close(memory)


@for_each_row(
    [
        (b"\0" * 8, []),
        (b"\x01" + b"\0" * 7, [(0x10000, 4096)]),
        (b"\x06\0\0\0\0\0\0\x80", [(0x11000, 8192), (0x10000 + 63 * 4096, 4096)]),
        (b"\xff" * 16, [(0x10000, 100 * 4096 - 512)]),
    ]
)
def test_a_bitmap_becomes_runs(bitmap: bytes, runs: list[tuple[int, int]]) -> None:
    length = 100 * 4096 - 512
    assert list(dirty_runs(bitmap, 0x10000, length, 4096)) == runs


def test_directions_are_each_others_opposite() -> None:
    assert Direction.TO_SERVER.opposite is Direction.TO_CLIENT
