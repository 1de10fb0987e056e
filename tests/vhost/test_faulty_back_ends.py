"""Each check of the catalogue fails on a back-end of ours that has the fault which it is for."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NoReturn

import pytest

from tests.cases import for_each
from tests.requirements_of_checks import Requirements
from tests.userfaults import NOT_OFFERED
from tests.vhost.faults import FAULTS, Faulty
from tests.vhost.faults.clauses import CLAUSES, NOT_SERVED
from tests.vhost.faults.faulty import Usual, nothing
from tests.vhost.reverse import REVERSE, Reverse
from tests.vhost.test_conformance_suite import results
from userdev.conformance import Level, Outcome
from userdev.errors import ProtocolError
from userdev.process import Deadline
from vhost_user.backend.commands import COMMANDS
from vhost_user.frontend import Queue, conformance
from vhost_user.frontend.conformance import CATALOGUE
from vhost_user.rings import Ring, SplitInflight, SplitRing
from vhost_user.wire import NO_FD, FrontEndRequest

SERVES_NOBODY_ANY_MORE = {("session/cut-off", ""), *((id, words) for id, words, _ in CLAUSES if words == NOT_SERVED)}
"""Checks and words whose fault is the end of all conversations: whatever their level, nothing can be judged behind."""


def impatient(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("userdev.serving.server.GRACE_SECONDS", 0.1)
    patch.setattr("vhost_user.frontend.conformance.bench.QUIET_SECONDS", 0.02)


@pytest.fixture
def faulty(monkeypatch: pytest.MonkeyPatch) -> Iterator[Faulty]:
    impatient(monkeypatch)
    made = Faulty(monkeypatch)
    yield made
    made.close()


PATIENCE = (0.2, 2.0, 10.0)
"""Seconds for what may never come: with more of them only where an answer was late, on a machine that is busy."""


def test_there_is_a_fault_for_each_check() -> None:
    assert set(FAULTS) == {check.id for check in CATALOGUE}


@pytest.mark.long
@pytest.mark.pure
def test_a_back_end_with_the_fault_fails_its_check(tmp_path: Path) -> None:
    """Whatever a check requires there is one, by the words of that: another requirement may find it for what comes of
    it.
    """
    requirements = Requirements(conformance, {"alive", "refused", "accepted"})
    checks = {check.id: requirements.watched(check) for check in CATALOGUE if check.id not in NOT_OFFERED}
    wrong: dict[tuple[str, str], str] = {}
    everything = [row for row in (*((id, "", fault) for id, fault in FAULTS.items()), *CLAUSES) if row[0] in checks]

    def unfound() -> list[str]:
        return [
            place for place in requirements.that_found_nobody() if not (NOT_OFFERED and place.startswith("postcopy"))
        ]

    rows, late = everything, list[Any]()
    for seconds in PATIENCE:
        left, rows, late = [*rows, *(late if unfound() else [])], [], []
        for row in left:
            id, words, fault = row
            with pytest.MonkeyPatch.context() as patch, closing(Faulty(patch)) as made:
                impatient(patch)
                fault(made)
                [result] = results(tmp_path, Reverse, REVERSE, checks[id], timeout=seconds)
            differs = checks[id].level is Level.OPEN and (id, words) not in SERVES_NOBODY_ANY_MORE
            if words not in result.detail or result.outcome is not (Outcome.DIFFERS if differs else Outcome.FAIL):
                rows.append(row)
                wrong[id, words] = f"{result.outcome.value}: {result.detail}"
            else:
                wrong.pop((id, words), None)
                if f"within {seconds:g} s" in result.detail:
                    late.append(row)
    assert wrong == {}
    assert unfound() == []


SERVED_AT_THE_END = {
    *(f"rings/{name}" for name in ("without-protocol-features", "call-before-kick", "kick-before-call")),
    *(f"memory/{name}" for name in ("table", "table-of-several", "slots", "offset-on-no-page", "over-a-border")),
    "inflight/taken",
    "postcopy/ended",
}
SERVED_BEFORE_THE_SILENCE = {"rings/stopped", "rings/suspended", "reset/stops", "status/zero-stops"}


@for_each(sorted((SERVED_AT_THE_END | SERVED_BEFORE_THE_SILENCE) - NOT_OFFERED))
def test_one_that_takes_every_message_and_does_nothing_is_found(
    id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, faulty: Faulty
) -> None:
    """What a check has said has to be good for something; and what is silent for what it was told, not anyway."""
    monkeypatch.setattr("vhost_user.frontend.queue.Deadline", lambda _: Deadline(0.01))
    faulty.instead(Ring, "push", nothing)
    [check] = [check for check in CATALOGUE if check.id == id]
    assert results(tmp_path, Reverse, REVERSE, check)[0].outcome in (Outcome.FAIL, Outcome.DIFFERS)


@pytest.mark.pure
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
        faulty.instead(Queue, "_await", lambda usual, queue, seconds: usual(queue, min(seconds, 0.05)))
    some = [check for check in CATALOGUE if check.group in ("messages", "rings", "config")]
    found = results(tmp_path, Reverse, REVERSE, *some, timeout=1)
    wrong = {result.check.id for result in found if result.outcome in (Outcome.FAIL, Outcome.DIFFERS)}
    assert wrong == {cause}
    assert sum(result.outcome is Outcome.NOT_JUDGED for result in found) > 10


def test_a_base_that_is_wrong_is_one_finding(tmp_path: Path, faulty: Faulty) -> None:
    FAULTS["rings/base-at-stop"](faulty)
    some = [check for check in CATALOGUE if check.group in ("rings", "inflight", "session", "state")]
    found = results(tmp_path, Reverse, REVERSE, *some, timeout=1)
    wrong = {result.check.id: result.detail for result in found if result.outcome in (Outcome.FAIL, Outcome.DIFFERS)}
    assert wrong.keys() == {"rings/base-at-stop"}, wrong


def test_a_request_that_is_acknowledged_and_ignored_is_one_finding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever level the rules have that its being ignored breaks."""
    patience = Deadline
    monkeypatch.setattr("vhost_user.frontend.queue.Deadline", lambda seconds: patience(min(seconds, 2.0)))
    ignored: dict[FrontEndRequest, tuple[int | None, str, str]] = {
        FrontEndRequest.SET_FEATURES: (None, "iommu", "features/taken"),
        FrontEndRequest.RESET_DEVICE: (None, "reset", "reset/stops"),
        FrontEndRequest.SET_STATUS: (None, "status", "status/kept"),
        FrontEndRequest.SET_MEM_TABLE: (None, "memory", "rings/without-protocol-features"),
        FrontEndRequest.SET_INFLIGHT_FD: (None, "inflight", "inflight/kept"),
        FrontEndRequest.SET_LOG_BASE: (0, "log", "log/data"),
        FrontEndRequest.SET_DEVICE_STATE_FD: (NO_FD, "state", "state/saved"),
    }
    for request, (answer, group, cause) in ignored.items():
        (folder := tmp_path / request.name).mkdir()
        ignoring = {**COMMANDS, request: lambda *_, answer=answer: answer}
        monkeypatch.setattr("vhost_user.backend.session.COMMANDS", ignoring)
        some = [check for check in CATALOGUE if check.group == group or check.id == cause]
        found = results(folder, Reverse, REVERSE, *some, timeout=5)
        wrong = {result.check.id for result in found if result.outcome in (Outcome.FAIL, Outcome.DIFFERS)}
        assert wrong == {cause}, request


def test_a_request_that_a_back_end_never_does_is_one_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One handler that fails, of requests that many checks need: answered, or ended with the connection."""

    def refuse(*_: object) -> NoReturn:
        raise ProtocolError("it is broken", errno.EIO)

    needed = {
        FrontEndRequest.GET_VRING_BASE: ("messages", "rings", "kinds"),
        FrontEndRequest.SET_MEM_TABLE: ("rings", "memory"),
        FrontEndRequest.SET_OWNER: ("features", "messages"),
        FrontEndRequest.GET_CONFIG: ("config",),
    }
    for number, (request, groups) in enumerate(needed.items()):
        folder = tmp_path / str(number)
        folder.mkdir()
        monkeypatch.setattr("vhost_user.backend.session.COMMANDS", {**COMMANDS, request: refuse})
        some = [check for check in CATALOGUE if check.group in groups and check.level is not Level.OPEN]
        found = results(folder, Reverse, REVERSE, *some, timeout=10)
        wrong = [result.check.id for result in found if result.outcome is Outcome.FAIL]
        assert len(wrong) == 1, (request, wrong)
        assert sum(result.outcome is Outcome.NOT_JUDGED for result in found) > 1, request
