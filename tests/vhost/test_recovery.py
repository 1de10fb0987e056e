"""What migration and a death leave to the next back-end: the dirty log and the in-flight region."""

from __future__ import annotations

import errno
import mmap
import os
from itertools import product

import pytest

from tests.device_kit import open_fds
from tests.vhost.reverse import Reverse
from tests.vhost_frontend import FEATURES, MEMORY, Disconnected, FrontEnd, Queue, R, V, split
from vhost_user.backend import Server
from vhost_user.rings import SplitInflight, region_size
from vhost_user.wire import decode_reply, encode_request
from vhost_user.wire.payloads import Inflight, Log, VringState


def test_what_is_written_while_a_log_is_on_is_marked_data_and_ring(front_end: FrontEnd, ring: Queue) -> None:
    ring.exchange(b"ab", 2)
    log = front_end.share_log()
    ring.exchange(b"ab", 2)
    assert not log.pages()  # not before LOG_ALL
    front_end.log_writes()
    request = ring.put(b"ab", 0x9000)
    ring.kick()
    ring.wait_used()
    assert {ring.driver.addresses.used >> 12, request.places[1] >> 12} <= log.pages()
    other = front_end.share_log()
    log.clear()
    ring.exchange(b"ab", 2)
    assert other.pages()
    assert not log.pages()
    front_end.log_writes(False)
    other.clear()
    ring.exchange(b"ab", 2)
    ring.start(ring.stop())
    ring.exchange(b"ab", 2)
    assert not other.pages()


def test_a_ring_is_marked_where_that_was_said_of_it_and_data_wherever_a_log_is_on(
    front_end: FrontEnd, ring: Queue
) -> None:
    """Both may be said, and taken back, while it runs."""
    log = front_end.share_log()
    for on, of_the_ring in (*product((False, True), repeat=2), (True, False), (False, True), (True, True)):
        front_end.do(R.SET_FEATURES, int(FEATURES | (V.LOG_ALL if on else V(0))))
        ring.logged = of_the_ring
        front_end.do(R.SET_VRING_ADDR, ring.addresses)
        log.clear()
        request = ring.put(bytes(0x10000), 2)  # far enough from the ring: a byte of the log has 8 pages
        ring.kick()
        ring.wait_used()
        front_end.settle()
        marked = [place >> 12 in log.pages() for place in (request.places[1], ring.driver.addresses.used)]
        assert marked == [on, on and of_the_ring], (on, of_the_ring)


def test_a_log_that_does_not_reach_breaks_the_ring(front_end: FrontEnd, ring: Queue) -> None:
    front_end.share_log(1)
    front_end.do(R.SET_FEATURES, int(FEATURES | V.LOG_ALL))
    ring.put(bytes(0x9000), 2)  # what is written is beyond it
    ring.kick()
    assert ring.wait_err()


def test_a_wrong_log_is_refused_with_an_answer(front_end: FrontEnd) -> None:
    assert front_end.ask(R.SET_LOG_BASE, Log(2 * MEMORY, 0), [front_end.memory.fd]) == errno.EINVAL


def test_an_in_flight_region_is_made_for_the_queues_and_sealed(front_end: FrontEnd) -> None:
    described, fd = front_end.ask_inflight(2, 128)
    assert described == Inflight(2 * 2112, 0, 2, 128)
    assert os.fstat(fd).st_size == 2 * 2112
    with pytest.raises(PermissionError):
        os.ftruncate(fd, 16)
    _, other = front_end.ask_inflight()
    front_end.close()
    assert {str(fd), str(other)}.isdisjoint(open_fds()), "both are closed with the front-end that asked for them"


def test_a_ring_that_runs_keeps_the_region_that_it_was_started_with(front_end: FrontEnd) -> None:
    """Another one may come meanwhile; that neither is sealed makes each be looked at before it is used."""
    fds = [os.memfd_create("region") for _ in range(2)]
    described = Inflight(region_size(64, packed=False), 0, 1, 64)
    for fd in fds:
        os.ftruncate(fd, described.mmap_size)
    front_end.do(R.SET_INFLIGHT_FD, described, fds[:1])
    ring = front_end.queue()
    ring.start()
    assert ring.exchange(b"ab", 2).data == b"ba"
    front_end.do(R.SET_INFLIGHT_FD, described, fds[1:])
    assert ring.exchange(b"cd", 2).data == b"dc"
    assert any(os.pread(fds[0], described.mmap_size, 0))
    assert not any(os.pread(fds[1], described.mmap_size, 0))
    for fd in fds:
        os.close(fd)


