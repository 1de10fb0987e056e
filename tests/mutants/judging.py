"""Runs mutants: each against tests that reach its lines, those first that are likely to notice it and are quick."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from tests.mutants.mutant import Mutant
from tests.seeded_bugs.forking import BROKEN, SKIPPED, Run, Task, run_all
from tests.seeded_bugs.warm import NO_TESTS, UNPLANTED, ColdFork, WarmFork, noticed_by, tests_tried

FIRST_SECONDS = 40.0
"""Of tests in a mutant's first run, as they were measured: few need another, which waits until all have had theirs."""
MORE_SECONDS = 200.0
"""Of tests in each later one, until all have had their turn: on a busy machine they were measured to take longer."""
OVERDUE_RUNS = 3
"""Of a mutant that were ended as they took too long (`forking.RUN_SECONDS`): what is left behind them is left out."""
FIRST_OF_FILE = 3
"""Tests of each file that come before the rest of any."""
WORK_SECONDS = 30.0
"""What takes longer waits, as a rule; another run may begin beside it."""
BATCH = 40
"""Mutants between two looks at whether the tests that have noticed some pass without any."""


_MOST_LINES = 1000
"""More than any module has."""


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


class Nothing:
    """A change of a module that nobody imports: who fails with it in would fail with any."""

    module = "tests.mutants.nothing"
    path = Path(__file__).with_name("nothing.py")
    planted = ""


NOTHING = Nothing()


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
    """Finds the fate of mutants; what has noticed one is tried first with the next in the same file.

    A test has noticed a mutant if it fails with it alone, and passes with a change that is none.
    """

    def __init__(self, reach: Reach, warm: Runner, cold: Runner) -> None:
        self._reach = reach
        self._warm = warm
        self._cold = cold
        self._noticed: dict[str, Counter[str]] = defaultdict(Counter)
        """Of each module: how many mutants each test, and each file of tests, has noticed."""
        self._sound: dict[str, bool] = {}
        """Whether a test that has failed with a mutant passes with `NOTHING`, in a fork."""
        self._passed: dict[str, set[str]] = defaultdict(set)
        """Of each mutant: tests that pass with it, alone at least."""
        self._overdue: Counter[str] = Counter()
        """Of each mutant: runs that were ended."""

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
        reached = [mutant for mutant in mutants if self._tests(mutant)]
        yield from ((mutant, Fate.UNREACHED, None) for mutant in mutants if mutant not in reached)
        cold: list[Mutant] = []
        for mutant, done in self._to_the_end(reached, self._warm, MORE_SECONDS):
            if done.status == UNPLANTED:
                cold.append(mutant)
            elif _is_noticed(done):
                yield mutant, Fate.KILLED, noticed_by(done)
            elif self._is_at_import(mutant):
                cold.append(mutant)
            else:
                yield mutant, Fate.SURVIVED, None
        for mutant in cold:
            del self._passed[mutant.id]  # which a fork cannot tell
        for mutant, done in self._to_the_end(cold, self._cold, FIRST_SECONDS):
            noticed = _is_noticed(done)
            yield mutant, Fate.KILLED if noticed else Fate.SURVIVED, noticed_by(done) if noticed else None

    def _to_the_end(self, mutants: Sequence[Mutant], run: Runner, more: float) -> Iterator[tuple[Mutant, Run]]:
        """Each mutant with the run that has noticed it or cannot have it, or else its last: all had their turn."""
        left, seconds = list(mutants), FIRST_SECONDS
        while left:
            again: list[Mutant] = []
            for mutant, done in self._rounds(left, seconds, run):
                if done.status == UNPLANTED or _is_noticed(done) or not self._tests(mutant):
                    yield mutant, done
                else:
                    again.append(mutant)
            left, seconds = again, more

    def _rounds(self, mutants: Sequence[Mutant], seconds: float, run: Runner) -> Iterator[tuple[Mutant, Run]]:
        """Each mutant with its last run of so many seconds: one that has noticed it, or in which all have passed."""
        left = list(mutants)
        while left:
            again: list[Mutant] = []
            tasks = [Task(self._in_order(mutant, seconds), mutant) for mutant in left]
            for mutant, done, stands in self._proven(run(tasks), run):
                if stands:
                    yield mutant, done
                elif self._tests(mutant):
                    again.append(mutant)
                else:
                    yield mutant, Run(done.task, SKIPPED, "", 0.0)
            left = again

    def _proven(self, runs: Iterable[Run], run: Runner) -> Iterator[tuple[Mutant, Run, bool]]:
        """Each mutant with its run, and whether that stands: no failure does of a test that has not noticed it."""
        done = list(runs)
        failed = {_mutant(one): _suspect(one) for one in done if one.status != UNPLANTED and _is_noticed(one)}
        self._check(failed.values())
        alone = self._fail_alone({mutant: test for mutant, test in failed.items() if self._sound[test]}, run)
        for one in done:
            mutant = _mutant(one)
            test = failed.get(mutant)
            if test is None:
                self._passed[mutant.id].update(self._had_their_turn(mutant, one))
                yield mutant, one, True
            elif mutant in alone:
                self._noticed[mutant.file].update([test, _file(test)])
                yield mutant, one, True
            elif self._sound[test] and run is self._warm and self._is_at_import(mutant):
                yield mutant, replace(one, status=UNPLANTED), True
            else:
                self._passed[mutant.id].add(test)
                yield mutant, one, False

    def _had_their_turn(self, mutant: Mutant, done: Run) -> Sequence[str]:
        """The tests that a run has come to; one that was ended had not come to all."""
        if not done.overdue:
            return done.task.tests
        self._overdue[mutant.id] += 1
        tried = tests_tried(done)
        return tried if tried and self._overdue[mutant.id] < OVERDUE_RUNS else self._tests(mutant)

    def _fail_alone(self, failed: dict[Mutant, str], run: Runner) -> set[Mutant]:
        """The mutants with which these tests fail alone; where it was run at import, in a Python of its own."""
        tasks = {True: list[Task](), False: list[Task]()}
        for mutant, test in failed.items():
            tasks[self._is_at_import(mutant)].append(Task([test], mutant))
        runs = [*self._cold(tasks[True]), *run(tasks[False])]
        return {_mutant(one) for one in runs if _is_noticed(one)}

    def _is_at_import(self, mutant: Mutant) -> bool:
        return self._reach.at_import(mutant.file, _lines(mutant))

    def _in_order(self, mutant: Mutant, seconds: float) -> list[str]:
        ordered = in_order(self._tests(mutant), self._reach.seconds, self._reach.files, self._noticed[mutant.file])
        return within(ordered, self._reach.seconds, seconds)

    def _tests(self, mutant: Mutant) -> list[str]:
        """Those that reach its lines and have not passed; what was run at import alone is everybody's of the module."""
        tests = self._reach.tests(mutant.file, _lines(mutant))
        if not tests and self._reach.at_import(mutant.file, _lines(mutant)):
            tests = self._reach.tests(mutant.file, range(1, _MOST_LINES))
        passed = self._passed[mutant.id]
        return [test for test in tests if self._sound.get(test, True) and test not in passed]

    def _check(self, tests: Iterable[str]) -> None:
        """Run those that are not known yet with `NOTHING` in: together, and each alone where one of them fails."""
        unknown = sorted(test for test in tests if test not in self._sound)
        together = [Task(unknown, NOTHING)] if unknown else []
        failed = [test for done in self._warm(together) if _is_noticed(done) for test in done.task.tests]
        self._sound.update(dict.fromkeys(unknown, True))
        for done in self._warm([Task([test], NOTHING) for test in failed]):
            self._sound[done.task.tests[0]] = not _is_noticed(done)


