"""`scripts/mutants`: which tests a mutant is run against, how it is put in, and what is kept of it."""

from __future__ import annotations

import importlib
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest

from tests.cases import for_each_row
from tests.mutants import judging
from tests.mutants.equivalent import equivalents
from tests.mutants.judging import Fate, Journal, Judge, in_order, within
from tests.mutants.mutant import Mutant
from tests.mutants.rooms import ROOMS, files
from tests.seeded_bugs.forking import BROKEN, SKIPPED, Run, Task
from tests.seeded_bugs.grafting import Functions, in_functions
from tests.seeded_bugs.planting import ROOT, PlantingError
from tests.seeded_bugs.warm import UNPLANTED, noticed_by

SECONDS = {"a.py::slow": 4.0, "a.py::quick": 0.1, "b.py::one": 0.5, "b.py::two": 0.4, "c.py::one": 9.0}


def mutant(line: int) -> Mutant:
    return Mutant("userdev/errors.py", line, line, "old", "new", f"text {line}")


class Reached:
    seconds = SECONDS
    files: dict[str, int] = {}

    def tests(self, file: str, lines: Iterable[int]) -> list[str]:
        return [] if 9 in lines else list(SECONDS)

    def at_import(self, file: str, lines: Iterable[int]) -> bool:
        return 6 in lines


class Runs:
    """Stands for forks: what tests make of the mutant of each line, and of none (0)."""

    def __init__(
        self,
        fails: dict[int, str],
        ends: dict[int, int] | None = None,
        overdue: Iterable[int] = (),
        behind_others: Iterable[int] = (),
    ) -> None:
        self._fails = fails
        self._ends = ends or {}
        self._overdue = list(overdue)
        self._behind_others = list(behind_others)
        self.asked: list[tuple[int, list[str]]] = []

    def __call__(self, tasks: Iterable[Task]) -> Iterator[Run]:
        for task in tasks:
            assert task.bug is not None, "who fails as there is any change notices none"
            line = task.bug.line if isinstance(task.bug, Mutant) else 0
            self.asked.append((line, list(task.tests)))
            failed = self._fails.get(line)
            if failed in task.tests and (len(task.tests) > 1 or line not in self._behind_others):
                yield Run(task, 1, f"noticed by {failed}\n", 0.0)
            else:
                yield Run(task, self._ends.get(line, 0), "", 0.0, overdue=line in self._overdue)


def fates(warm: Runs, cold: Runs, *lines: int) -> dict[int, Fate]:
    judge = Judge(Reached(), warm, cold)
    return {one.line: fate for one, fate, _ in judge.fates([mutant(line) for line in lines])}


def test_every_room_has_modules_and_no_module_is_in_two() -> None:
    found = [file for room in ROOMS for file in files(room)]
    assert len(found) == len(set(found))
    assert all(files(room) for room in ROOMS)


def test_what_was_judged_to_change_nothing_is_judged_once_and_of_lines_that_there_are() -> None:
    judged = Counter((one.file, one.old, one.new) for one in equivalents())
    assert max(judged.values()) == 1
    lines = {file: [line.strip() for line in (ROOT / file).read_text().splitlines()] for file, _, _ in judged}
    assert [(file, line) for file, old, _ in judged for line in old.splitlines() if line not in lines[file]] == []


def test_some_quick_tests_of_each_file_come_first_then_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judging, "FIRST_OF_FILE", 1)
    order = in_order(list(SECONDS), SECONDS, {}, Counter())
    assert order == ["b.py::two", "a.py::quick", "c.py::one", "b.py::one", "a.py::slow"]


def test_what_has_noticed_other_mutants_of_the_module_is_tried_before_all() -> None:
    noticed = Counter({"a.py": 3, "a.py::slow": 2, "a.py::quick": 1, "b.py": 1, "b.py::one": 1})
    assert in_order(list(SECONDS), SECONDS, {}, noticed) == [
        *("a.py::slow", "a.py::quick", "b.py::one"),
        *("b.py::two", "c.py::one"),
    ]


def test_files_that_were_written_last_come_before_others_that_have_noticed_as_little() -> None:
    assert in_order(list(SECONDS), SECONDS, {"a.py": 2, "b.py": 1, "c.py": 3}, Counter())[0] == "c.py::one"


def test_as_many_tests_are_tried_first_as_take_no_longer() -> None:
    assert set(within(in_order(list(SECONDS), SECONDS, {}, Counter()), SECONDS, 4.9)) == {
        *("a.py::quick", "b.py::one", "b.py::two"),
    }
    assert within(["c.py::one", "a.py::quick"], SECONDS, 4.9) == ["c.py::one"]


