"""`scripts/mutants`: which tests a mutant is run against, and what is kept of it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest

from tests.mutants import judging
from tests.mutants.judging import Fate, Journal, in_order, judge
from tests.mutants.mutant import Mutant
from tests.mutants.rooms import ROOMS, files
from tests.seeded_bugs.forking import SKIPPED, Run, Task

SECONDS = {"a.py::slow": 4.0, "a.py::quick": 0.1, "b.py::one": 0.5, "b.py::two": 0.4, "c.py::one": 9.0}


def mutant(line: int) -> Mutant:
    return Mutant("userdev/errors.py", line, line, "old", "new", f"text {line}")


class Reached:
    seconds = SECONDS

    def tests(self, file: str, lines: Iterable[int]) -> list[str]:
        return [] if 9 in lines else list(SECONDS)


def test_every_room_has_modules_and_no_module_is_in_two() -> None:
    found = [file for room in ROOMS for file in files(room)]
    assert len(found) == len(set(found))
    assert all(files(room) for room in ROOMS)


def test_files_whose_tests_are_quick_come_first_and_each_is_run_whole() -> None:
    order = in_order(list(SECONDS), SECONDS)
    assert order == ["b.py::two", "b.py::one", "a.py::quick", "a.py::slow", "c.py::one"]


def test_a_mutant_has_survived_when_no_test_notices_it_early_or_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """Line 1 is noticed at once, 2 by the slowest test, 3 by none, 4 hangs; nothing reaches 9; 5 has skips alone."""
    ends = {(1, False): 1, (2, True): 2, (4, False): -9, (5, False): SKIPPED, (5, True): SKIPPED}
    runs: list[tuple[int, list[str]]] = []

    def run_all(tasks: list[Task], jobs: int) -> Iterable[Run]:
        for task in tasks:
            assert isinstance(task.bug, Mutant)
            runs.append((task.bug.line, list(task.tests)))
            yield Run(task, ends.get((task.bug.line, "c.py::one" in task.tests), 0), "", 0.0)

    monkeypatch.setattr(judging, "run_all", run_all)
    mutants = [mutant(line) for line in (1, 2, 3, 4, 5, 9)]
    fates = {one.line: fate for one, fate in judge(mutants, Reached(), jobs=2)}
    killed, survived = Fate.KILLED, Fate.SURVIVED
    assert fates == {1: killed, 2: killed, 3: survived, 4: killed, 5: survived, 9: Fate.UNREACHED}
    assert sorted(test for line, tests in runs for test in tests if line == 3) == sorted(SECONDS)


def test_what_is_known_is_kept_over_an_interruption(tmp_path: Path) -> None:
    Journal(tmp_path / "seed/room.jsonl").enter(mutant(1), Fate.SURVIVED)
    again = Journal(tmp_path / "seed/room.jsonl")
    assert again.fates == {mutant(1).id: Fate.SURVIVED}
    assert mutant(2).id not in again.fates
