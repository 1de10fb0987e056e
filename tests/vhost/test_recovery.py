"""What migration and a death leave to the next back-end: the dirty log and the in-flight region."""

from __future__ import annotations

import errno
import os

import pytest

from tests.vhost.reverse import Reverse
from tests.vhost_frontend import FEATURES, MEMORY, DriverQueue, FrontEnd, Gone, R, V
from vhost_user.backend import Server
from vhost_user.wire.payloads import Inflight, Log


def test_what_is_written_while_a_log_is_on_is_marked_data_and_ring(front_end: FrontEnd, ring: DriverQueue) -> None:
    ring.read(b"ab", 2)
    log, _ = front_end.share_log(MEMORY // 4096 // 8)
    ring.read(b"ab", 2)
    assert not any(log[:])  # not before LOG_ALL
    front_end.do(R.SET_FEATURES, int(FEATURES | V.LOG_ALL))
    front_end.do(R.SET_VRING_ADDR, ring.addresses._replace(flags=1, log=ring.used))
    places = ring.put(b"ab", 0x9000)
    ring.kick()
    ring.wait_used()
    marked = {page for page in range(MEMORY >> 12) if log[page >> 3] & 1 << (page & 7)}
    assert {ring.used >> 12, places[1] >> 12} <= marked
    other, _ = front_end.share_log()
    log[:] = bytes(len(log))
    ring.read(b"ab", 2)
    assert any(other[:])
    assert not any(log[:])
    front_end.do(R.SET_FEATURES, int(FEATURES))
    other[:] = bytes(len(other))
    ring.read(b"ab", 2)
    assert not any(other[:])


def test_a_log_that_does_not_reach_breaks_the_ring(front_end: FrontEnd, ring: DriverQueue) -> None:
    front_end.share_log(1)
    front_end.do(R.SET_FEATURES, int(FEATURES | V.LOG_ALL))
    ring.put(b"ab", 2)
    ring.kick()
    assert ring.wait_err()


def test_a_wrong_log_is_refused_with_an_answer(front_end: FrontEnd) -> None:
    assert front_end.ask(R.SET_LOG_BASE, Log(2 * MEMORY, 0), [front_end.memory_fd]) == errno.EINVAL


def test_an_in_flight_region_is_made_for_the_queues_and_sealed(front_end: FrontEnd) -> None:
    described, fd = front_end.ask_inflight(2, 128)
    assert described == Inflight(2 * 2112, 0, 2, 128)
    assert os.fstat(fd).st_size == 2 * 2112
    with pytest.raises(PermissionError):
        os.ftruncate(fd, 16)
    os.close(fd)


@pytest.mark.parametrize("wanted", [Inflight(0, 0, 3, 8), Inflight(0, 0, 0, 8), Inflight(0, 0, 1, 40000)])
def test_an_in_flight_region_for_other_queues_ends_the_connection(front_end: FrontEnd, wanted: Inflight) -> None:
    front_end.send(R.GET_INFLIGHT_FD, wanted)
    with pytest.raises(Gone):
        front_end.receive()


def test_what_was_in_flight_is_done_by_the_next_back_end_once(
    front_end: FrontEnd, server: Server, device: Reverse
) -> None:
    described, fd = front_end.ask_inflight()
    front_end.do(R.SET_INFLIGHT_FD, described, [fd])
    ring = front_end.queue()
    ring.start()
    ring.read(b"ab", 2)
    ring.put(b"fail", 4)  # taken, and never given back
    ring.kick()
    assert ring.wait_err()
    assert device.done == 1
    memory = front_end.memory[:]
    front_end.close()
    with FrontEnd(str(server.listener.address)) as other:
        other.negotiate()
        other.share_memory()
        other.memory[:] = memory.replace(b"fail", b"good")
        other.do(R.SET_INFLIGHT_FD, described, [fd])
        again = other.queue()
        again.made, again.seen = 2, 1
        again.start(1)
        assert [written for _, written in again.wait_used()] == [4]
        assert device.done == 2
        assert again.stop() == 2
