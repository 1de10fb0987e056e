"""Each check of the catalogue fails on a back-end of ours that has the fault which it is for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.vhost.faults import FAULTS, Faulty
from tests.vhost.faults.clauses import CLAUSES
from tests.vhost.faults.faulty import Usual, nothing
from tests.vhost.reverse import Reverse
from tests.vhost.test_conformance_suite import REVERSE, results
from userdev.conformance import Check, Level, Outcome
from userdev.process import Deadline
from vhost_user.frontend import Queue
from vhost_user.frontend.conformance import CATALOGUE, Bench
from vhost_user.rings import Ring, SplitInflight, SplitRing

SERVES_NOBODY_ANY_MORE = {"session/cut-off"}
"""Checks whose fault is the end of all conversations: whatever their level, nothing else can be judged behind them."""


@pytest.fixture
def faulty(monkeypatch: pytest.MonkeyPatch) -> Iterator[Faulty]:
    monkeypatch.setattr("userdev.serving.server.GRACE_SECONDS", 0.1)
    monkeypatch.setattr("vhost_user.frontend.conformance.bench.QUIET_SECONDS", 0.02)
    made = Faulty(monkeypatch)
    yield made
    made.close()


def test_there_is_a_fault_for_each_check() -> None:
    assert set(FAULTS) == {check.id for check in CATALOGUE}


@pytest.mark.parametrize("check", CATALOGUE, ids=lambda check: check.id)
def test_a_back_end_with_the_fault_fails_its_check(tmp_path: Path, faulty: Faulty, check: Check[Bench]) -> None:
    FAULTS[check.id](faulty)
    [result] = results(tmp_path, Reverse, REVERSE, check, timeout=0.2)
    differs = check.level is Level.OPEN and check.id not in SERVES_NOBODY_ANY_MORE
    assert result.outcome is (Outcome.DIFFERS if differs else Outcome.FAIL), result.detail


SERVED_AT_THE_END = [
    *(f"rings/{name}" for name in ("without-protocol-features", "call-before-kick", "kick-before-call")),
    *(f"memory/{name}" for name in ("table", "table-of-several", "slots", "offset-on-no-page", "over-a-border")),
    *("inflight/taken", "postcopy/ended"),
]


@pytest.mark.parametrize("id", SERVED_AT_THE_END)
def test_one_that_takes_every_message_and_does_nothing_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, faulty: Faulty, id: str
) -> None:
    """What a check has said has to be good for something."""
    monkeypatch.setattr("vhost_user.frontend.queue.Deadline", lambda _: Deadline(0.01))
    faulty.instead(Ring, "push", nothing)
    [check] = [check for check in CATALOGUE if check.id == id]
    assert results(tmp_path, Reverse, REVERSE, check)[0].outcome in (Outcome.FAIL, Outcome.DIFFERS)


def test_one_that_believes_where_it_was_to_go_on_and_does_what_was_under_way_too_is_found(
    tmp_path: Path, faulty: Faulty
) -> None:
    """A front-end whose back-end has died knows of what has come back alone, and says that."""

    def resubmit(usual: Usual, ring: SplitRing, region: SplitInflight) -> None:
        said = ring._next
        usual(ring, region)
        ring._next = ring._seen = said

    faulty.instead(SplitRing, "_resubmit", resubmit)
    [check] = [check for check in CATALOGUE if check.id == "inflight/resubmitted"]
    assert results(tmp_path, Reverse, REVERSE, check, timeout=0.2)[0].outcome is Outcome.FAIL


@pytest.mark.parametrize("cause", ["rings/served", "messages/acknowledged"])
def test_what_most_others_need_is_one_finding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, faulty: Faulty, cause: str
) -> None:
    """Rings that are not served are not waited for; answers are, or a late one would be another finding."""
    FAULTS[cause](faulty)
    if cause == "rings/served":
        faulty.instead(Ring, "push", nothing)  # or what comes back before anybody looks needs no call
        monkeypatch.setattr("vhost_user.frontend.queue.Deadline", lambda _: Deadline(0.05))
        faulty.instead(Queue, "wait_call", lambda usual, queue, seconds=0.05: usual(queue, seconds))
    some = [check for check in CATALOGUE if check.group in ("messages", "rings", "config")]
    found = results(tmp_path, Reverse, REVERSE, *some, timeout=1)
    wrong = {result.check.id for result in found if result.outcome in (Outcome.FAIL, Outcome.DIFFERS)}
    assert wrong == {cause}
    assert sum(result.outcome is Outcome.NOT_JUDGED for result in found) > 10


def test_whatever_a_check_requires_there_is_a_back_end_that_it_finds_by_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, faulty: Faulty
) -> None:
    """By the words of that requirement, as another one may find it later for what comes of it."""
    checks = {check.id: check for check in CATALOGUE}
    said: dict[tuple[str, str], str] = {}
    for id, words, fault in CLAUSES:
        with monkeypatch.context() as patch:
            fault(Faulty(patch))
            [result] = results(tmp_path, Reverse, REVERSE, checks[id], timeout=0.2)
        said[id, words] = result.detail
    assert {which: detail for which, detail in said.items() if which[1] not in detail} == {}