def test_what_takes_long_has_its_turn_when_what_is_quick_has_noticed_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mutant of line 2 is noticed by a quick test, which changes the order of what is left of all others."""
    monkeypatch.setattr(judging, "FIRST_SECONDS", 4.9)
    warm = Runs({1: "a.py::slow", 2: "b.py::one", 3: "c.py::one", 4: "a.py::slow"}, behind_others=[4])
    assert fates(warm, Runs({}), 1, 2, 3, 4, 5) == {
        **dict.fromkeys([1, 2, 3], Fate.KILLED),
        **dict.fromkeys([4, 5], Fate.SURVIVED),
    }
    assert sorted(test for line, tests in warm.asked if line == 5 for test in tests) == sorted(SECONDS)


def test_a_mutant_has_survived_when_no_test_notices_it() -> None:
    """Line 1 is noticed, 3 by none, 4 ends the run; nothing reaches 9; 5 has skips alone."""
    warm = Runs({1: "a.py::slow"}, {4: -9, 5: SKIPPED})
    killed, survived = Fate.KILLED, Fate.SURVIVED
    assert fates(warm, Runs({}), 1, 3, 4, 5, 9) == {1: killed, 3: survived, 4: killed, 5: survived, 9: Fate.UNREACHED}
    assert [set(tests) for line, tests in warm.asked if line == 3] == [set(SECONDS)]


def test_a_run_that_took_longer_than_any_may_has_noticed_nothing() -> None:
    """Each of its tests has passed, or it would have ended: a busy machine's mutants are not killed by its clock."""
    assert fates(Runs({}, {1: -9}, overdue=[1]), Runs({}), 1) == {1: Fate.SURVIVED}


def test_what_a_run_has_not_come_to_before_it_was_ended_has_its_turn_in_another() -> None:
    """The first run of 1 was ended in its second test; each of 2 is ended, and it is left after some."""
    turns = Counter[int]()

    def ended(tasks: Iterable[Task]) -> Iterator[Run]:
        for task in tasks:
            line = task.bug.line if isinstance(task.bug, Mutant) else 0
            turns[line] += 1
            tried = "".join(f"trying {test}\n" for test in task.tests[:2])
            if line == 2 or (line == 1 and turns[line] == 1):
                yield Run(task, -9, tried, 0.0, overdue=True)
            elif line == 1 and "c.py::one" in task.tests:
                yield Run(task, 1, "noticed by c.py::one\n", 0.0)
            else:
                yield Run(task, 0, "", 0.0)

    order = in_order(list(SECONDS), SECONDS, {}, Counter())
    assert "c.py::one" not in order[:2]
    judged = Judge(Reached(), ended, Runs({})).fates([mutant(1), mutant(2)])
    assert {one.line: fate for one, fate, _ in judged} == {1: Fate.KILLED, 2: Fate.SURVIVED}
    assert turns[2] <= judging.OVERDUE_RUNS


def test_all_tests_have_their_turn_however_long_they_were_measured_to_take(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judging, "FIRST_SECONDS", 0.2)
    monkeypatch.setattr(judging, "MORE_SECONDS", 0.6)
    for line in (1, 6):  # 6 is imported, and has a Python of its own
        assert fates(Runs({1: "c.py::one"}), Runs({6: "c.py::one"}), line) == {line: Fate.KILLED}


def test_a_test_that_fails_behind_others_and_passes_alone_has_noticed_nothing() -> None:
    """It fails for what those before it have left: the others have their turn without it."""
    for one in (1, 6):
        warm, cold = (Runs({one: "b.py::one"}, behind_others=[one]) for _ in range(2))
        assert fates(warm, cold, one) == {one: Fate.SURVIVED}
        assert ["b.py::one"] in [tests for _, tests in [*warm.asked, *cold.asked]]


def test_what_ends_a_process_before_any_test_has_noticed_a_mutant_that_cannot_be_imported() -> None:
    assert fates(Runs({}, {7: UNPLANTED}), Runs({}, {7: 4}), 7) == {7: Fate.KILLED}


def test_a_run_that_went_wrong_by_no_test_is_no_verdict() -> None:
    with pytest.raises(SystemExit):
        fates(Runs({}, {7: UNPLANTED}), Runs({}, {7: BROKEN}), 7)


def test_a_test_that_fails_without_a_mutant_notices_none() -> None:
    """The test of mutants 0 and 1 fails in every fork: the mutant is tried again without that test."""
    warm = Runs({0: "b.py::one", 1: "b.py::one"})
    assert fates(warm, Runs({}), 1) == {1: Fate.SURVIVED}
    assert [line for line, tests in warm.asked if "b.py::one" not in tests] == [1]


def test_a_mutant_whose_tests_all_fail_without_one_has_survived(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Reached, "tests", lambda self, file, lines: ["b.py::one"])
    warm = Runs({0: "b.py::one", 1: "b.py::one"})
    assert fates(warm, Runs({}), 1) == {1: Fate.SURVIVED}
    assert all(tests for _, tests in warm.asked)


def test_what_is_imported_cannot_tell_of_some_mutants_and_a_python_of_their_own_does() -> None:
    """Line 6 was run at import and 7 cannot be put in: neither has survived before it was tried cold."""
    warm, cold = Runs({}, {7: UNPLANTED}), Runs({6: "c.py::one"}, {})
    assert fates(warm, cold, 3, 6, 7) == {3: Fate.SURVIVED, 6: Fate.KILLED, 7: Fate.SURVIVED}
    assert {line for line, _ in cold.asked} == {6, 7}