@pytest.mark.parametrize("wanted", [Inflight(0, 0, 3, 8), Inflight(0, 0, 0, 8), Inflight(0, 0, 1, 40000)])
def test_an_in_flight_region_for_other_queues_ends_the_connection(front_end: FrontEnd, wanted: Inflight) -> None:
    front_end.send(R.GET_INFLIGHT_FD, wanted)
    with pytest.raises(Disconnected):
        front_end.receive()


@pytest.mark.parametrize(("kind", "base"), [(V(0), 3), (V.RING_PACKED, 0x8006_8006)], ids=["split", "packed"])
def test_what_was_in_flight_is_done_by_the_next_back_end_once(
    stranger: FrontEnd, server: Server, device: Reverse, kind: V, base: int
) -> None:
    """The younger one that had come back is not done again. A packed ring counts descriptors, of which each has two."""
    front_end = stranger
    front_end.negotiate(FEATURES | kind)
    front_end.share_memory()
    inflight = front_end.ask_inflight()
    front_end.set_inflight(inflight)
    ring = front_end.queue()
    ring.start()
    ring.exchange(b"ab", 2)
    request = ring.put(b"wait and fail", 13)  # taken, and never given back
    ring.kick()
    assert ring.exchange(b"cd", 2).data == b"dc"
    device.go_on.set()
    assert ring.wait_err()
    assert device.done == 2
    front_end.memory[request.places[0] : request.places[0] + 13] = b"done the next"
    front_end.reconnect(str(server.listener.address))
    front_end.negotiate(FEATURES | kind)
    front_end.share_memory()
    front_end.set_inflight(inflight)
    ring.start(kick=False)
    assert [completion.data for completion in ring.wait_used()] == [b"txen eht enod"]
    assert device.done == 3
    assert ring.stop() == base


def test_what_came_back_and_was_not_looked_at_is_not_done_again(stranger: FrontEnd, device: Reverse) -> None:
    """A packed ring's place is where its driver has looked: that is to be the end of what has come back."""
    for kind in (V(0), V.RING_PACKED, V.RING_PACKED | V.IN_ORDER):
        stranger.negotiate(FEATURES | kind)
        stranger.share_memory()
        ring = stranger.queue()
        ring.start()
        assert ring.wait_call(), "a ring tells its driver when it starts"
        ring.put(b"ab", 2)
        ring.kick()
        assert ring.wait_call()
        stranger.reset()
        ring.put(b"cd", 2)
        ring.start()
        assert [each.data for each in ring.wait_used(2)] == [b"ba", b"dc"], kind
        assert device.done == 1, kind
        ring.stop()
        stranger.reset()


def test_what_a_dead_back_end_left_is_done_before_a_ring_says_where_it_goes_on(front_end: FrontEnd) -> None:
    """A pause may come with the start: the base is behind requests that nobody else would do."""
    region = front_end.ask_inflight()
    front_end.set_inflight(region)
    with mmap.mmap(region.fd, region.described.mmap_size) as memory:
        left = SplitInflight(memoryview(memory), 64)
        left.recover(0, 64)
        ring = front_end.queue()
        left.take(ring.put(b"ab", 2).head)
        ring.set_up(0)
        del left
        stop = [
            encode_request(R.SET_VRING_ENABLE, VringState(0, 1)),
            encode_request(R.GET_VRING_BASE, VringState(0, 0)),
        ]
        front_end.send_bytes(b"".join(message.encode() for message in stop))
        answer = decode_reply(R.GET_VRING_BASE, front_end.receive(), front_end.negotiated)
    assert answer.num == 1
    assert [completion.data for completion in ring.take_used()] == [b"ba"]


def test_a_ring_that_breaks_at_what_a_dead_back_end_left_leaves_the_rest_to_the_next(
    front_end: FrontEnd, device: Reverse
) -> None:
    region = front_end.ask_inflight()
    front_end.set_inflight(region)
    with mmap.mmap(region.fd, region.described.mmap_size) as memory:
        left = SplitInflight(memoryview(memory), 64)
        left.recover(0, 64)
        ring = front_end.queue()
        first, *rest = (ring.put(data, 4) for data in (b"fail", b"abcd", b"efgh"))
        for request in (first, *rest):
            left.take(request.head)
        del left
        ring.start(0)
        assert ring.wait_err()
        front_end.settle()
        assert (split(ring).used_index, device.done) == (0, 0)
        front_end.memory[first.places[0] : first.places[0] + 4] = b"good"
        ring.stop(drain=False)
        ring.start(0)
        assert [completion.data for completion in ring.wait_used(3)] == [b"doog", b"dcba", b"hgfe"]
    assert not ring.wait_err(0), "it is another ring, which is not broken"
    assert ring.stop() == 3
