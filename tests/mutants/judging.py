"""Runs mutants: each first against the files of tests that are quickest at its lines, then against the others."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from tests.mutants.mutant import Mutant
from tests.seeded_bugs.forking import SKIPPED, Run, Task, run_all

FIRST_SECONDS = 3.0
"""Of tests in a mutant's first run: most mutants are noticed by few, and what need not be imported costs nothing."""
_NO_TESTS = 5


class Fate(StrEnum):
    KILLED = "killed"
    SURVIVED = "SURVIVED"
    UNREACHED = "NOT REACHED"
    """No test reaches its lines."""


class Journal:
    """What became of mutants, a line each: a run that was interrupted goes on where it was."""

    def __init__(self, path: Path) -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = path.read_text().splitlines() if path.exists() else []
        self.fates: dict[str, Fate] = {entry["id"]: Fate(entry["fate"]) for entry in map(json.loads, lines)}

    def enter(self, mutant: Mutant, fate: Fate) -> None:
        self.fates[mutant.id] = fate
        entry = {"id": mutant.id, "fate": fate, "file": mutant.file, "line": mutant.line}
        with self._path.open("a") as file:
            file.write(json.dumps({**entry, "old": mutant.old, "new": mutant.new}) + "\n")


class Reach(Protocol):
    """What was measured of the tests (`reach.Measured`)."""

    seconds: dict[str, float]

    def tests(self, file: str, lines: Iterable[int]) -> list[str]:
        """Those that reach any of these lines."""


def judge(mutants: Sequence[Mutant], reach: Reach, *, jobs: int) -> Iterator[tuple[Mutant, Fate]]:
    """The fate of each, as it is known."""
    first: list[Task] = []
    later: dict[str, list[str]] = {}
    for mutant in mutants:
        tests = in_order(reach.tests(mutant.file, range(mutant.line, mutant.last_line + 1)), reach.seconds)
        if not tests:
            yield mutant, Fate.UNREACHED
            continue
        quick = _quick(tests, reach.seconds)
        first.append(Task(tests[:quick], mutant))
        later[mutant.id] = tests[quick:]
    second: list[Task] = []
    for done in run_all(first, jobs):
        mutant = _mutant(done)
        if _noticed(done):
            yield mutant, Fate.KILLED
        elif later[mutant.id]:
            second.append(Task(later[mutant.id], mutant))
        else:
            yield mutant, Fate.SURVIVED
    for done in run_all(second, jobs):
        yield _mutant(done), Fate.KILLED if _noticed(done) else Fate.SURVIVED


def in_order(tests: Sequence[str], seconds: dict[str, float]) -> list[str]:
    """By file, those whose tests of these lines are quickest on the average first; within each the quickest first."""
    files: dict[str, list[str]] = defaultdict(list)
    for test in sorted(tests, key=lambda test: (seconds[test], test)):
        files[test.partition("::")[0]].append(test)
    groups = sorted(files.values(), key=lambda group: sum(seconds[test] for test in group) / len(group))
    return [test for group in groups for test in group]


def _quick(tests: Sequence[str], seconds: dict[str, float]) -> int:
    """How many of the first make whole files, and take no longer than `FIRST_SECONDS`; one file at least."""
    total = 0.0
    for index, test in enumerate(tests):
        new_file = index and tests[index - 1].partition("::")[0] != test.partition("::")[0]
        if new_file and total > FIRST_SECONDS:
            return index
        total += seconds[test]
    return len(tests)


def _mutant(done: Run) -> Mutant:
    assert isinstance(done.task.bug, Mutant)
    return done.task.bug


def _noticed(done: Run) -> bool:
    """A run that ends otherwise than well has: Python cannot even import some."""
    if done.status == _NO_TESTS:
        raise SystemExit(f"mutants: tests that were measured are not there\n{done.output[-2000:]}")
    return done.status not in (0, SKIPPED)
