"""A back-end looks for requests for a moment before it sleeps, and no request and no message is lost by that."""

from __future__ import annotations

import pytest

from tests.vhost_frontend import FEATURES, FrontEnd, R, V
from userdev import busy_wait

RINGS = {"split": V(0), "split with events": V.EVENT_IDX, "packed": V.RING_PACKED, "in order": V.IN_ORDER}
LONG = 1_000_000_000


@pytest.mark.parametrize("looks", [True, False])
@pytest.mark.parametrize("features", RINGS.values(), ids=RINGS)
def test_a_driver_that_kicks_only_where_it_is_asked_to_loses_nothing(
    stranger: FrontEnd, monkeypatch: pytest.MonkeyPatch, features: V, looks: bool
) -> None:
    monkeypatch.setattr(busy_wait, "SHORT_NS", LONG if looks else 0)
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
