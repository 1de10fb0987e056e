"""Requests that a device leaves in the ring: they are not taken, not lost, and not looked at over and over."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pytest

from tests.cases import for_each
from tests.vhost.reverse import Reverse
from tests.vhost_frontend import FEATURES, PROTOCOL, FrontEnd, P, Queue, R, V
from tests.vhost_kit import AnyDriver, Guest, PackedDriver, SplitDriver
from vhost_user.backend.in_band import InBand
from vhost_user.backend.lifecycle import RingEvent
from vhost_user.backend.misses import Misses
from vhost_user.backend.vring import BATCH, HandledVring
from vhost_user.device import LEFT, Chain, Taken, queue


class Leaving(Reverse):
    """Leaves what starts with "l" while `leaves`; in `events` is what was given."""

    leaves = True

    @queue()
    def reverse(self, chain: Chain) -> Taken:
        data = chain.read()
        self.events.append(f"given {data.decode()}")
        return LEFT if self.leaves and data.startswith(b"l") else chain.write(data)


@pytest.fixture
def device() -> Leaving:
    return Leaving()


def put(ring: Queue, *requests: bytes) -> None:
    for request in requests:
        ring.put(request, 16)
    ring.kick()


def given(device: Leaving) -> list[str]:
    return [event.removeprefix("given ") for event in device.events if event.startswith("given")]


@pytest.mark.parametrize("features", [V(0), V.RING_PACKED, V.IN_ORDER], ids=["split", "packed", "in order"])
@pytest.mark.parametrize("keeps_account", [False, True], ids=["", "in flight"])
def test_it_is_where_the_ring_goes_on_and_those_before_it_are_told(
    stranger: FrontEnd, device: Leaving, features: V, keeps_account: bool
) -> None:
    stranger.negotiate(FEATURES | features, PROTOCOL | P.INFLIGHT_SHMFD)
    stranger.share_memory()
    ring = stranger.queue()
    if keeps_account:
        stranger.set_inflight(stranger.ask_inflight(1, ring.size))
    put(ring, b"a", b"l1", b"b")
    ring.start()
    assert [done.data for done in ring.wait_used()] == [b"a"]
    base = ring.stop(drain=False)
    assert given(device)[:2] == ["a", "l1"]
    assert "b" not in given(device)
    device.leaves = False
    ring.start(base)
    assert [done.data for done in ring.wait_used(2)] == [b"l1", b"b"]
    ring.close()


def test_it_is_given_again_at_a_kick_and_not_without_one(front_end: FrontEnd, ring: Queue, device: Leaving) -> None:
    put(ring, b"l1")
    for _ in range(50):  # turns of the session
        front_end.ask(R.GET_FEATURES)
    before = len(given(device))
    assert before <= 2  # the kick may come after the look that has found it
    for _ in range(50):
        front_end.ask(R.GET_FEATURES)
    assert len(given(device)) == before
    device.leaves = False
    ring.kick()
    assert [done.data for done in ring.wait_used()] == [b"l1"]


def test_it_is_given_again_when_another_ring_begins(front_end: FrontEnd, ring: Queue, device: Leaving) -> None:
    put(ring, b"l1")
    front_end.settle()
    device.leaves = False
    other = front_end.queue(1)
    other.start(kick=False)
    assert [done.data for done in ring.wait_used()] == [b"l1"]
    other.close()


def alone(driver: AnyDriver, handler: Callable[[Chain], Taken], drain: Callable[[], None]) -> HandledVring:
    """A ring of a back-end's, without a session."""
    nobody = cast(Any, None)  # is asked by none of these
    shared = (Misses(nobody), InBand(lambda *_: False), nobody, drain)
    return HandledVring(0, Reverse(), handler, nobody, lambda _: driver.ring(), *shared)


@for_each((SplitDriver, PackedDriver), (RingEvent.DISABLE, RingEvent.STOP, RingEvent.BREAK))
def test_a_ring_that_runs_no_more_has_no_turn_though_there_is_more(kind: type[AnyDriver], event: RingEvent) -> None:
    """It was stopped in the middle of many: it is neither looked at nor served."""
    with Guest() as guest:
        driver = kind(guest)
        ring = alone(driver, lambda chain: chain.write(b""), lambda: None)
        ring.happen(RingEvent.ENABLE)
        ring.happen(RingEvent.START)
        driver.request()
        ring.serve()
        driver.request()
        assert [ring.look(), ring.pending, ring.is_awake] == [True] * 3
        ring.happen(event)
        assert [ring.pending, ring.is_awake] == [False] * 2
        assert driver.collect() == [1]
        ring.let_go()


def left_and_given_again(driver: AnyDriver) -> None:
    leaves = False
    drained: list[bool] = []
    ring = alone(driver, lambda chain: LEFT if leaves else chain.write(b""), lambda: drained.append(True))

    def has_more() -> list[bool]:
        return [ring.look(), ring.pending, ring.rest(), ring.pending]

    def leave_one() -> None:
        nonlocal leaves
        driver.request()
        leaves = True
        ring.kicked()
        ring.serve()
        leaves = False
        assert has_more() == [False] * 4

    ring.happen(RingEvent.ENABLE)
    ring.happen(RingEvent.START)
    assert has_more() == [False] * 4
    driver.request()
    assert has_more() == [True] * 4
    ring.serve()
    leave_one()
    ring.kicked()
    ring.serve()
    assert has_more() == [False] * 4
    driver.request()
    assert has_more() == [True] * 4, "nothing is left any more"
    ring.serve()
    leave_one()
    assert drained == []
    ring.happen(RingEvent.DISABLE)
    assert drained == [True]
    ring.happen(RingEvent.ENABLE)
    assert has_more() == [True] * 4, "it was not left by the ring that runs now"
    ring.serve()
    assert driver.collect() == [1, 2, 3, 4]


@for_each((SplitDriver, PackedDriver), (V.VERSION_1, V.VERSION_1 | V.IN_ORDER))
def test_a_ring_with_something_left_is_not_looked_at_and_asks_for_no_turn_until_it_is_told(
    kind: type[AnyDriver], features: V
) -> None:
    with Guest() as guest:
        left_and_given_again(kind(guest, features=features))


@for_each((SplitDriver, PackedDriver))
def test_a_driver_that_always_has_more_has_it_back_in_batches_and_keeps_nobody_waiting(kind: type[AnyDriver]) -> None:
    """A turn is no more than the ring can have."""
    had: list[int] = []
    with Guest() as guest:
        driver = kind(guest, 2 * BATCH)

        def handle(_: Chain) -> int:
            assert len(had) < 3 * BATCH, "it goes on and on"
            had.append(len(driver.collect()))
            driver.request(writable=())
            return 0

        ring = alone(driver, handle, lambda: None)
        ring.happen(RingEvent.ENABLE)
        ring.happen(RingEvent.START)
        driver.request(writable=())
        ring.serve()
        assert had == [*[0] * BATCH, BATCH, *[0] * (BATCH - 1)]
        assert ring.pending
        assert len(driver.collect()) == BATCH
        ring.let_go()
