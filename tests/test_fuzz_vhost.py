"""Bad input for vhost-user in bulk, of messages and of rings: nothing but the one error, and nothing is left behind."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests import fuzzing_rings
from tests.fuzzing_rings import MEMORY, OPS, REGION, SIZE, Case, try_case
from tests.fuzzing_vhost import checked_campaign
from tests.fuzzing_vhost_messages import Generator
from tests.vhost_kit import Guest
from vhost_user.wire import VirtioFeature

MESSAGES, RINGS = 8_000, 1_500
"""In a run of the unit tests; scripts/fuzz does 1,000,000 messages."""

F = VirtioFeature


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


@pytest.fixture(scope="module")
def guest() -> Iterator[Guest]:
    with Guest(REGION, REGION) as made:
        yield made


features = st.lists(st.sampled_from([F.INDIRECT_DESC, F.EVENT_IDX, F.IN_ORDER]), unique=True).map(
    lambda some: F(int(F.VERSION_1) | sum(map(int, some)))
)
places = st.one_of(
    st.integers(0, 16 * SIZE - 1),
    st.integers(0x1000, 0x1000 + 6 + 2 * SIZE),
    st.integers(0x1800, 0x1806 + 8 * SIZE),
    st.integers(0x2000, 0x2200),
    st.integers(MEMORY, MEMORY + 511),
)
cases = st.builds(
    Case,
    packed=st.booleans(),
    features=features,
    has_inflight=st.booleans(),
    has_iotlb=st.booleans(),
    start=st.sampled_from([0, 5, 13]),
    requests=st.lists(st.tuples(st.sampled_from([1, 16, 64]), st.booleans()), max_size=3),
    bends=st.lists(st.tuples(places, st.integers(0, 255)), max_size=6),
    ops=st.lists(st.sampled_from(OPS), min_size=1, max_size=25),
)


@given(cases)
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_ring_writes_where_it_may_and_raises_one_error(guest: Guest, case: Case) -> None:
    try_case(case, guest)
