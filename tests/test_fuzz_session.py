"""Bad input in bulk: every message has its one reply, the process lives, descriptors and memory are given back."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.descriptors import fd_count
from tests.everything_device import Everything
from tests.fuzzing import Generator, Script, campaign, proposal, resident_bytes, run_session
from vfio_user.wire import CURRENT, DIALECTS, HEADER, Dialect, Message

MESSAGES = 5_000
"""Of each dialect: 25,000 in a run of the unit tests, of which most is noticed; each run of CI sends a million."""

ALL_DIALECTS = pytest.mark.parametrize("dialect", DIALECTS.values(), ids=DIALECTS)


@pytest.fixture
def device() -> Iterator[Everything]:
    device = Everything()
    yield device
    device.close()


@ALL_DIALECTS
def test_nearly_right_messages_and_rubbish_leave_nothing_behind(dialect: Dialect) -> None:
    campaign(dialect, 1000, seed=0)
    gc.collect()
    fds, memory = fd_count(), resident_bytes()
    outcome = campaign(dialect, MESSAGES, seed=20201109)
    gc.collect()
    assert outcome.wrong == []
    assert outcome.messages == MESSAGES
    assert 0 < outcome.refused < MESSAGES
    assert fd_count() == fds
    assert resident_bytes() - memory < 8 << 20


def replies(device: Everything, pieces: list[tuple[bytes, list[int]]], dialect: Dialect) -> list[Message]:
    """What a session answers to these messages, each cut at its places."""
    script = Script(lambda request: request.error(1))
    script.add(proposal(dialect))
    for data, cuts in pieces:
        script.add(data, cuts=cuts)
    run_session(device, script, dialect)
    return script.replies


@given(seed=st.integers(0, 1 << 32), dialect=st.sampled_from(list(DIALECTS.values())))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_stream_means_the_same_whole_and_byte_by_byte(seed: int, dialect: Dialect) -> None:
    generator = Generator(dialect, seed)
    messages = [generator.message(id)[0] for id in range(20)]
    answers = []
    for cut in (False, True):
        fresh = Everything()
        pieces = [(data, list(range(len(data))) if cut and len(data) < 600 else []) for data in messages]
        answers.append(replies(fresh, pieces, dialect))
        fresh.close()
    assert answers[0] == answers[1]


@given(data=st.binary(max_size=200), cuts=st.lists(st.integers(0, 200), max_size=5))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_are_answered_or_end_the_session(device: Everything, data: bytes, cuts: list[int]) -> None:
    for reply in replies(device, [(data, cuts)], CURRENT)[1:]:
        assert reply.is_reply
    run_session(device, script_of(data), CURRENT)


def script_of(data: bytes) -> Script:
    """A client whose very first bytes are these."""
    script = Script(lambda request: None)
    script.add(data)
    return script


@pytest.mark.parametrize("size", [1 << 21, 0x7FFF_FFFF, 0xFFFF_FFFF])
def test_a_size_that_no_message_has_is_answered_once_and_costs_no_memory(device: Everything, size: int) -> None:
    memory = resident_bytes()
    got = replies(device, [(HEADER.pack(7, 9, size, 0, 0) + bytes(4096), [])], CURRENT)
    assert [(reply.id, reply.failed) for reply in got] == [(0xFFFF, False), (7, True)]
    assert resident_bytes() - memory < 8 << 20


def test_a_seed_says_what_happens() -> None:
    first, second = (Generator(CURRENT, 5) for _ in range(2))
    assert [first.message(id) for id in range(100)] == [second.message(id) for id in range(100)]
