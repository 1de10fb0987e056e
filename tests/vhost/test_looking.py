"""A back-end looks for requests for a moment before it sleeps, and no request and no message is lost by that."""

from __future__ import annotations

import pytest

from tests.vhost_frontend import FEATURES, FrontEnd, R, V
from vhost_user.backend import watch
from vhost_user.backend.watch import AGAIN, TURNS, Watch

RINGS = {"split": V(0), "split with events": V.EVENT_IDX, "packed": V.RING_PACKED, "in order": V.IN_ORDER}
SHORT, LONG = 1_000, 1_000_000_000


def eager() -> Watch:
    made = Watch()
    for _ in range(AGAIN + 1):
        made.slept(SHORT)
    return made


def test_it_looks_after_short_sleeps_and_not_after_a_long_one() -> None:
    made = Watch()
    assert not made.is_worth_while
    made = eager()
    assert made.is_worth_while
    made.slept(LONG)
    assert not made.is_worth_while


def test_messages_have_their_turn_however_often_it_finds_something() -> None:
    made = eager()
    assert not all(made.is_worth_while for _ in range(TURNS + 1))


def test_it_gives_up_after_a_while_and_where_there_is_other_work() -> None:
    assert not eager().until(lambda: False, lambda: False)
    assert not eager().until(lambda: True, lambda: True)
    assert eager().until(lambda: True, lambda: False)


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
