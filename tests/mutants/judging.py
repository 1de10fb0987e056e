"""Runs mutants: each against tests that reach its lines, those first that are likely to notice it and are quick."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from tests.mutants.mutant import Mutant
from tests.seeded_bugs.forking import SKIPPED, Run, Task, run_all
from tests.seeded_bugs.warm import NO_TESTS, UNPLANTED, ColdFork, WarmFork, noticed_by

FIRST_SECONDS = 40.0
"""Of tests in a mutant's first run, as they were measured: few need another, which waits until all have had theirs."""
FIRST_OF_FILE = 3
"""Tests of each file that come before the rest of any."""
WORK_SECONDS = 30.0
"""What takes longer waits, as a rule; another run may begin beside it."""
BATCH = 40
"""Mutants between two looks at whether the tests that have noticed some pass without any."""


_MOST_LINES = 1000
"""More than any module has."""


_FIRST, _REST = range(2)


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

    def enter(self, mutant: Mutant, fate: Fate, test: str | None) -> None:
        self.fates[mutant.id] = fate
        entry = {"id": mutant.id, "fate": fate, "file": mutant.file, "line": mutant.line, "test": test}
        with self._path.open("a") as file:
            file.write(json.dumps({**entry, "old": mutant.old, "new": mutant.new}) + "\n")


class Reach(Protocol):
    """What was measured of the tests (`reach.Measured`)."""

    seconds: dict[str, float]
    files: dict[str, int]

    def tests(self, file: str, lines: Iterable[int]) -> list[str]:
        """Those that reach any of these lines."""

    def at_import(self, file: str, lines: Iterable[int]) -> bool:
        """Whether any of these lines was run while modules were imported."""


Runner = Callable[[Iterable[Task]], Iterator[Run]]


class Judge:
    """Finds the fate of mutants; what has noticed one is tried first with the next in the same file."""

    def __init__(self, reach: Reach, warm: Runner, cold: Runner) -> None:
        self._reach = reach
        self._warm = warm
        self._cold = cold
        self._noticed: dict[str, Counter[str]] = defaultdict(Counter)
        """Of each module: how many mutants each test, and each file of tests, has noticed."""
        self._sound: dict[str, bool] = {}
        """Whether a test that has noticed a mutant passes without any, in a fork."""

    @classmethod
    def of_forks(cls, reach: Reach, *, jobs: int) -> Judge:
        return cls(
            reach,
            lambda tasks: run_all(tasks, jobs, work_seconds=WORK_SECONDS, kind=WarmFork),
            lambda tasks: run_all(tasks, jobs, work_seconds=WORK_SECONDS, kind=ColdFork),
        )

    def fates(self, mutants: Sequence[Mutant]) -> Iterator[tuple[Mutant, Fate, str | None]]:
        """The fate of each and the test that has noticed it, as they are known."""
        for start in range(0, len(mutants), BATCH):
            yield from self._of_batch(mutants[start : start + BATCH])

    def _of_batch(self, mutants: Sequence[Mutant]) -> Iterator[tuple[Mutant, Fate, str | None]]:
        for mutant in mutants:
            if not self._tests(mutant):
                yield mutant, Fate.UNREACHED, None
        cold: list[Mutant] = []
        survived: list[Mutant] = []
        more: list[Mutant] = []
        reached = [mutant for mutant in mutants if self._tests(mutant)]
        for part, left in ((_FIRST, reached), (_REST, more)):
            while left:
                again: list[Mutant] = []
                for mutant, done in self._checked(self._warm(self._tasks(left, part))):
                    if done is None:
                        again.append(mutant)
                    elif done.status == UNPLANTED:
                        cold.append(mutant)
                    elif _is_noticed(done):
                        yield mutant, Fate.KILLED, noticed_by(done.output)
                    elif part == _FIRST and self._in_order(mutant)[_REST]:
                        more.append(mutant)
                    elif self._reach.at_import(mutant.file, _lines(mutant)):
                        cold.append(mutant)
                    else:
                        survived.append(mutant)
                survived += [mutant for mutant in again if not self._tests(mutant)]
                left = [mutant for mutant in again if self._tests(mutant)]
        for mutant in survived:
            yield mutant, Fate.SURVIVED, None
        for done in self._cold(self._tasks(cold, _FIRST)):
            noticed = _is_noticed(done)
            yield _mutant(done), Fate.KILLED if noticed else Fate.SURVIVED, noticed_by(done.output)

    def _tasks(self, mutants: Sequence[Mutant], part: int) -> Iterator[Task]:
        for mutant in mutants:
            yield Task(self._in_order(mutant)[part], mutant)

    def _checked(self, runs: Iterable[Run]) -> Iterator[tuple[Mutant, Run | None]]:
        """Each mutant with its run; None where the test that has failed fails without a mutant too."""
        done = list(runs)
        tests = {
            id(run): noticed_by(run.output) if _is_noticed(run) and run.status != UNPLANTED else None for run in done
        }
        self._check({test for test in tests.values() if test is not None})
        for run in done:
            mutant, test = _mutant(run), tests[id(run)]
            if test is None or self._sound[test]:
                if test is not None:
                    self._noticed[mutant.file].update([test, _file(test)])
                yield mutant, run
            else:
                yield mutant, None

    def _in_order(self, mutant: Mutant) -> tuple[list[str], list[str]]:
        return in_order(self._tests(mutant), self._reach.seconds, self._reach.files, self._noticed[mutant.file])

    def _tests(self, mutant: Mutant) -> list[str]:
        """Those that reach its lines; what was run at import alone is everybody's who reaches the module."""
        tests = self._reach.tests(mutant.file, _lines(mutant))
        if not tests and self._reach.at_import(mutant.file, _lines(mutant)):
            tests = self._reach.tests(mutant.file, range(1, _MOST_LINES))
        return [test for test in tests if self._sound.get(test, True)]

    def _check(self, tests: Iterable[str]) -> None:
        """Run those that are not known yet without a mutant: together, and each alone where one of them fails."""
        unknown = sorted(test for test in tests if test not in self._sound)
        together = [Task(unknown)] if unknown else []
        suspects = [Task([test]) for done in self._warm(together) if _is_noticed(done) for test in done.task.tests]
        self._sound.update(dict.fromkeys(unknown, True))
        for done in self._warm(suspects):
            self._sound[done.task.tests[0]] = not _is_noticed(done)


