"""A front-end that does not mean well has its own session, and nothing else."""

from __future__ import annotations

import contextlib
import gc
import os
from pathlib import Path

import pytest

from tests.device_kit import open_fds
from tests.vhost.reverse import Reverse
from tests.vhost_frontend import PROTOCOL, Disconnected, FrontEnd, P, Queue, R, split
from vhost_user.backend import Server, Session
from vhost_user.backend import server as server_module
from vhost_user.wire import HEADER, VERSION


def mapped() -> int:
    """Mappings of front-ends' memory and logs, and of regions of ours."""
    gc.collect()
    return Path("/proc/self/maps").read_text().count("memfd:")


def test_nothing_of_a_front_end_is_left(server: Server, device: Reverse) -> None:
    def visit() -> None:
        with FrontEnd(str(server.listener.address)) as front_end:
            front_end.negotiate(protocol=PROTOCOL | P.CONFIG | P.BACKEND_REQ)
            front_end.share_memory()
            ring = front_end.queue()
            ring.start()
            front_end.share_log()
            front_end.set_inflight(front_end.ask_inflight())
            ring.exchange(b"ab", 2)
        assert server._serving is not None
        server._serving.join(10)
        assert not server._serving.is_alive()

    visit()
    before = len(open_fds()), mapped()
    for _ in range(3):
        visit()
    assert (len(open_fds()), mapped()) == before


@pytest.mark.parametrize("garbage", [HEADER.pack(1, 1, 1 << 31), b"\xff" * 64, HEADER.pack(1, VERSION + 1, 0)])
def test_bytes_that_are_no_message_end_the_connection_and_the_next_is_served(server: Server, garbage: bytes) -> None:
    with FrontEnd(str(server.listener.address)) as front_end:
        front_end.stream.send(garbage)
        with pytest.raises(Disconnected):
            front_end.receive()
    with FrontEnd(str(server.listener.address)) as front_end:
        front_end.negotiate()


def test_a_front_end_that_ends_in_the_middle_of_a_message_is_survived(server: Server) -> None:
    with FrontEnd(str(server.listener.address)) as front_end:
        front_end.stream.send(HEADER.pack(int(R.SET_FEATURES), VERSION, 8) + b"\0")
    with FrontEnd(str(server.listener.address)) as front_end:
        front_end.negotiate()


def test_too_many_descriptors_end_the_connection_and_are_closed(server: Server) -> None:
    with FrontEnd(str(server.listener.address)) as front_end:
        front_end.negotiate()
        front_end.settle()
        before = len(open_fds())
        with contextlib.suppress(BrokenPipeError):
            for _ in range(10):
                front_end.stream.send(HEADER.pack(int(R.SET_OWNER), VERSION, 0), [front_end.memory.fd] * 100)
        with pytest.raises(Disconnected):
            front_end.receive()
        assert server._serving is not None
        server._serving.join(10)
        assert len(open_fds()) <= before


def test_a_second_front_end_is_hung_up_on(
    server: Server, front_end: FrontEnd, ring: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("userdev.serving.server.GRACE_SECONDS", 0.05)
    with FrontEnd(str(server.listener.address)) as other:
        other.send(R.GET_FEATURES)
        with pytest.raises(Disconnected):
            other.receive()
    assert ring.exchange(b"ab", 2).data == b"ba"


def test_a_front_end_that_says_nothing_does_not_keep_others_away(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "FIRST_SECONDS", 0.1)
    with FrontEnd(str(server.listener.address)) as silent, pytest.raises(Disconnected):
        silent.receive()
    with FrontEnd(str(server.listener.address)) as other:
        other.negotiate()


@pytest.mark.parametrize("blocking", [False, True])
def test_a_call_that_is_full_holds_nobody(server: Server, front_end: FrontEnd, blocking: bool) -> None:
    ring = front_end.queue()
    ring.start()
    os.eventfd_write(ring.call_fd, (1 << 64) - 2 - 1)
    os.set_blocking(ring.call_fd, blocking)
    ring.put(b"ab", 2)
    ring.kick()
    session = server._session
    assert isinstance(session, Session)
    while split(ring).used_index == 0:
        session.free()
    session.free()
    front_end.settle()


def test_kicks_without_an_end_leave_the_connection_served(front_end: FrontEnd, ring: Queue) -> None:
    for _ in range(200):
        ring.kick()
        front_end.settle()
    assert ring.exchange(b"ab", 2).data == b"ba"
