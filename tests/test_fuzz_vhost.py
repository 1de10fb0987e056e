"""Bad input for vhost-user in bulk, of messages and of rings: nothing but the one error, and nothing is left behind."""

from __future__ import annotations

from tests import fuzzing_rings
from tests.fuzzing_vhost import checked_campaign
from tests.fuzzing_vhost_messages import Generator

MESSAGES, RINGS = 8_000, 1_700
"""In a run of the unit tests; scripts/fuzz does 1,000,000 messages."""


def test_messages_of_every_kind_are_answered_in_order_and_leave_nothing_behind() -> None:
    outcome = checked_campaign(MESSAGES, seed=20261129)
    assert outcome.wrong == []
    assert outcome.messages >= MESSAGES
    assert 0 < outcome.refused < MESSAGES
    assert 0 < outcome.whole < outcome.sessions


def test_rings_of_any_content_break_or_go_on() -> None:
    outcome = fuzzing_rings.campaign(RINGS, seed=20261129)
    assert outcome.wrong == []
    assert 0 < outcome.refused < RINGS


def test_a_seed_says_what_happens() -> None:
    first, second = Generator(5), Generator(5)
    assert [drawn.data for drawn in first.pool] == [drawn.data for drawn in second.pool]
    assert first.images == second.images
