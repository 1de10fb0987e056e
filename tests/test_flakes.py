"""Counting the verdicts that changed between runs of the suite."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from avocado_tests.flakes import changes, main, tally, verdicts
from tests.cases import for_each
from userdev.errors import UserError
from vfio_user.harness import RESULTS_VARIABLE
from vfio_user.harness.known_issues import XFAIL


def result(name: str, status: str, reason: str = "") -> dict[str, str]:
    return {"name": f"/somewhere/avocado_tests/{name}", "status": status, "fail_reason": reason}


def test_a_test_is_the_same_wherever_the_checkout_is() -> None:
    one = {"tests": [{"name": "/a-b/c/test_dma.py:Dma.test_there_and_back", "status": "PASS"}]}
    two = {"tests": [{"name": "/d/test_dma.py:Dma.test_there_and_back", "status": "PASS"}]}
    assert verdicts(one) == verdicts(two) == {"test_dma.py:Dma.test_there_and_back": "PASS"}


def test_a_known_issue_is_a_verdict_of_its_own() -> None:
    seen = verdicts({"tests": [result("a", "CANCEL", f"{XFAIL}: msix"), result("b", "CANCEL", "no KVM")]})
    assert seen == {"a": XFAIL, "b": "CANCEL"}


def test_what_differs_from_the_most_frequent_verdict_has_changed() -> None:
    runs = [{"a": "PASS", "b": "PASS"}, {"a": "FAIL", "b": "PASS"}, {"a": "PASS", "b": "PASS"}]
    assert changes(runs) == 1
    assert tally(runs)["a"] == {"PASS": 2, "FAIL": 1}
    assert changes(runs[:1]) == 0


def test_a_test_that_a_run_did_not_have_has_changed() -> None:
    assert changes([{"a": "PASS", "b": "PASS"}, {"a": "PASS"}, {"a": "PASS", "b": "PASS"}]) == 1


@for_each([[], ["0"], ["many"]])
def test_how_often_has_to_be_said(arguments: list[str]) -> None:
    with pytest.raises(UserError):
        main(arguments)


@pytest.fixture
def suite(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Runs of the suite that cost nothing: a verdict each, or how a run ends that has none."""
    monkeypatch.setenv(RESULTS_VARIABLE, str(tmp_path / "results"))
    coming: list[str] = []

    def run(command: list[str], *, env: dict[str, str], **_: object) -> subprocess.CompletedProcess[bytes]:
        verdict = coming.pop(0)
        job = Path(env[RESULTS_VARIABLE]) / "job-1"
        job.mkdir()
        (job / "results.json").write_text(json.dumps({"tests": [result("a", verdict)]}))
        return subprocess.CompletedProcess(command, {"killed": -2, "told to end": 130, "full disk": 2}.get(verdict, 0))

    monkeypatch.setattr(subprocess, "run", run)
    return coming


def test_what_was_interrupted_goes_on_and_its_whole_runs_count(
    suite: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    suite += ["PASS", "PASS", "killed"]
    with pytest.raises(UserError, match="signal 2"):
        main(["4"])
    suite += ["FAIL", "PASS"]
    assert main(["4", "--resume"]) == 1
    assert not suite
    assert "1 verdicts changed in 4 runs of 1 tests" in capsys.readouterr().out
    assert main(["4", "--resume"]) == 1, "all of it was there"


def test_a_run_that_somebody_ended_or_that_could_not_be_done_is_no_whole_one(suite: list[str]) -> None:
    """Though it has left results, of some tests."""
    suite += ["PASS"]
    main(["1"])
    for ended, told in (("told to end", "run 2 was ended"), ("full disk", "run 2 could not be done")):
        suite.append(ended)
        with pytest.raises(UserError, match=told) as error:
            main(["2", "--resume"])
        assert "--resume" in error.value.hint
    suite.append("PASS")
    assert main(["2", "--resume"]) == 0
    assert not suite


def test_a_new_count_begins_without_the_old_runs_and_other_tests_have_one_of_their_own(suite: list[str]) -> None:
    suite += ["FAIL", "PASS", "PASS"]
    assert main(["2"]) == 1
    assert main(["1"]) == 0
    assert not suite
    with pytest.raises(UserError, match="no run of these tests"):
        main(["2", "test_reset", "--resume"])
