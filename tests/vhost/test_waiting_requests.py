"""Requests that wait for something: others go on meanwhile, and nobody stops a ring before they have ended."""

from __future__ import annotations

import pytest

from tests.vhost.reverse import Reverse
from tests.vhost_frontend import FEATURES, FrontEnd, Queue, R, V
from vhost_user.frontend import Completion
from vhost_user.wire.payloads import VringState


def test_others_of_its_queue_and_of_another_go_on_meanwhile(front_end: FrontEnd, ring: Queue, device: Reverse) -> None:
    other = front_end.queue(1)
    other.start()
    ring.put(b"wait", 4)
    assert ring.exchange(b"ab", 2).data == b"ba"
    assert other.exchange(b"cd", 2).data == b"dc"
    device.go_on.set()
    assert [completion.data for completion in ring.wait_used()] == [b"tiaw"]
    other.close()


def test_a_ring_in_order_gives_back_what_came_behind_only_after_it(stranger: FrontEnd, device: Reverse) -> None:
    stranger.negotiate(FEATURES | V.IN_ORDER)
    stranger.share_memory()
    ring = stranger.queue()
    ring.put(b"wait", 4)
    ring.put(b"ab", 2)
    ring.start()
    stranger.settle()
    assert ring.take_used() == []
    device.go_on.set()
    assert [completion.written for completion in ring.wait_used(2)] == [4, 2]
    ring.close()


@pytest.mark.parametrize("request_", [R.GET_VRING_BASE, R.SET_VRING_ENABLE, R.RESET_DEVICE])
def test_whoever_stops_its_ring_waits_until_it_is_given_back(
    front_end: FrontEnd, ring: Queue, device: Reverse, request_: R
) -> None:
    ring.put(b"wait", 4)
    assert ring.exchange(b"ab", 2).data == b"ba"
    front_end.send(request_, None if request_ is R.RESET_DEVICE else VringState(0, 0), need_reply=True)
    assert device.events[-1] == "start 0"
    device.go_on.set()
    front_end.receive()
    assert [completion.data for completion in ring.wait_used()] == [b"tiaw"]
    assert "stop 0" in device.events


def test_it_ends_before_its_device_is_told_that_the_front_end_has_gone(
    front_end: FrontEnd, ring: Queue, device: Reverse
) -> None:
    ring.put(b"wait", 4)
    assert ring.exchange(b"ab", 2).data == b"ba"
    front_end.stream.shutdown()
    assert not {"stop 0", "detach"} & {*device.events}
    device.go_on.set()
    done: list[Completion] = []
    while not done:  # the connection has ended, so that nobody waits for requests by it
        assert ring.wait_call()
        done = ring.take_used()
    assert done[0].data == b"tiaw"


def test_one_that_fails_breaks_its_ring_and_those_before_are_told(
    front_end: FrontEnd, ring: Queue, device: Reverse
) -> None:
    ring.put(b"wait and fail", 4)
    ring.put(b"wait", 4)
    assert ring.exchange(b"ab", 2).data == b"ba"
    device.go_on.set()
    assert ring.wait_err()
    front_end.settle()
    assert [completion.written for completion in ring.take_used()] == [4]
    assert ring.stop() == 3


def test_a_number_of_bytes_that_cannot_be_breaks_the_ring(ring: Queue, device: Reverse) -> None:
    device._reverse_later = lambda chain, data: -1  # type: ignore[method-assign]
    ring.put(b"wait", 4)
    ring.kick()
    assert ring.wait_err()
