"""Whatever a check requires there is a server that it finds by that: `tests/clauses/table.py` has one for each.

`test_conformance_can_fail` has a server that each check fails, which may be for another requirement than these.
"""

from __future__ import annotations

import os
from itertools import count
from pathlib import Path

import pytest

from tests.clauses.table import CLAUSES
from tests.conformance_target import Fault, InProcess, with_fault
from tests.requirements_of_checks import Requirements
from vfio_user.client import conformance
from vfio_user.client.conformance import CATALOGUE, Bench, bench, run, sessions

MIB = 1 << 20
PATIENCE = (1.0, 20.0)
"""Seconds for what may never come: with all of them only where an answer was late, on a machine that is busy."""


@pytest.mark.long
def test_whatever_a_check_requires_there_is_a_server_that_it_finds_by_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each by the words of that requirement, as another one may find it later for what comes of it."""
    descriptors, memory = count(), count(step=64 * MIB)
    monkeypatch.setattr(Bench, "server_fds", lambda _: next(descriptors))
    monkeypatch.setattr(bench, "CLOSING_SECONDS", 0)
    monkeypatch.setattr(sessions, "_resident", lambda _: next(memory))
    requirements = Requirements(conformance, {"refused", "good", "ends", "alive", "unchanged"})
    checks = {check.id: requirements.watched(check) for check in CATALOGUE}
    wrong: dict[tuple[str, str], str] = {}
    clauses = CLAUSES
    for seconds in PATIENCE:
        left, clauses = clauses, ()
        for number, clause in enumerate(left):
            session = with_fault(clause.server) if isinstance(clause.server, Fault) else clause.server
            place = tmp_path / f"{seconds}-{number}"
            place.mkdir()
            with InProcess(place, clause.device, clause.dialect, session=session, pid=os.getpid()) as target:
                target.renews = False
                [result] = run([checks[clause.id]], target, clause.dialect, timeout=seconds)
            if clause.words not in result.detail:
                clauses += (clause,)
                wrong[clause.id, clause.words] = f"{result.outcome.value}: {result.detail}"
            else:
                wrong.pop((clause.id, clause.words), None)
    assert wrong == {}
    assert requirements.that_found_nobody() == []
