"""Avocado's jobs of guest-driven tests: bounded whatever a test does, and what they leave has all that one wants."""

# Avocado, and what imports it, are imported where they are needed: each of pytest's workers imports this module, and
# few of them run its tests.
from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import unittest
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import psutil
import pytest
from junitparser import JUnitXml

from tests.cases import for_each, for_each_row
from tests.checkout import ROOT, modules
from userdev.errors import UserError, VerdictError
from vfio_user.avocado_job import job as avocado_job
from vfio_user.avocado_job.ending import Ending
from vfio_user.cli import test_e2e

pytestmark = pytest.mark.long  # all by the worker that has begun: another would import avocado, and run the same jobs


KILLS_ITS_RUNNER = """
        for each in psutil.Process().parents()[:2]:
            each.kill()
"""
"""And the process that its runner is a fork of, so that the next test needs another."""

FILE = """
import gc, json, os, psutil, signal, time
from avocado import Test
from vfio_user.avocado_test import GuestTest

class One(Test):
    def test_first(self):
        {body}

    def test_second(self):
        self.cancel("it has a reason")

class Guests(GuestTest):
    timeout = 4  # of which a busy machine needs some until the test is at its line
    def test_late(self):
        with self.lab():
            time.sleep(60)

    def test_cleans_up(self):
        self.addCleanup(self.fail, "the cleanup given first was run last")
        self.addCleanup(print, "the cleanup given last was run")

class Shares(Test):
    def test_leaves(self):
        assert gc.get_freeze_count() > 10_000, "what all tests share is looked at by each"
        json.left_behind = os.environ["LEFT_BEHIND"] = "something"
        self.whiteboard = self.template()

    def test_meets(self):
        self.assertFalse(hasattr(json, "left_behind") or "LEFT_BEHIND" in os.environ)
        self.whiteboard = self.template()

    def template(self):
        runner, template, *_ = psutil.Process().parents()
        return str(template.pid)
"""

MARK = "FOLDER_OF_THIS_JOB"
"""In the environment of all that a job has started."""


