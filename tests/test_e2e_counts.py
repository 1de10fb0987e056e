"""What a run of guest-driven tests comes to: each test is counted once, the same for people and for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from userdev.errors import UserError, VerdictError
from vfio_user.avocado_job.ending import Ending
from vfio_user.cli.test_e2e import Printed, report
from vfio_user.page.names import RECORD

STATUSES = ("PASS", "WARN", "FAIL", "ERROR", "INTERRUPTED", "SKIP", "CANCEL", "XFAIL")


def job_of(folder: Path, counts: Sequence[int]) -> Any:
    """A job of avocado's that has ended: so many tests of each of `STATUSES`."""
    tests = [
        {
            "name": f"{index}-t.py:A.{status}{index}",
            "status": "CANCEL" if status == "XFAIL" else status,
            "time_elapsed": 1.5,
            "fail_reason": "XFAIL: known" if status == "XFAIL" else None,
            "logdir": str(folder / f"{status}{index}"),
        }
        for status, count in zip(STATUSES, counts, strict=True)
        for index in range(count)
    ]
    passed, warned, failed, errors, interrupted, skipped, cancelled, known = counts
    result = SimpleNamespace(
        tests=tests,
        tests_total=len(tests),
        tests_run=len(tests) - skipped,
        passed=passed,
        warned=warned,
        failed=failed,
        errors=errors,
        interrupted=interrupted,
        skipped=skipped,
        cancelled=cancelled + known,
    )
    return SimpleNamespace(result=result, logdir=str(folder), logfile="log", time_elapsed=30.0)


def test_a_run_of_tests_counts_each_once_for_people_and_for_programs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for counts in (
        (1, 1, 1, 1, 1, 1, 1, 1),
        (2, 0, 0, 0, 0, 0, 0, 0),
        (0, 0, 0, 0, 0, 0, 0, 1),
        (0, 0, 3, 0, 0, 5, 0, 0),
    ):
        passed, failed = counts[0] + counts[1], sum(counts[2:5])
        skipped, known = counts[5] + counts[6], counts[7]
        said = {}
        for as_json in (False, True):
            verdict = f"{failed} of {sum(counts)} guest-driven test"
            with pytest.raises(VerdictError, match=verdict) if failed else nullcontext():
                report(job_of(tmp_path, counts), int(failed > 0), Ending(), None, _printed(as_json=as_json))
            said[as_json] = capsys.readouterr().out
        assert said[False].splitlines()[-1] == f"{passed} passed, {failed} failed, {skipped} skipped", counts
        assert (f"{known} showed a known issue" in said[False]) is bool(known), counts
        assert f"{2 * (sum(counts) - counts[5]):.1f} cases per minute" in said[False], counts
        told = json.loads(said[True])
        assert (told["passed"], told["failed"], told["skipped"], told["known_issues"]) == (
            *(passed, failed, skipped),
            known,
        ), counts
        assert len(told["tests"]) == sum(counts), counts


def _printed(*, as_json: bool) -> Printed:
    return Printed(sys.stdout, as_json=as_json)


def test_where_nothing_came_of_a_run_it_is_no_verdict(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="did not finish"):
        report(job_of(tmp_path, (0, 0, 0, 0, 0, 3, 1, 0)), 0, Ending(), None, _printed(as_json=False))


def test_what_a_test_was_at_when_the_run_was_ended_is_told_as_no_cause(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its guest was taken from it."""
    job = job_of(tmp_path, (1, 0, 0, 0, 1, 0, 0, 0))
    *_, interrupted = job.result.tests
    folder = Path(interrupted["logdir"]) / "data"
    folder.mkdir(parents=True)
    (folder / RECORD).write_text(json.dumps({"first_cause": "the guest was gone"}))
    ending = Ending()
    ending._reported = 1
    with pytest.raises(KeyboardInterrupt):
        report(job, 1, ending, None, _printed(as_json=False))
    said = capsys.readouterr()
    assert "gone" not in said.out
    assert "ended in" in said.err


def test_of_a_long_cause_a_line_is_told_and_where_the_rest_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = "x" * 5000
    causes = {
        "guest failure: it is wrong": "guest failure: it is wrong",
        "server failure: it ended: Traceback\n  File a.py\n\nValueError: this is why\n": "... ValueError: this is why",
        f"guest failure: in the guest, '{command}' failed with exit code 1": "failed with exit code 1",
    }
    for number, (cause, line) in enumerate(causes.items()):
        folder = tmp_path / str(number)
        (folder / "data").mkdir(parents=True)
        (folder / "data" / RECORD).write_text(json.dumps({"first_cause": cause}))
        job = job_of(folder, (0, 0, 1, 0, 0, 0, 0, 0))
        job.result.tests[:] = [{"name": "a.py:A.t", "status": "FAIL", "fail_reason": "", "logdir": str(folder)}]
        with pytest.raises(VerdictError):
            report(job, 1, Ending(), None, _printed(as_json=False))
        said, page, *_ = capsys.readouterr().out.splitlines()
        assert said.endswith(line), cause[:50]
        assert len(said) < 300
        assert page.endswith(f"{folder}/data/index.html")
        assert page.startswith("  all of it: ") is (said != f"A.t: {cause}")
