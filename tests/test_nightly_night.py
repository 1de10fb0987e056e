"""A night from its first case to its summary, with tests that boot no guest: nothing of a plan is lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from junitparser import JUnitXml

from tests.checkout import ROOT, modules
from tests.night_of_plan import NEVER
from vfio_user.nightly.summary import CaseResult, Status, Summary, Verdict, read_summary

pytestmark = pytest.mark.long  # all by the worker that has begun: another would import avocado, and run the same jobs


PLAN = """\
name: quick
servers: servers.yaml
qemus: {{gone: /nonexistent}}
groups:
  one:
    servers: [edu]
    tests: [{tests}]
    vary: {{cpus: [1, 2]}}
  two:
    servers: [theirs, absent]
    tests: ["{tests}:Sees"]
    vary: {{qemu: [usual, gone]}}
    without: [{{server: absent, qemu: gone}}]
"""
SERVERS = """\
servers:
  theirs:
    about: somebody's
    protocol: vfio-user
    kind: edu
    command: "./server {socket}"
    supports: []
    known_issues:
      - {id: slow, what: it is slow, tests: [Sees.test_shows], symptom: late by}
  absent:
    about: one that cannot be built
    protocol: vfio-user
    kind: edu
    prepare: echo no compiler >&2; exit 1
    command: "{program} {socket}"
    probe: yes
"""
TESTS = '''
import contextlib, json, os, time
from avocado import Test
from vfio_user.avocado_test import GuestTest
from vfio_user.harness import Cell

class Sees(GuestTest):
    def starts(self):
        with self.lab() as lab, contextlib.suppress(Exception):
            lab.serve("edu")  # or theirs, which is in its place, and there is none: it was tried all the same

    def test_cell(self):
        cell = Cell.of_text(self.params.get("cell"))
        self.starts()
        with self.lab():
            pass
        self.whiteboard = json.dumps({**json.loads(self.whiteboard), "qemu": "11.1.4"})
        self.assertEqual(self.params.get("cell_id").startswith("edu"), cell.device == "edu")
        self.assertEqual("cpus=2" in self.params.get("cell_id"), cell.hardware.get("cpus") == 2)

    def test_migrates(self):
        """
        :avocado: tags=needs:migration
        """
        self.starts()

    def test_shows(self):
        if self.params.get("cell_id").startswith("theirs"):
            raise RuntimeError("late by 7 s")
        self.starts()

    def test_says_nothing(self):
        pass

    def test_without(self):
        """
        :avocado: tags=once
        """

class Fails(Test):
    def test_wrong(self):
        self.fail("it read 7")

    def test_known(self):
        self.cancel("XFAIL: late-reply: it comes late")

    def test_not_here(self):
        self.cancel("no KVM")
'''
WAITS = """
import time
from avocado import Test

class Waits(Test):
    def test_first(self):
        pass

    def test_then(self):
        open({begun!r}, "w").close()
        time.sleep(60)