def in_order(
    tests: Sequence[str], seconds: Mapping[str, float], new: Mapping[str, int], noticed: Counter[str]
) -> list[str]:
    """What has noticed most of late, then some tests of each file, then the rest by file; the quickest first in each.

    Of files that have noticed as many those come first that were written last (`new`), which may be for survivors.
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
    return list(dict.fromkeys([*known, *first, *rest]))


def within(tests: Sequence[str], seconds: Mapping[str, float], limit: float) -> list[str]:
    """As many of these as take no longer, the first at least."""
    chosen = list(tests[:1])
    total = sum(seconds[test] for test in chosen)
    for test in tests[1:]:
        if total + seconds[test] <= limit:
            chosen.append(test)
            total += seconds[test]
    return chosen


def _file(test: str) -> str:
    return test.partition("::")[0]


def _lines(mutant: Mutant) -> range:
    return range(mutant.line, mutant.last_line + 1)


def _mutant(done: Run) -> Mutant:
    assert isinstance(done.task.bug, Mutant)
    return done.task.bug


def _suspect(done: Run) -> str:
    """The test that a run has ended with; what cannot be imported, any may show."""
    test = noticed_by(done)
    if test is None and done.status == BROKEN:
        raise SystemExit(f"mutants: tests could not be run\n{done.output[-2000:]}")
    return test or done.task.tests[0]


def _is_noticed(done: Run) -> bool:
    """A run that ends otherwise than well has, but for one that was ended: Python cannot even import some."""
    if done.status == NO_TESTS:
        raise SystemExit(f"mutants: tests that were measured are not there\n{done.output[-2000:]}")
    return done.status not in (0, SKIPPED) and not done.overdue
