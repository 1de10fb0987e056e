"""The catalogue of seeded bugs fits the code, and a bug that is planted is in the processes that a test starts."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.cases import for_each
from tests.seeded_bugs.__main__ import main
from tests.seeded_bugs.catalogue import Bug, CatalogueError, load
from tests.seeded_bugs.detection import Verdict
from tests.seeded_bugs.planting import ROOT, VARIABLE, environment


def edu() -> Bug:
    """What is planted where any will do; all are read by the worker alone that needs them."""
    return load()["edu-factorial-not-cut"]


@cache
def text_of(path: Path) -> str:
    return path.read_text()


def body_of(name: str, text: str, indent: str, *, of: str) -> str:
    """What is in the class or function of this name and indentation; there is just one."""
    found = re.findall(
        rf"^{indent}(?:class|(?:async )?def) {name}\b.*\n(?s:(.*?))(?=^{indent}\S|\Z)", text, re.MULTILINE
    )
    assert len(found) == 1, of
    return str(found[0])


def test_there_are_40_bugs_and_more() -> None:
    assert len([bug for bug in load().values() if not bug.guest]) >= 40


def test_each_bug_is_in_one_of_the_parts() -> None:
    def listed(*options: str) -> list[str]:
        return CliRunner().invoke(main, ["--list", *options], catch_exceptions=False).output.splitlines()

    parts = [listed("--part", f"{k}/3") for k in (1, 2, 3)]
    assert sorted(line.split()[0] for part in parts for line in part) == sorted(load())
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@for_each(["0/3", "4/3", "1", "1/0", "1/3/5"])
def test_what_is_no_part_is_refused(part: str) -> None:
    assert CliRunner().invoke(main, ["--list", "--part", part]).exit_code == 2


def test_entries_fit_the_code_and_change_it() -> None:
    for file in sorted({bug.file for bug in load().values()}):
        waiting = [bug for bug in load().values() if bug.file == file]
        for bug in waiting:
            assert not alike(meaning(bug.new, bug.planted), meaning(bug.old, text_of(bug.path))), bug.id
        while waiting:
            text, waiting = planted_together(waiting)
            compile(text, file, "exec", dont_inherit=True)  # a module takes longer than all else that is done here


def planted_together(bugs: Sequence[Bug]) -> tuple[str, list[Bug]]:
    """The module with as many of its bugs as are in different places, and the bugs that are not in it."""
    text, rest = bugs[0].planted, []
    for bug in bugs[1:]:
        try:
            text = bug.planted_in(text)
        except CatalogueError:  # where another one is now
            rest.append(bug)
    return text, rest


def meaning(lines: str, module: str) -> ast.Module:
    """What is left of lines without comments and spaces; of the whole module where they are none by themselves."""
    for body in ("", "    pass\n"):
        try:
            return ast.parse(textwrap.dedent(lines).rstrip() + "\n" + body)
        except SyntaxError:
            continue
    return ast.parse(module)


def alike(one: object, other: object) -> bool:
    """Whether parts of two trees are the same, wherever they stand; whole texts of them took all the time there was."""
    if type(one) is not type(other):
        return False
    if isinstance(one, ast.AST):
        return all(alike(getattr(one, name, None), getattr(other, name, None)) for name in one._fields)
    if isinstance(one, list):
        assert isinstance(other, list)
        return len(one) == len(other) and all(map(alike, one, other))
    return one == other


def test_each_entry_names_a_test_that_there_is() -> None:
    """Pytest writes FILE::CLASS::FUNCTION[PARAMETERS], avocado FILE:CLASS.METHOD."""
    for test in {bug.test.partition("[")[0] for bug in load().values()}:
        path, _, name = test.partition(":")
        body = text_of(ROOT / path)
        for level, part in enumerate(re.findall(r"\w+", name)):
            body = body_of(part, body, "    " * level, of=test)


def test_a_planted_bug_is_in_every_process_that_is_started(tmp_path: Path) -> None:
    """The grandchild stands for a server that a test starts."""
    found = "any(step.argval == 33 for step in dis.get_instructions(m.Edu.compute._write))"
    say = f"import dis, userdev_servers.edu as m; print(m.__file__, {found})"
    start = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {say!r}], check=True)"
    outputs = [
        subprocess.run(
            [sys.executable, "-c", start],
            env=environment(bug, tmp_path),
            cwd=ROOT,
            check=True,
            capture_output=True,
            text=True,
        ).stdout.split()
        for bug in (edu(), None)
    ]
    assert outputs == [[str(edu().path), "True"], [str(edu().path), "False"]]


def test_nothing_is_planted_without_being_asked_for(tmp_path: Path) -> None:
    env = {name: value for name, value in environment(edu(), tmp_path).items() if name != VARIABLE}
    code = "import sys; print([type(finder).__module__ for finder in sys.meta_path])"
    done = subprocess.run([sys.executable, "-c", code], env=env, check=True, capture_output=True, text=True)
    assert "seeded_bugs" not in done.stdout


def test_a_process_does_not_start_with_a_bug_that_there_is_not(tmp_path: Path) -> None:
    env = {**environment(edu(), tmp_path), VARIABLE: "no-such-bug"}
    done = subprocess.run([sys.executable, "-c", "pass"], env=env, capture_output=True, text=True)
    assert done.returncode == 70
    assert "no-such-bug" in done.stderr


def test_lines_that_are_not_there_or_there_twice_are_refused(tmp_path: Path) -> None:
    module = tmp_path / "module.py"
    module.write_text("def one():\n    return 1\n\ndef two():\n    return 1\n")
    file = os.path.relpath(module, ROOT)
    for old in ("return 2", "return 1"):
        with pytest.raises(CatalogueError, match="no longer fits"):
            _ = Bug("x", "", file, old, "return 3", "").planted
    fits = Bug("x", "", file, "def two():\n    return 1", "def two():\n    return 3", "")
    assert fits.planted == "def one():\n    return 1\n\ndef two():\n    return 3\n"


DETECT = """
import json, sys
from dataclasses import replace
from tests.seeded_bugs.catalogue import load
from tests.seeded_bugs.detection import detect
bug = load()["edu-factorial-not-cut"]
bugs = [replace(bug, id=id, **change) for id, change in json.loads(sys.argv[1]).items()]
detect(bugs, lambda finding: print(finding.bug.id, finding.verdict.name), jobs=2)
"""
"""In a process of its own, as by `scripts/detect`: here, other tests have imported the modules to be changed."""

LIVENESS = "tests/test_device_edu.py::test_identification_and_liveness"
CHANGES: dict[str, tuple[dict[str, str], Verdict]] = {
    "noticed": ({}, Verdict.CAUGHT),
    "not-noticed": ({"test": LIVENESS}, Verdict.MISSED),
    "no-test": ({"test": "tests/test_device_edu.py::test_that_is_not_there"}, Verdict.FAILS_ANYWAY),
    "no-lines": ({"old": "lines that are not there"}, Verdict.BROKEN),
    "in-no-function": (
        {"old": "IDENTIFICATION = 0x010000ED", "new": "IDENTIFICATION = 0x010000EE", "test": LIVENESS},
        Verdict.CAUGHT,
    ),
    # in a function that has done its work once modules are imported: what is imported cannot tell
    "run-at-import": (
        {
            "file": "userdev/layout.py",
            "old": "self.size = self.struct.size",
            "new": "self.size = self.struct.size + 1",
            "test": "tests/test_wire_layouts.py::test_an_entry_of_write_multi_is_24_bytes_with_its_data_last",
        },
        Verdict.CAUGHT,
    ),
}
"""Of the entry of edu's factorial, and what is to be found then."""


