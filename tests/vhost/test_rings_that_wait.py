"""Rings whose translations are asked for: they wait for what was asked for, and not when they go on, stop or break."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pytest

from tests.vhost.both import BOTH
from tests.vhost.reverse import Reverse
from tests.vhost.test_ring_memory import Translated
from tests.vhost_kit import AnyDriver, Guest
from vhost_user.backend.in_band import InBand
from vhost_user.backend.lifecycle import RingEvent
from vhost_user.backend.misses import Misses
from vhost_user.backend.vring import HandledVring
from vhost_user.memory import IotlbMiss, Permission
from vhost_user.rings import Chain
from vhost_user.wire.payloads import IotlbMessage


class Behind(Translated):
    """One of a back-end's, with a driver that waits for it."""

    def __init__(self, guest: Guest, kind: type[AnyDriver]) -> None:
        super().__init__(guest, kind)
        self.wanted: list[IotlbMessage] = []
        self.misses = Misses(lambda wanted, _: self.wanted.append(wanted))
        self.at_a_request: Callable[[], None] = lambda: None
        nobody = cast(Any, None)  # is asked by none of these
        shared = (self.misses, InBand(lambda *_: False), nobody, lambda: None)
        self.device = Reverse()
        self.vring = HandledVring(
            0, self.device, self.handle, nobody, lambda _: self.driver.ring(iotlb=self.iotlb), *shared
        )
        self.vring.happen(RingEvent.ENABLE)
        self.vring.happen(RingEvent.START)

    def waits(self) -> bool:
        return self.misses.deadline is not None

    def handle(self, chain: Chain) -> int:
        self.at_a_request()
        return chain.write(chain.read()[::-1])

    def ask_for(self) -> None:
        """Make a request available, and tell of it."""
        self.request()
        self.vring.kicked()
        self.vring.serve()

    def go_on(self, until: Callable[[], bool] = lambda: False) -> None:
        """Answer what it asks for, until it asks for nothing."""
        while self.wanted and not until():
            wanted = self.wanted.pop()
            self.answer(IotlbMiss(wanted.iova, Permission(wanted.permissions)))
            self.misses.updated(wanted._replace(size=1))
            assert self.vring.pending
            self.vring.serve()


@pytest.fixture
def behind(guest: Guest, kind: type[AnyDriver]) -> Behind:
    return Behind(guest, kind)


WAYS: dict[str, Callable[[Behind], None]] = {
    "it has what it wants": Behind.go_on,
    "it is stopped": lambda behind: behind.vring.happen(RingEvent.STOP),
    "it is disabled": lambda behind: behind.vring.happen(RingEvent.DISABLE),
    "it is broken": lambda behind: behind.vring.break_down("by the test"),
}


@BOTH
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("runs", [False, True])
def test_a_ring_that_waits_no_more_is_not_waited_for_until_a_deadline(behind: Behind, way: str, runs: bool) -> None:
    """For its own memory, or for a request's when it runs already."""
    if runs:
        behind.go_on()
        behind.ask_for()
    assert behind.waits()
    WAYS[way](behind)
    assert not behind.waits()
    assert behind.driver.collect() == ([1] if runs and way == "it has what it wants" else [])


@BOTH
def test_what_is_done_while_its_ring_is_not_translated_reaches_the_driver_once_it_is(behind: Behind) -> None:
    behind.go_on()
    behind.at_a_request = behind.iotlb.clear
    behind.ask_for()
    behind.go_on(until=lambda: behind.vring.owes)
    assert behind.driver.collect() == []
    behind.go_on()
    assert behind.driver.collect() == [1]
    assert not behind.waits()


@BOTH
def test_a_ring_that_is_asked_whether_there_is_more_waits_for_its_own_memory_where_that_is_taken_back(
    behind: Behind,
) -> None:
    behind.go_on()
    for question in (HandledVring.look, HandledVring.rest):
        behind.iotlb.clear()
        assert not question(behind.vring)
        assert behind.waits(), question
        behind.go_on()
        assert not behind.waits(), question
    behind.ask_for()
    behind.go_on()
    assert behind.driver.collect() == [1]


@BOTH
def test_a_device_is_told_of_a_stop_only_where_it_was_told_of_a_start(behind: Behind) -> None:
    """Not of a ring that waited for where it is, also where it ran before."""
    behind.go_on()
    for _ in range(2):
        behind.vring.happen(RingEvent.STOP)
        behind.vring.let_go()
        behind.iotlb.clear()
        behind.vring.happen(RingEvent.START)
        assert behind.waits()
    assert behind.device.events == ["start 0", "stop 0"]