"""


def started(folder: Path, tests: str, *more: str, plan: str = PLAN, servers: str = SERVERS) -> subprocess.Popen[str]:
    (folder / "test_quick.py").write_text(tests)
    (folder / "servers.yaml").write_text(servers)
    (folder / "plan.yaml").write_text(plan.format(tests=folder / "test_quick.py"))
    return subprocess.Popen(
        [sys.executable, "-m", "tests.night_of_plan", str(folder / "plan.yaml"), str(folder / "nights"), *more],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": modules()},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def folder_of(folder: Path) -> Path:
    (found,) = (folder / "nights").glob("*/summary.json")
    return found.parent


def summary_of(folder: Path) -> Summary:
    return read_summary(folder_of(folder))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    running = started(folder, TESTS)
    said, _ = running.communicate(timeout=NEVER)
    assert running.returncode == 0, said
    (folder / "said.txt").write_text(said)
    return folder


def test_a_person_reads_verdicts_and_not_what_avocado_calls_them(whole: Path) -> None:
    """Which says ERROR and CANCEL of what is expected."""
    said = (whole / "said.txt").read_text()
    for line in (
        "XFAIL edu/test_quick.py:Fails.test_known: late-reply: it comes late (",
        "XFAIL theirs/test_quick.py:Sees.test_shows: slow: it is slow (",
        "FAIL edu/test_quick.py:Fails.test_wrong: it read 7 (",
        "SKIP edu/test_quick.py:Fails.test_not_here: no KVM (",
        f"SKIP theirs/test_quick.py:Sees.test_migrates: {results(whole, 'theirs')['test_migrates'].reason}\n",
    ):
        assert line in said
    assert [line.partition(":")[0].rpartition(") ")[2] for line in said.splitlines() if "ERROR" in line] == [
        f"ERROR {cell}/test_quick.py" for cell in ("edu", "edu+cpus=2", "theirs")
    ]
    assert "CANCEL" not in said


def results(folder: Path, cell: str) -> dict[str, CaseResult]:
    return {one.test.rpartition(".")[2]: one for one in summary_of(folder).results if one.cell == cell}


def test_a_night_leaves_what_is_read_in_the_morning(whole: Path) -> None:
    assert {path.name for path in folder_of(whole).iterdir()} >= {"index.html", "summary.md", "junit.xml"}
    compared = summary_of(whole).comparison
    assert compared is not None
    assert set(compared.new) == {result.id for result in summary_of(whole).wrong()}


def test_every_case_of_the_plan_has_a_verdict(whole: Path) -> None:
    night = summary_of(whole)
    assert night.status is Status.FINISHED
    assert len(night.results) == night.planned == 2 * 7 + 3 * 4 + 2
    assert {cell.id: cell.planned for cell in night.cells} == {
        "edu": 8,
        "edu+cpus=2": 7,
        "theirs": 5,
        "theirs+qemu=gone": 4,
        "absent": 4,
    }


@pytest.mark.parametrize("cell", ["edu", "edu+cpus=2"])
def test_a_test_is_run_in_its_cell(cell: str, whole: Path) -> None:
    found = results(whole, cell)
    assert {name: one.verdict for name, one in found.items()} == {
        "test_cell": Verdict.PASS,
        "test_migrates": Verdict.PASS,
        "test_shows": Verdict.PASS,
        "test_says_nothing": Verdict.ERROR,
        **({"test_without": Verdict.PASS} if cell == "edu" else {}),
        "test_wrong": Verdict.FAIL,
        "test_known": Verdict.XFAIL,
        "test_not_here": Verdict.SKIP,
    }
    assert found["test_wrong"].cause == "it read 7"
    assert (found["test_known"].known_issue, found["test_not_here"].reason) == ("late-reply", "no KVM")
    night = summary_of(whole)
    folder = folder_of(whole)
    assert (folder / found["test_wrong"].evidence / "debug.log").exists()
    assert next(each for each in night.cells if each.id == cell).versions["qemu"] == "11.1.4"


def test_what_is_not_to_be_had_is_wedged_with_the_reason(whole: Path) -> None:
    for cell, why in (("theirs+qemu=gone", "it is gone"), ("absent", "no compiler")):
        assert {(one.verdict, why in one.cause) for one in results(whole, cell).values()} == {(Verdict.WEDGED, True)}
    cells = {cell.id: cell.reason for cell in summary_of(whole).cells}
    assert "no compiler" in cells["absent"]
    assert not cells["theirs"]


def test_what_a_server_cannot_do_is_skipped_and_not_run(whole: Path) -> None:
    skipped = results(whole, "theirs")["test_migrates"]
    assert (skipped.verdict, skipped.attempts) == (Verdict.SKIP, 0)
    assert "migration" in skipped.reason
    assert results(whole, "theirs")["test_cell"].verdict is Verdict.PASS


def test_avocado_s_own_reports_are_beside_it_and_no_broken_one(whole: Path) -> None:
    (job,) = (whole / "nights").glob("*/job-*")
    names = {path.name for path in job.iterdir()}
    assert {"results.html", "results.xml", "results.json"} <= names
    assert "results.tap" not in names
    cases = [case for suite in JUnitXml.fromfile(str(job / "results.xml")) for case in suite]
    assert len(cases) == 19
    assert not any(str(whole) in case.name + case.classname for case in cases), "they are called the same everywhere"


def test_avocado_s_own_reports_say_what_the_night_says(whole: Path) -> None:
    """Of a test that starts nothing of its cell, or shows what is known of its server, it would say otherwise."""
    (job,) = (whole / "nights").glob("*/job-*")
    said = {
        f"{result.cell}/{result.test}": result.verdict
        for result in summary_of(whole).results
        if result.cell in ("edu", "edu+cpus=2", "theirs") and result.attempts
    }
    assert said["theirs/test_quick.py:Sees.test_says_nothing"] is Verdict.ERROR
    assert said["theirs/test_quick.py:Sees.test_shows"] is Verdict.XFAIL
    (suite,) = JUnitXml.fromfile(str(job / "results.xml"))
    elements = {
        "PASS": "",
        "FAIL": "failure",
        "XPASS": "failure",
        "ERROR": "error",
        "XFAIL": "skipped",
        "SKIP": "skipped",
    }
    told = {case.name: case.result[0]._elem.tag if case.result else "" for case in suite}
    assert told == {_of_avocado(name): elements[verdict] for name, verdict in said.items()}
    assert (suite.tests, suite.errors, suite.failures, suite.skipped) == tuple(
        sum(element in wanted for element in told.values())
        for wanted in (("", "error", "failure", "skipped"), ("error",), ("failure",), ("skipped",))
    )
    why = {case.name: case.result[0].message for case in suite if case.result}
    assert "never started" in why[_of_avocado("theirs/test_quick.py:Sees.test_says_nothing")]
    statuses = {"XFAIL": "CANCEL", "SKIP": "CANCEL"}
    written = {test["name"]: test["status"] for test in json.loads((job / "results.json").read_text())["tests"]}
    assert written == {_of_avocado(name): statuses.get(verdict, verdict) for name, verdict in said.items()}


def _of_avocado(case: str) -> str:
    """What avocado's reports call a case."""
    cell, _, name = case.partition("/")
    return f"{name};{cell}"