def test_detection_tells_a_bug_that_is_noticed_from_one_that_is_not() -> None:
    changes = json.dumps({id: change for id, (change, _) in CHANGES.items()})
    done = subprocess.run([sys.executable, "-c", DETECT, changes], cwd=ROOT, check=True, capture_output=True, text=True)
    found = dict(line.split() for line in done.stdout.splitlines() if line.partition(" ")[0] in CHANGES)
    assert found == {id: verdict.name for id, (_, verdict) in CHANGES.items()}


TWO_RUNS = """
import sys
from tests.seeded_bugs.forking import Task, run_all
runs = run_all([Task([test]) for test in sys.argv[1:]], jobs=1, work_seconds=0.1)
print(*(run.status for run in runs))
"""


def test_a_run_that_waits_takes_no_place_of_one_that_works(tmp_path: Path) -> None:
    """The first waits for what the second does."""
    os.mkfifo(tmp_path / "met")
    file = tmp_path / "test_two.py"
    file.write_text(
        f"def test_waits():\n    open({str(tmp_path / 'met')!r}).close()\n\n"
        f"def test_comes():\n    open({str(tmp_path / 'met')!r}, 'w').close()\n"
    )
    tests = [f"{file}::{name}" for name in ("test_waits", "test_comes")]
    done = subprocess.run(
        [sys.executable, "-c", TWO_RUNS, *tests], cwd=ROOT, check=True, capture_output=True, text=True
    )
    assert done.stdout.split() == ["0", "0"]


def test_nothing_is_planted_in_a_module_that_is_there_already(tmp_path: Path) -> None:
    file = environment(edu(), tmp_path)[VARIABLE]
    code = f"import userdev_servers.edu; from tests.seeded_bugs.planting import plant; plant({file!r})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert "PlantingError" in done.stderr
