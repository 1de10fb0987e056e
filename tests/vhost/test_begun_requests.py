"""Requests that go on by themselves are ended before anything else: their driver is told, the ring stops, it breaks."""

from __future__ import annotations

from functools import partial

import pytest

from tests.vhost.reverse import Reverse
from tests.vhost_frontend import FEATURES, FrontEnd, Queue, R, V
from vhost_user.device import Begun, Chain, Later, Taken, queue
from vhost_user.wire.payloads import VringState


class Beginning(Reverse):
    """Begins what starts with "b"; in `events` is what was begun and ended."""

    @queue()
    def reverse(self, chain: Chain) -> Taken:
        data = chain.read()
        if data.startswith(b"b"):
            self.events.append(f"begin {data.decode()}")
            return Answer(self, chain, data)
        if data == b"fail":
            raise RuntimeError("on purpose")
        self.events.append(f"do {data.decode()}")
        return chain.write(data)


class Answer(Begun):
    """Answers when it ends."""

    def __init__(self, device: Beginning, chain: Chain, data: bytes) -> None:
        self.device = device
        self.chain = chain
        self.data = data

    def end(self) -> int | Later:
        self.device.events.append(f"end {self.data.decode()}")
        if self.data == b"bad":
            raise RuntimeError("on purpose")
        answer = partial(self.chain.write, self.data)
        return answer if self.data == b"by and by" else answer()


@pytest.fixture
def device() -> Beginning:
    return Beginning()


def put(ring: Queue, *requests: bytes) -> None:
    for request in requests:
        ring.put(request, 16)
    ring.kick()


def of_requests(device: Beginning) -> list[str]:
    return [event for event in device.events if event.split()[0] in ("begin", "end", "do")]


def test_those_that_were_taken_together_are_begun_first_and_told_when_all_have_ended(
    stranger: FrontEnd, device: Beginning
) -> None:
    stranger.negotiate()
    stranger.share_memory()
    ring = stranger.queue()
    put(ring, b"b1", b"x", b"b2")
    ring.start()
    assert sorted(done.data for done in ring.wait_used(3)) == [b"b1", b"b2", b"x"]
    assert of_requests(device) == ["begin b1", "do x", "begin b2", "end b1", "end b2"]
    ring.close()


@pytest.mark.parametrize("features", [V.IN_ORDER, V.RING_PACKED], ids=["in order", "packed"])
def test_an_order_that_was_agreed_on_is_kept(stranger: FrontEnd, features: V) -> None:
    stranger.negotiate(FEATURES | features)
    stranger.share_memory()
    ring = stranger.queue()
    put(ring, b"b1", b"x", b"b2")
    ring.start()
    found = [done.data for done in ring.wait_used(3)]
    assert found == [b"b1", b"x", b"b2"] if features is V.IN_ORDER else sorted(found) == [b"b1", b"b2", b"x"]
    ring.close()


def test_the_rest_of_one_may_wait_on_another_thread(ring: Queue) -> None:
    assert ring.exchange(b"by and by", 16).data == b"by and by"


def test_a_ring_that_is_stopped_has_nothing_under_way(front_end: FrontEnd, ring: Queue, device: Beginning) -> None:
    put(ring, *(b"b%d" % number for number in range(20)))
    front_end.ask(R.GET_VRING_BASE, VringState(0, 0))
    begun = sum(event.startswith("begin") for event in device.events)
    assert sum(event.startswith("end") for event in device.events) == begun
    assert device.events[-1] == "stop 0"


def test_what_was_begun_before_a_request_that_fails_is_ended_and_told(stranger: FrontEnd, device: Beginning) -> None:
    stranger.negotiate()
    stranger.share_memory()
    ring = stranger.queue()
    put(ring, b"b1", b"b2", b"fail", b"b3")
    ring.start()
    assert ring.wait_err()
    stranger.settle()
    assert [done.data for done in ring.take_used()] == [b"b1", b"b2"]
    assert of_requests(device) == ["begin b1", "begin b2", "end b1", "end b2"]
    ring.close()


def test_one_that_fails_when_it_ends_breaks_the_ring_and_the_others_are_ended_and_told(
    stranger: FrontEnd, device: Beginning
) -> None:
    stranger.negotiate()
    stranger.share_memory()
    ring = stranger.queue()
    put(ring, b"b1", b"bad", b"b2")
    ring.start()
    assert ring.wait_err()
    stranger.settle()
    assert [done.data for done in ring.take_used()] == [b"b1", b"b2"]
    assert of_requests(device)[-1] == "end b2"
    ring.close()
