"""Whatever a front-end says while a request waits: that ends once, and the session goes on."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest

from tests.vhost.reverse import Reverse
from tests.vhost_frontend import FEATURES, PROTOCOL, FrontEnd, P, Queue, R
from vhost_user.wire.payloads import Config, Inflight, Log, VringState

Say = Callable[[FrontEnd, Queue], Any]


@pytest.fixture
def pair(stranger: FrontEnd, device: Reverse) -> Iterator[tuple[FrontEnd, Queue]]:
    """A front-end that has agreed on much, and its ring, of which two requests wait."""
    stranger.negotiate(FEATURES, PROTOCOL | P.CONFIG | P.STATUS)
    stranger.share_memory()
    ring = stranger.queue()
    ring.start()
    for _ in range(2):
        ring.put(b"wait", 4)
    assert ring.exchange(b"ab", 2).data == b"ba"
    yield stranger, ring
    device.go_on.set()
    ring.close()


def say(request: R, value: Any = None, fds: Callable[[FrontEnd], list[int]] = lambda _: []) -> Say:
    """Something that is answered with a number."""
    return lambda front_end, _: front_end.send(request, value, fds(front_end), need_reply=True)


def memory_again(front_end: FrontEnd, _: Queue) -> None:
    regions = front_end.memory.regions
    front_end.send(R.SET_MEM_TABLE, regions, [front_end.memory.fd] * len(regions), need_reply=True)


def another_call(front_end: FrontEnd, ring: Queue) -> None:
    front_end.send(R.SET_VRING_CALL, 0, [ring.call_fd], need_reply=True)


def another_kick(front_end: FrontEnd, ring: Queue) -> None:
    front_end.send(R.SET_VRING_KICK, 0, [ring.kick_fd], need_reply=True)


def same_addresses(front_end: FrontEnd, ring: Queue) -> None:
    front_end.send(R.SET_VRING_ADDR, ring.addresses, need_reply=True)


def same_features(front_end: FrontEnd, _: Queue) -> None:
    front_end.send(R.SET_FEATURES, int(front_end.negotiated.features), need_reply=True)


def log(front_end: FrontEnd, _: Queue) -> None:
    fd = os.memfd_create("log")
    os.ftruncate(fd, 4096)
    front_end.send(R.SET_LOG_BASE, Log(4096, 0), [fd], need_reply=True)
    os.close(fd)


GOES_ON: Mapping[str, tuple[Say, int]] = {
    "features asked": (say(R.GET_FEATURES), 0),
    "queues asked": (say(R.GET_QUEUE_NUM), 0),
    "slots asked": (say(R.GET_MAX_MEM_SLOTS), 0),
    "configuration asked": (say(R.GET_CONFIG, Config(0, 8, 0, bytes(8))), 0),
    "configuration written": (say(R.SET_CONFIG, Config(8, 1, 0, b"\2")), 0),
    "status asked": (say(R.GET_STATUS), 0),
    "a region for in-flight requests asked": (say(R.GET_INFLIGHT_FD, Inflight(0, 0, 1, 64)), 0),
    "the same features": (same_features, 0),
    "the same memory": (memory_again, 0),
    "a log": (log, 0),
    "another call": (another_call, 0),
    "another kick": (another_kick, 0),
    "the same addresses": (same_addresses, 0),
    "a size": (say(R.SET_VRING_NUM, VringState(0, 32)), errno.EINVAL),
    "a base": (say(R.SET_VRING_BASE, VringState(0, 0)), errno.EINVAL),
    "enabled": (say(R.SET_VRING_ENABLE, VringState(0, 1)), 0),
    "a queue that there is not": (say(R.SET_VRING_ENABLE, VringState(9, 1)), errno.EINVAL),
}
"""What is said, and the error that it is answered with."""

WAITS: Mapping[str, Say] = {
    "disabled": say(R.SET_VRING_ENABLE, VringState(0, 0)),
    "stopped": say(R.GET_VRING_BASE, VringState(0, 0)),
    "reset": say(R.RESET_DEVICE),
    "a status of 0": say(R.SET_STATUS, 0),
    "an owner": say(R.SET_OWNER),
    "no owner": say(R.RESET_OWNER),
}
"""What has the ring stand still: it is answered behind the request."""


@pytest.mark.parametrize("said", GOES_ON)
def test_what_stops_no_ring_is_answered_at_once(pair: tuple[FrontEnd, Queue], device: Reverse, said: str) -> None:
    front_end, ring = pair
    request, error = GOES_ON[said]
    request(front_end, ring)
    answer = front_end.receive()
    for fd in answer.fds:
        os.close(fd)
    if error:
        assert int.from_bytes(answer.payload[:8], "little") != 0
    front_end.settle()
    device.go_on.set()
    assert [completion.data for completion in wait_used(front_end, ring)] == [b"tiaw"] * 2
    assert ring.exchange(b"cd", 2).data == b"dc"


@pytest.mark.parametrize("said", WAITS)
def test_what_stops_a_ring_is_answered_when_its_request_has_ended(
    pair: tuple[FrontEnd, Queue], device: Reverse, said: str
) -> None:
    front_end, ring = pair
    WAITS[said](front_end, ring)
    assert "stop 0" not in device.events
    device.go_on.set()
    front_end.receive()
    assert [completion.data for completion in ring.take_used()] == [b"tiaw"] * 2, "before it is answered"
    assert device.events.count("stop 0") == 1
    front_end.settle()
    assert device.events.count("stop 0") == 1


def test_a_ring_whose_memory_goes_meanwhile_breaks_alone(pair: tuple[FrontEnd, Queue], device: Reverse) -> None:
    front_end, ring = pair
    front_end.do(R.REM_MEM_REG, front_end.memory.regions[0])
    device.go_on.set()
    assert ring.wait_err()
    front_end.settle()


def wait_used(front_end: FrontEnd, ring: Queue) -> list[Any]:
    """What has come back, by the time that another thread's end was told on the session's."""
    done: list[Any] = []
    for _ in range(10_000):
        done += ring.take_used()
        if len(done) == 2:
            return done
        front_end.settle()
    raise AssertionError("the requests do not come back")