def in_order(
    tests: Sequence[str], seconds: dict[str, float], new: dict[str, int], noticed: Counter[str]
) -> tuple[list[str], list[str]]:
    """What has noticed most of late, then some tests of each file, then the rest by file; the quickest first in each.

    Of files that have noticed as many those come first that were written last (`new`), which may be for survivors.
    As many as take `FIRST_SECONDS`, one at least, and all others.
    """
    files: dict[str, list[str]] = defaultdict(list)
    for test in sorted(tests, key=lambda test: (seconds[test], test)):
        files[_file(test)].append(test)
    groups = sorted(
        files.items(),
        key=lambda group: (
            -noticed[group[0]],
            -new.get(group[0], 0),
            sum(seconds[test] for test in group[1]) / len(group[1]),
        ),
    )
    known = sorted((test for test in tests if noticed[test]), key=lambda test: (-noticed[test], seconds[test]))
    first = [test for _, group in groups for test in group[:FIRST_OF_FILE]]
    rest = [test for _, group in groups for test in group[FIRST_OF_FILE:]]
    chosen: list[str] = []
    left: list[str] = []
    total = 0.0
    for test in dict.fromkeys([*known, *first, *rest]):
        if not chosen or total + seconds[test] <= FIRST_SECONDS:
            chosen.append(test)
            total += seconds[test]
        else:
            left.append(test)
    return chosen, left


def _file(test: str) -> str:
    return test.partition("::")[0]


def _lines(mutant: Mutant) -> range:
    return range(mutant.line, mutant.last_line + 1)


def _mutant(done: Run) -> Mutant:
    assert isinstance(done.task.bug, Mutant)
    return done.task.bug


def _is_noticed(done: Run) -> bool:
    """A run that ends otherwise than well has, but for one that was ended: Python cannot even import some."""
    if done.status == NO_TESTS:
        raise SystemExit(f"mutants: tests that were measured are not there\n{done.output[-2000:]}")
    return done.status not in (0, SKIPPED) and not done.overdue