def job(folder: Path, body: str, chosen: str, *bounds: str) -> subprocess.Popen[str]:
    """A job with the tests of a file that this expression finds, the first of which does this."""
    file = folder / "test_it.py"
    file.write_text(FILE.format(body=body))
    programs = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))  # avocado's runners
    return subprocess.Popen(
        [sys.executable, "-m", "tests.avocado_job", f"{file}:{chosen}", str(folder / "results"), *bounds],
        cwd=ROOT,
        env={**os.environ, "PATH": programs, "PYTHONPATH": modules(), MARK: str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def verdicts(said: str) -> dict[str, str]:
    """METHOD: STATUS: REASON of the tests, from what the job has printed."""
    lines = (line.partition(".py:")[2] for line in said.splitlines() if line.startswith("> "))
    return dict(line.split(": ", 1) for line in lines if ": " in line)


def processes_of(folder: Path) -> Iterator[psutil.Process]:
    """What a job has started and is running."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(MARK) == str(folder):
                yield process


def all_end(folder: Path) -> bool:
    """Whether none of them stays: what ends when its job has may still be at it."""
    _, still = psutil.wait_procs(list(processes_of(folder)), timeout=30)
    return not still


def left(folder: Path, name: str) -> Path:
    """A file of the job's folder."""
    (found,) = folder.glob(f"results/job-*/{name}")
    return found


def test_a_test_that_never_reports_is_gone_on_without(tmp_path: Path) -> None:
    """Its runner has ended: avocado waits for what will never come. The test ends with it."""
    running = job(tmp_path, f"{KILLS_ITS_RUNNER}\n        time.sleep(150)", "One", "60", "30", "2")
    said, _ = running.communicate(timeout=150)
    assert running.returncode == 0, said
    assert all_end(tmp_path)
    found = verdicts(said)
    assert found["One.test_first"].startswith("INTERRUPTED: Test interrupted: its runner has gone")
    assert found["One.test_second"] == "CANCEL: it has a reason"
    results = json.loads(left(tmp_path, "results.json").read_text())
    assert [test["status"] for test in results["tests"]] == ["INTERRUPTED", "CANCEL"]


def test_a_job_that_does_not_go_on_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    running = job(tmp_path, "time.sleep(150)", "test_first", "4", "1")
    said, _ = running.communicate(timeout=150)
    assert running.returncode == 3, said
    assert "has not ended" in said
    assert all_end(tmp_path)


def test_a_job_that_is_killed_leaves_no_test_behind(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "begun")
    running = job(tmp_path, f"open({str(tmp_path / 'begun')!r}, 'w').close(); time.sleep(150)", "test_first", "60")
    with (tmp_path / "begun").open():
        running.kill()
        running.communicate(timeout=150)
    assert all_end(tmp_path)


def test_a_run_that_is_told_twice_ends_at_once_and_leaves_nothing(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "begun")
    body = f"signal.pthread_sigmask(signal.SIG_BLOCK, {{15}}); open({str(tmp_path / 'begun')!r}, 'w').close()"
    running = job(tmp_path, f"{body}; time.sleep(60)", "One", "60")
    with (tmp_path / "begun").open():
        for number in (signal.SIGINT, signal.SIGTERM):  # two of one kind may be one to who gets them
            running.send_signal(number)
        said, _ = running.communicate(timeout=30)
    assert running.returncode == 130
    assert "ended at once" in said
    assert all_end(tmp_path)


def test_no_program_is_started_to_ask_what_the_runner_of_forks_can_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """Avocado would start a Python with all of itself in it, for each job."""
    from avocado.core.nrunner.runnable import (
        RUNNERS_REGISTRY_STANDALONE_EXECUTABLE,
        STANDALONE_EXECUTABLE_CONFIG_USED,
        Runnable,
    )
    from avocado.core.nrunner.runner import check_runnables_runner_requirements

    from vfio_user.avocado_job.forks import ForkSpawner

    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a program is started"))
    for registry in (RUNNERS_REGISTRY_STANDALONE_EXECUTABLE, STANDALONE_EXECUTABLE_CONFIG_USED):
        for name in list(registry):
            monkeypatch.delitem(registry, name)
    assert ForkSpawner().is_operational()
    test = Runnable("avocado-instrumented", "test_it.py:One.test_first")
    assert check_runnables_runner_requirements([test]) == ([test], [])
    assert "run.test_parameters" in STANDALONE_EXECUTABLE_CONFIG_USED["avocado-runner-avocado-instrumented"]


def test_a_run_that_somebody_ends_says_so_of_its_tests(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "begun")
    running = job(tmp_path, f"open({str(tmp_path / 'begun')!r}, 'w').close(); time.sleep(60)", "test_first", "60")
    with (tmp_path / "begun").open():  # when the test itself is under way, and not while avocado tells of it
        running.send_signal(signal.SIGINT)
        said, _ = running.communicate(timeout=150)
    [(test, verdict)] = verdicts(said).items()
    told = ("told to end", "Interrupted by user")  # by its runner or by avocado, whose report is there first
    assert (test, verdict.removeprefix("INTERRUPTED: Test interrupted: ") in told) == ("One.test_first", True), said
    assert "One.test_first" in "".join(line for line in said.splitlines() if line.startswith("ended in "))


class Ended(NamedTuple):
    """A job with all the tests, of which none does harm."""

    folder: Path
    said: str
    pid: int


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Ended:
    folder = tmp_path_factory.mktemp("ended")
    running = job(folder, "pass", "", "60")
    said, _ = running.communicate(timeout=150)
    return Ended(folder, said, running.pid)


def test_tests_are_forks_of_one_process_and_leave_nothing_in_it(ended: Ended) -> None:
    found = verdicts(ended.said)
    assert [found[f"Shares.{name}"] for name in ("test_leaves", "test_meets")] == ["PASS: None"] * 2, ended.said
    tests = json.loads(left(ended.folder, "results.json").read_text())["tests"]
    [template] = {int(test["whiteboard"]) for test in tests if ":Shares." in test["name"]}
    assert template != ended.pid
    assert all_end(ended.folder)


def test_a_test_that_takes_too_long_leaves_its_evidence(ended: Ended) -> None:
    """With the place that it was at."""
    folder, said, _ = ended
    assert verdicts(said)["Guests.test_late"] == "INTERRUPTED: Test interrupted: Timeout reached", said
    assert left(folder, "test-results/*test_late/data/index.html").exists()
    error = left(folder, "test-results/*test_late/data/error.txt").read_text()
    assert "took longer than its 4 s" in error
    assert "time.sleep(60)" in error


def test_a_cleanup_of_a_test_is_run_and_may_fail_it(ended: Ended) -> None:
    """Avocado itself forgets cleanups (findings/avocado-runs-no-cleanups.sh)."""
    folder, said, _ = ended
    assert verdicts(said)["Guests.test_cleans_up"] == "ERROR: the cleanup given first was run last", said
    assert "the cleanup given last was run" in left(folder, "test-results/*test_cleans_up/stdout").read_text()


PASSED_OVER = {
    "setUpClass": classmethod(lambda _: None),
    "tearDownClass": classmethod(lambda _: None),
    "test_yields": lambda self: (yield),
    "test_is_expected_to_fail": unittest.expectedFailure(lambda self: None),
}


@for_each(PASSED_OVER)
def test_what_avocado_would_pass_over_in_silence_is_refused_when_the_class_is_made(name: str) -> None:
    from vfio_user.avocado_test import GuestTest

    with pytest.raises(UserError, match=f"Mine.{name}"):
        type("Mine", (GuestTest,), {name: PASSED_OVER[name]})


def test_what_is_like_it_and_run_is_taken() -> None:
    from vfio_user.avocado_test import GuestTest

    type("Mine", (GuestTest,), {"yields": lambda self: (yield), "test_it": lambda self: None})


def test_junit_has_the_reason_of_what_was_cancelled(ended: Ended) -> None:
    folder, said, _ = ended
    results = json.loads(left(folder, "results.json").read_text())
    report = left(folder, "results.xml")
    avocado_job.complete_junit(report, results["tests"])
    cases = [case for suite in JUnitXml.fromfile(str(report)) for case in suite]
    reasons = {case.name.rpartition(".")[2]: [result.message for result in case.result] for case in cases}
    assert reasons["test_second"] == ["it has a reason"], said
    assert reasons["test_first"] == []


def test_junit_that_a_full_disk_has_cut_stays_as_it_is(tmp_path: Path) -> None:
    """A night ended in an error of ElementTree's there, and was told as one that runs for ever."""
    report = tmp_path / "results.xml"
    skipped = [{"status": "SKIP", "fail_reason": "it has a reason"}]
    for content in (b"", b"<?xml version='1.0'?><testsuite><testcase"):
        report.write_bytes(content)
        avocado_job.complete_junit(report, skipped)
        assert report.read_bytes() == content
    report.unlink()
    avocado_job.complete_junit(report, skipped)
    assert not report.exists()


def test_junit_that_cannot_be_completed_for_want_of_space_is_what_avocado_wrote(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (report := tmp_path / "results.xml").write_text(
        whole := '<testsuite><testcase name="a"><skipped/></testcase></testsuite>'
    )

    def full(_: object, path: str, **__: object) -> None:
        Path(path).write_text("<testsu")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(JUnitXml, "write", full)
    monkeypatch.setattr("junitparser.TestSuite.write", full, raising=False)
    avocado_job.complete_junit(report, [{"status": "SKIP", "fail_reason": "it has a reason"}])
    assert [path.read_text() for path in tmp_path.iterdir()] == [whole]


# what a run comes to


def done(*tests: tuple[str, str], folder: Path) -> Any:
    """A job that has ended with tests of these states and reasons."""
    found = [{"name": "a.py:A.t", "status": status, "fail_reason": why, "logdir": str(folder)} for status, why in tests]
    counts = {name: sum(status == name for status, _ in tests) for name in ("PASS", "FAIL", "INTERRUPTED", "CANCEL")}
    result = SimpleNamespace(
        tests=found,
        passed=counts["PASS"],
        failed=counts["FAIL"],
        interrupted=counts["INTERRUPTED"],
        cancelled=counts["CANCEL"],
        errors=0,
        skipped=0,
        warned=0,
        tests_run=len(tests),
        tests_total=len(tests),
    )
    return SimpleNamespace(result=result, logdir=str(folder), logfile="", time_elapsed=1.0)


def ended_after(reported: int, job: Any) -> Ending:
    """Somebody ended that job when so many tests had reported."""
    ending = Ending()
    then = SimpleNamespace(result=SimpleNamespace(tests=job.result.tests[:reported]), test_suites=[])
    with pytest.raises(KeyboardInterrupt), ending.noticed(then):
        signal.raise_signal(signal.SIGTERM)
    return ending


PASSED, FAILED = ("PASS", ""), ("FAIL", "wrong")
LATE = ("INTERRUPTED", "Test interrupted: Timeout reached")


def test_a_run_that_was_ended_is_not_failed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = done(PASSED, LATE, folder=tmp_path)
    with pytest.raises(KeyboardInterrupt):
        test_e2e.report(job, 8, ended_after(1, job))
    assert "1 passed, 0 failed" in capsys.readouterr().out


def test_what_failed_before_it_was_ended_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = done(FAILED, LATE, LATE, folder=tmp_path)
    with pytest.raises(KeyboardInterrupt):
        test_e2e.report(job, 9, ended_after(1, job))
    assert "0 passed, 1 failed" in capsys.readouterr().out


@for_each([FAILED, LATE])
def test_a_run_in_which_a_test_failed_or_was_too_slow_is_failed(bad: tuple[str, str], tmp_path: Path) -> None:
    with pytest.raises(VerdictError):
        test_e2e.report(done(PASSED, bad, folder=tmp_path), 1, Ending())


def test_a_run_with_nothing_but_known_issues_is_good(tmp_path: Path) -> None:
    test_e2e.report(done(("CANCEL", "XFAIL: it-ends"), folder=tmp_path), 0, Ending())
    with pytest.raises(UserError):
        test_e2e.report(done(("CANCEL", "no KVM"), folder=tmp_path), 0, Ending())


# settings and bounds


@for_each(["run.max_paralel_tasks", "task.timeout.runing"])
def test_a_setting_that_avocado_does_not_have_is_refused(key: str) -> None:
    with pytest.raises(UserError, match=key) as refused:
        avocado_job.check_settings([key, "run.max_parallel_tasks"])
    assert "do you mean" in refused.value.hint


def test_settings_that_avocado_has_are_taken() -> None:
    """Those of its core, and of plugins that are options of its command line."""
    avocado_job.check_settings(["run.max_parallel_tasks", "filter.by_tags.tags", "run.dict_variants"])


def test_a_job_waits_as_long_as_the_longest_of_its_classes() -> None:
    from vfio_user.avocado_test import GuestTest

    folder = ROOT / "avocado_tests"
    short = f"{folder}/test_dma.py:Dma.test_physical_memory"
    long = f"{folder}/test_migration.py:FailingWellEverywhere.test_file_fails"
    assert avocado_job.longest_timeout([short]) == GuestTest.timeout
    assert avocado_job.longest_timeout([]) == GuestTest.timeout
    assert avocado_job.longest_timeout(["/nonexistent.py:A.test_a", short, long]) == 3 * GuestTest.timeout


def test_a_class_that_says_no_time_has_the_usual_one(tmp_path: Path) -> None:
    from vfio_user.avocado_test import GuestTest

    file = tmp_path / "test_times.py"
    file.write_text("class Says:\n    timeout = 1.5\n\nclass SaysNone:\n    pass\n")
    for tests, longest in (
        (["Says.test_a"], 1.5),
        (["SaysNone.test_a"], GuestTest.timeout),
        (["Says.test_a", "SaysNone.test_a"], GuestTest.timeout),
    ):
        assert avocado_job.longest_timeout([f"{file}:{test}" for test in tests]) == longest, tests


SILENCE, GRACE, LOST = 100.0, 30.0, 10.0


@for_each_row(
    [
        ([(0.0, True), (LOST, True)], ""),
        ([(0.0, True), (LOST + 0.1, True)], avocado_job.RUNNER_GONE),
        ([(0.0, False), (50.0, True), (50.0 + LOST, True)], ""),
        ([(0.0, False), (SILENCE, False)], ""),
        ([(0.0, False), (SILENCE + 0.1, False)], "it has not reported in 100 s"),
        ([(SILENCE + 0.1, False), (SILENCE + 0.2, False)], "it has not reported in 100 s"),
        ([(0.0, False), (SILENCE + GRACE + 0.1, False)], "hangs"),
    ]
)
def test_a_test_is_gone_on_without_when_its_runner_or_its_report_is_late_and_not_before(
    looks: list[tuple[float, bool]], why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is looked at: the seconds, and whether the test's runner has gone by then."""
    clock = SimpleNamespace(now=0.0)
    clock.monotonic = lambda: clock.now
    reported: list[str] = []
    test = SimpleNamespace(identity="1", name="a", has_gone=False, report=reported.append)
    monkeypatch.setattr(avocado_job, "time", clock)
    monkeypatch.setattr(avocado_job, "_unreported", lambda _: [test])
    monkeypatch.setattr(avocado_job, "end_children", lambda: reported.append("hangs"))
    job = SimpleNamespace(result=SimpleNamespace(tests=[]), test_suites=[])
    said: list[str] = []
    hangs = pytest.raises(avocado_job.JobHangs) if why == "hangs" else contextlib.nullcontext()
    with hangs, avocado_job.watched(job, SILENCE, said.append, grace=GRACE, lost=LOST):
        for clock.now, test.has_gone in looks:
            signal.raise_signal(signal.SIGALRM)
    assert reported == ([why] if why else [])
    assert said == ([f"a is gone on without: {why}"] if why and why != "hangs" else [])


def test_a_timer_and_its_handler_are_as_they_were_when_a_job_has_been_watched() -> None:
    handler = signal.getsignal(signal.SIGALRM)
    before = signal.setitimer(signal.ITIMER_REAL, 300.0, 7.0)
    try:
        job = SimpleNamespace(result=SimpleNamespace(tests=[]), test_suites=[])
        with avocado_job.watched(job, 60.0, print):
            assert signal.getitimer(signal.ITIMER_REAL)[0] < 60
        left, interval = signal.getitimer(signal.ITIMER_REAL)
    finally:
        signal.setitimer(signal.ITIMER_REAL, *before)
    assert 200 < left <= 300.1
    assert interval == pytest.approx(7.0)
    assert signal.getsignal(signal.SIGALRM) is handler


@for_each_row([(5, "took longer than its 4 s"), (0, "was told to end after")])
def test_labs_of_a_test_that_is_ended_end_the_last_first_and_each_keeps_its_evidence(took: int, why: str) -> None:
    from vfio_user.avocado_test import GuestTest

    ended: list[str] = []

    def block(name: str) -> contextlib.ExitStack:
        def end(_kind: object, error: BaseException | None, _traceback: object) -> None:
            ended.append(name)
            assert f"the test {why}" in str(error)
            raise VerdictError("it has not ended well")

        ends = contextlib.ExitStack()
        ends.push(lambda *_: ended.append(f"{name} kept"))
        ends.push(end)
        return ends

    late: Any = SimpleNamespace(
        timeout=4, time_start=time.monotonic() - took, log=SimpleNamespace(info=lambda *_: None)
    )
    late._open = {name: (0, block(name)) for name in ("outer", "inner")}
    GuestTest._end_labs(late)
    assert ended == ["inner", "inner kept", "outer", "outer kept"]


def test_who_wants_it_quiet_hears_nothing_of_what_is_fetched(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("VFIO_USER_RESULTS", str(tmp_path))
    monkeypatch.setattr(test_e2e, "prepare_environment", lambda *_: None)
    monkeypatch.setattr(test_e2e, "make_job", lambda _: SimpleNamespace(test_suites=()))
    monkeypatch.setattr(test_e2e, "provision", lambda _, say: say("an image is built"))
    monkeypatch.setattr(test_e2e, "_run", lambda *_, **__: None)
    for quiet in ([], ["--quiet"]):
        test_e2e.command.main(["registers", *quiet], standalone_mode=False)
        assert ("an image is built" in capsys.readouterr().err) == (not quiet), quiet