def test_what_a_night_calls_a_test_has_nothing_of_the_machine(whole: Path) -> None:
    assert {one.test.partition(":")[0] for one in summary_of(whole).results} == {"test_quick.py"}
    reports = [folder_of(whole) / name for name in ("junit.xml", "summary.md")]
    assert not any(f"{whole}/test_quick.py" in path.read_text() for path in reports)


def test_artifacts_of_what_passed_are_given_up_for_space_and_it_is_said(tmp_path: Path) -> None:
    plan = PLAN.replace("[{tests}]", '["{tests}:Sees.test_shows", "{tests}:Fails.test_wrong"]').partition("    vary:")[
        0
    ]
    said, _ = started(tmp_path, TESTS, str(1 << 40), plan=plan).communicate(timeout=NEVER)
    night = summary_of(tmp_path)
    assert any("nearly full" in remark for remark in night.remarks), said
    assert {bool(one.evidence) for one in night.results if one.verdict is Verdict.PASS} == {False}
    assert {bool(one.evidence) for one in night.results if one.verdict is Verdict.FAIL} == {True}


def test_a_night_that_is_ended_before_its_first_case_says_so(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "begun")
    running = started(
        tmp_path, TESTS, servers=SERVERS.replace("echo no compiler >&2; exit 1", f"echo > {tmp_path}/begun; sleep 60")
    )
    with (tmp_path / "begun").open():
        running.send_signal(signal.SIGTERM)
        said, _ = running.communicate(timeout=NEVER)
    assert running.returncode == 0, said
    assert (summary_of(tmp_path).status, summary_of(tmp_path).reason) == (Status.ENDED, "before its first case")


@pytest.mark.parametrize("twice", [False, True], ids=["once", "twice"])
def test_a_night_that_is_ended_says_so_and_has_what_it_came_to(twice: bool, tmp_path: Path) -> None:
    """And does not go on with the next cell; nothing is left of it."""
    os.mkfifo(tmp_path / "begun")
    plan = PLAN.partition("  two:")[0]
    running = started(
        tmp_path, WAITS.format(begun=str(tmp_path / "begun")), plan=plan.replace("name:", "parallel: 1\nname:")
    )
    with (tmp_path / "begun").open():
        if twice:  # who ends it at once has what the night knows by then: avocado asks for reports now and then
            assert running.stdout is not None
            assert any("test_first" in line for line in running.stdout)
        running.send_signal(signal.SIGINT)
        if twice:
            running.send_signal(signal.SIGTERM)
        said, _ = running.communicate(timeout=NEVER)
    assert running.returncode == (3 if twice else 0), said
    night = summary_of(tmp_path)
    assert night.status is Status.ENDED
    assert [one.test.rpartition(".")[2] for one in night.results] == ["test_first"]
    assert night.planned == 4
    assert "at once" in night.reason if twice else "test_then" in night.reason
    left = [one for one in psutil.process_iter(["cmdline"]) if str(tmp_path) in str(one.info["cmdline"])]
    _, alive = psutil.wait_procs(left, timeout=30)  # a child that the kernel kills with its owner may still be at it
    assert not alive
