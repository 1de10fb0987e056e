"""A back-end looks for requests for a moment before it sleeps, and no request and no message is lost by that."""

from __future__ import annotations

import os
from itertools import count

import pytest

from tests.vhost_frontend import FEATURES, FrontEnd, R, V
from vhost_user.backend import watch
from vhost_user.backend.watch import AGAIN, GOOD, SELDOM, TURNS, VAIN, WANTED_NS, Watch

RINGS = {"split": V(0), "split with events": V.EVENT_IDX, "packed": V.RING_PACKED, "in order": V.IN_ORDER}
SHORT, LONG = 1_000, 1_000_000_000


def eager() -> Watch:
    made = Watch()
    sleep(made, AGAIN)
    return made


def sleep(made: Watch, times: int) -> None:
    for _ in range(times):
        made.slept(SHORT)


def looks(made: Watch) -> bool:
    """Whether it does, but for the turn that is others'."""
    return made.is_worth_while or made.is_worth_while


def find(made: Watch, times: int = 1) -> None:
    for _ in range(times):
        assert made.until(lambda: True, lambda: False)


def look_in_vain(made: Watch) -> None:
    assert not made.until(lambda: False, lambda: False)


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody else wants this core: a clock that goes on by 1 us whenever it is looked at."""
    clock = count(step=1000)
    monkeypatch.setattr(watch, "perf_counter_ns", lambda: next(clock))


def test_it_looks_after_short_sleeps_and_not_after_a_long_one() -> None:
    made = Watch()
    assert not looks(made)
    sleep(made, AGAIN - 1)
    assert not looks(made)
    made.slept(SHORT)
    assert looks(made)
    made.slept(LONG)
    assert not looks(made)


def test_messages_have_their_turn_however_often_it_finds_something() -> None:
    made = eager()
    assert not all(made.is_worth_while for _ in range(TURNS + 1))


def test_it_gives_up_after_a_while_and_where_there_is_other_work() -> None:
    assert not eager().until(lambda: False, lambda: False)
    assert not eager().until(lambda: True, lambda: True)
    assert eager().until(lambda: True, lambda: False)


@pytest.mark.usefixtures("quiet")
def test_one_look_in_vain_among_many_that_find_something_changes_nothing() -> None:
    made = eager()
    for _ in range(10):
        find(made, VAIN)
        look_in_vain(made)
        assert looks(made)


@pytest.mark.usefixtures("quiet")
def test_looks_in_vain_are_tried_more_and_more_seldom_until_they_find_something_again() -> None:
    made = eager()
    tried: list[int] = []
    while len(tried) < 12:
        look_in_vain(made)
        slept = 0
        while not looks(made):
            made.slept(SHORT)
            slept += 1
        tried.append(slept)
    assert tried == [min(AGAIN << number, SELDOM) for number in range(1, 13)]
    find(made, GOOD)
    for _ in range(GOOD // VAIN + 1):
        look_in_vain(made)
    sleep(made, 2 * AGAIN)
    assert looks(made)


@pytest.mark.usefixtures("quiet")
def test_after_a_pause_it_tries_as_soon_as_at_first() -> None:
    made = eager()
    for _ in range(10):
        look_in_vain(made)
    sleep(made, AGAIN)
    assert not looks(made)
    made.slept(LONG)
    sleep(made, AGAIN)
    assert looks(made)


@pytest.mark.parametrize(("away", "gives_way"), [(WANTED_NS // 4, False), (WANTED_NS, True)])
def test_a_core_that_others_want_for_long_is_left_to_them_and_not_one_that_they_want_for_a_moment(
    monkeypatch: pytest.MonkeyPatch, away: int, gives_way: bool
) -> None:
    now = 0

    def run_others() -> None:
        nonlocal now
        now += away if now < away else 0

    monkeypatch.setattr(watch, "perf_counter_ns", lambda: now)
    monkeypatch.setattr(os, "sched_yield", run_others)
    made = eager()
    find(made, GOOD)
    answers = iter([False, False, True])
    assert made.until(lambda: next(answers), lambda: False) is not gives_way
    assert looks(made) is not gives_way


@pytest.mark.parametrize("looks", [True, False])
@pytest.mark.parametrize("features", RINGS.values(), ids=RINGS)
def test_a_driver_that_kicks_only_where_it_is_asked_to_loses_nothing(
    stranger: FrontEnd, monkeypatch: pytest.MonkeyPatch, features: V, looks: bool
) -> None:
    monkeypatch.setattr(watch, "SHORT_NS", LONG if looks else 0)
    stranger.negotiate(FEATURES | features)
    stranger.share_memory()
    ring = stranger.queue()
    ring.start()
    for turn in range(200):
        ring.put(b"ab", 2)
        ring.notify()
        assert [done.data for done in ring.wait_used()] == [b"ba"]
        if turn % 50 == 0:
            assert stranger.ask(R.GET_QUEUE_NUM) == 2
    ring.stop()
    ring.close()