def test_what_is_imported_notices_nothing_of_what_was_computed_before() -> None:
    """The test of line 6 fails as what was run at import is as it was: a Python of its own is right."""
    warm, cold = Runs({6: "a.py::quick"}), Runs({})
    assert fates(warm, cold, 6) == {6: Fate.SURVIVED}
    assert next(tests for _, tests in cold.asked) == ["a.py::quick"]
    assert {test for _, tests in cold.asked for test in tests} == set(SECONDS)


TESTS = ["tests/test_x.py::test_y[a - b]", "tests/test_x.py::test_y[a]"]


@for_each_row(
    [
        (f"trying {TESTS[1]}\ntrying {TESTS[0]}\nERROR of a log\nnoticed by {TESTS[0]}\nmore", TESTS[0]),
        (f"trying {TESTS[0]}\ntrying {TESTS[1]}\nthe process ended", TESTS[1]),
        (f"ERROR    of:log.py\n1 failed\nFAILED {TESTS[0]} - ValueError: no - at all\n", TESTS[0]),
        ("ERROR tests/test_x.py - ImportError\n", None),
    ]
)
def test_the_test_that_noticed_is_named_by_either_kind_of_run(output: str, named: str | None) -> None:
    assert noticed_by(Run(Task(TESTS), 1, output, 0.0)) == named


def test_what_is_known_is_kept_over_an_interruption(tmp_path: Path) -> None:
    Journal(tmp_path / "seed/room.jsonl").enter(mutant(1), Fate.SURVIVED, None)
    again = Journal(tmp_path / "seed/room.jsonl")
    assert again.fates == {mutant(1).id: Fate.SURVIVED}
    assert mutant(2).id not in again.fates


MODULE = """
class Thing:
    def size(self):
        return sum(step() for step in STEPS)

    @property
    def name(self):
        return "a thing"

def adder(number):
    def add(other):
        return number + other
    return add

STEPS = [lambda: 1, lambda: 2]
TWO_MORE = adder(2)
"""


@dataclass(frozen=True)
class Changed:
    """A module with other words in one place."""

    path: Path
    old: str
    new: str

    @property
    def module(self) -> str:
        return self.path.stem

    @property
    def planted(self) -> str:
        assert MODULE.count(self.old) == 1
        return MODULE.replace(self.old, self.new)


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "grafted_module.py").write_text(MODULE)
    yield importlib.import_module("grafted_module")
    del sys.modules["grafted_module"]


@pytest.mark.parametrize(
    ("old", "new", "seen"),
    [
        ("number + other", "number - other", (3, "a thing", 1, 0)),
        ("lambda: 2", "lambda: 7", (8, "a thing", 3, 4)),
        ("sum(", "max(", (2, "a thing", 3, 4)),
        ('"a thing"', "None", (3, None, 3, 4)),
    ],
)
def test_what_has_been_imported_gets_the_code_of_a_mutant(
    module: ModuleType, old: str, new: str, seen: tuple[object, ...]
) -> None:
    """Methods, closures that there are and those still to come, functions that only a table has."""
    assert module.__file__ is not None
    thing, two_more = module.Thing(), module.TWO_MORE
    assert (thing.size(), thing.name, two_more(1), module.adder(2)(2)) == (3, "a thing", 3, 4)
    Functions().change(Changed(Path(module.__file__), old, new), "")
    assert (thing.size(), thing.name, two_more(1), module.adder(2)(2)) == seen


@for_each_row(
    [
        ("number + other", "number - other", True),
        ("lambda: 2", "lambda: 7", True),
        ("    def size(self):\n", "    def size(self):\n        self.looked = True\n", True),
        ("lambda: 1, ", "", False),
        ("def size(self)", "def size(self, unit=1)", False),
        ("    @property\n", "", False),
        ("adder(2)", "adder(3)", False),
    ]
)
def test_what_a_module_computes_when_it_is_imported_is_no_body_of_a_function(
    old: str, new: str, is_so: bool, tmp_path: Path
) -> None:
    (tmp_path / "module.py").write_text(MODULE)
    assert in_functions(Changed(tmp_path / "module.py", old, new)) is is_so


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("number + other", "other"),
        ("TWO_MORE = adder(2)", "TWO_MORE = None"),
        ("\nclass Thing:", "\nSIZE = 1\nclass Thing:"),  # which moves all functions
        ("class Thing:\n", "class Thing:\n    SIZE = 1\n"),
        ("def size(self)", "def size(self, unit=1)"),
        ("    @property\n", ""),
    ],
)
def test_a_change_that_no_function_can_have_is_refused(module: ModuleType, old: str, new: str) -> None:
    assert module.__file__ is not None
    with pytest.raises(PlantingError):
        Functions().change(Changed(Path(module.__file__), old, new), "")
