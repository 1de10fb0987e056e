"""What a case came to, of what avocado says; what of earlier nights is told; what is watched meanwhile."""

from __future__ import annotations

import json
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.test_nightly_summary import night, result
from userdev.errors import UserError
from vfio_user.nightly.cases import Case
from vfio_user.nightly.cells import NightCell
from vfio_user.nightly.earlier import earlier_nights, estimate, last_finished, new_wrong
from vfio_user.nightly.night import only_one
from vfio_user.nightly.plan import USUALLY
from vfio_user.nightly.servers import Server, ServerIssue, our_servers
from vfio_user.nightly.summary import Status, Verdict
from vfio_user.nightly.verdicts import named, qemu_of, result_of, skipped, wedged
from vfio_user.nightly.watch import Clock, Space

TEST = "test_it.py:A.test_a"


def case(server: Server | None = None) -> Case:
    return Case(NightCell("g", {"server": "edu", **USUALLY}, server or our_servers()["edu"]), TEST)


def said(folder: Path, status: str, reason: str = "", **more: Any) -> dict[str, Any]:
    """A test of avocado's result."""
    logdir = folder / "job" / "test-results" / "1"
    logdir.mkdir(parents=True, exist_ok=True)
    name = SimpleNamespace(name=TEST, variant="edu")
    return {"name": name, "status": status, "fail_reason": reason, "logdir": str(logdir), "time_elapsed": 1.5, **more}


@pytest.mark.parametrize(
    ("status", "reason", "verdict", "why"),
    [
        ("PASS", "", Verdict.PASS, ""),
        ("WARN", "", Verdict.PASS, ""),
        ("FAIL", "it read 7\nand more", Verdict.FAIL, "it read 7"),
        ("FAIL", "XPASS: late-reply no longer happens on 12", Verdict.XPASS, "late-reply"),
        ("ERROR", "no QEMU", Verdict.ERROR, "no QEMU"),
        ("CANCEL", "XFAIL: late-reply: it comes late", Verdict.XFAIL, "late-reply"),
        ("CANCEL", "no KVM here", Verdict.SKIP, "no KVM here"),
        ("SKIP", "not on Tuesdays", Verdict.SKIP, "not on Tuesdays"),
        ("SKIP", "", Verdict.WEDGED, "nobody ran it"),
        ("INTERRUPTED", "Test interrupted: Timeout reached", Verdict.FAIL, "Timeout reached"),
        ("INTERRUPTED", "Test interrupted: its runner has gone", Verdict.WEDGED, "its runner has gone"),
        ("INTERRUPTED", "Test interrupted: it has not reported in 60 s", Verdict.WEDGED, "not reported"),
        ("SOMETHING", "", Verdict.ERROR, "SOMETHING"),
    ],
)
def test_what_avocado_says_is_a_verdict(status: str, reason: str, verdict: Verdict, why: str, tmp_path: Path) -> None:
    found = result_of(case(), said(tmp_path, status, reason), slot="here", folder=tmp_path)
    assert found.verdict is verdict
    assert why in found.cause + found.reason + found.known_issue
    assert (found.evidence, found.slot, found.seconds) == ("job/test-results/1", "here", 1.5)
    assert found.attempts == (0 if reason == "" and status == "SKIP" else 1)


def test_a_test_tells_on_its_whiteboard_what_was_seen(tmp_path: Path) -> None:
    board = json.dumps({"qemu": "11.1.3", "known_issues": ["late-reply"]})
    test = said(tmp_path, "CANCEL", "XFAIL: late-reply: it comes late", whiteboard=board)
    assert result_of(case(), test, slot="", folder=tmp_path).known_issue == "late-reply"
    assert qemu_of(test) == "11.1.3"
    assert qemu_of({**test, "whiteboard": "not {json"}) == qemu_of({**test, "whiteboard": "[]"}) == ""
    assert named(test) == ("edu", TEST)


@pytest.mark.parametrize(
    ("status", "reason", "verdict"),
    [
        ("FAIL", "it came too late", Verdict.XFAIL),
        ("ERROR", "too late to start", Verdict.XFAIL),
        ("FAIL", "it read 7", Verdict.FAIL),
        ("PASS", "", Verdict.XPASS),
        ("CANCEL", "no KVM here", Verdict.SKIP),
    ],
)
def test_a_server_has_known_issues_of_its_own(status: str, reason: str, verdict: Verdict, tmp_path: Path) -> None:
    issue = ServerIssue(id="slow", what="it is slow", tests=("A.test_a",), symptom="late")
    server = our_servers()["edu"].model_copy(update={"known_issues": (issue,)})
    found = result_of(case(server), said(tmp_path, status, reason), slot="", folder=tmp_path)
    assert found.verdict is verdict
    assert found.known_issue == ("slow" if verdict in (Verdict.XFAIL, Verdict.XPASS) else "")


def test_what_was_not_run_says_why() -> None:
    assert wedged(case(), "no such QEMU").cause == "no such QEMU"
    assert skipped(Case(case().cell, TEST, "it cannot")).reason == "it cannot"
    assert wedged(case()).attempts == skipped(Case(case().cell, TEST, "it cannot")).attempts == 0


# -- earlier nights ---------------------------------------------------------------------------------------------------


def kept(
    base: Path, name: str, *results: Any, planned: int = 2, status: Status = Status.FINISHED, **fields: Any
) -> None:
    (base / name).mkdir(parents=True)
    began = datetime(2026, 11, 1, tzinfo=UTC) + timedelta(days=len(list(base.iterdir())))
    night(*results, planned=planned, status=status, **{"night": name, "began": began, **fields}).write(base / name)


def test_wrong_is_new_where_it_was_right_or_otherwise_before(tmp_path: Path) -> None:
    wrong = [result(Verdict.FAIL, test=f"t:A.{name}", cause="x") for name in "ab"]
    kept(tmp_path, "n-1", wrong[0], result(test="t:A.b"))
    kept(tmp_path, "n-2", status=Status.ENDED)
    kept(tmp_path, "n-3", status=Status.UNDONE, reason="no space")
    before = last_finished(earlier_nights(tmp_path, "ours"))
    assert before is not None
    assert before.night == "n-1"
    assert new_wrong(night(*wrong, planned=2), before) == [wrong[1]]
    assert new_wrong(night(*wrong, planned=2), None) == wrong
    worse = result(Verdict.WEDGED, test="t:A.a", cause="x")
    assert new_wrong(night(worse), before) == [worse]


def test_nights_of_other_plans_and_what_is_none_are_passed_over(tmp_path: Path) -> None:
    kept(tmp_path, "n-1", planned=0)
    (tmp_path / "n-2").mkdir()
    (tmp_path / "n-2" / "summary.json").write_text("{")
    assert [found.night for found in earlier_nights(tmp_path, "ours")] == ["n-1"]
    assert not list(earlier_nights(tmp_path, "theirs"))


def test_an_estimate_is_of_what_cases_took_before_here_or_in_other_cells(tmp_path: Path) -> None:
    kept(tmp_path, "n-1", result(test="t:A.a", seconds=100.0), result(test="t:A.b", seconds=10.0))
    kept(tmp_path, "n-2", result(test="t:A.a", seconds=60.0), planned=1)
    cases = [("edu/t:A.a", "t:A.a"), ("nvme/t:A.b", "t:A.b"), ("edu/t:A.new", "t:A.new")]
    found = estimate(cases, earlier_nights(tmp_path, "ours"), 2)
    assert (found.seconds, found.cases, found.known) == ((60 + 10 + 15) / 2, 3, 1)


def test_a_night_beside_another_is_refused_or_waits(tmp_path: Path) -> None:
    told: list[str] = []
    waiting, entered = threading.Event(), threading.Event()

    def say(message: str) -> None:
        told.append(message)
        if "waiting" in message:
            waiting.set()

    def wait() -> None:
        with only_one(tmp_path, wait=True, say=say):
            entered.set()

    second = threading.Thread(target=wait)
    with only_one(tmp_path, wait=False, say=say):
        with pytest.raises(UserError, match="runs in"), only_one(tmp_path, wait=False, say=say):
            pass
        second.start()
        assert waiting.wait(20)
        assert not entered.is_set()
    assert entered.wait(20)
    second.join()
    assert any("process " in message for message in told)


# -- what is watched --------------------------------------------------------------------------------------------------


def test_what_passed_gives_up_its_artifacts_until_there_is_space(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in "abc"]
    for folder in folders:
        folder.mkdir()
        (folder / "log").write_text("x")
    free = iter([100, 300, 600, 600])
    space = Space(tmp_path, spare=512, free=lambda _: next(free))
    space.keep(folders)
    assert [folder.exists() for folder in folders] == [False, False, True]
    assert "2 cases" in space.remark
    space.keep(folders)
    assert space.given_up == set(folders[:2])


def test_nothing_is_given_up_where_there_is_space(tmp_path: Path) -> None:
    space = Space(tmp_path, spare=1, free=lambda _: 1000)
    space.keep([tmp_path])
    assert (tmp_path.exists(), space.remark) == (True, "")


def test_a_clock_that_jumps_is_told_and_changes_no_duration() -> None:
    now, steady = [1000.0], [50.0]
    clock = Clock(lambda: now[0], lambda: steady[0])
    for jump in (0.0, 3600.0, 0.5, -3600.0):
        now[0] += 10 + jump
        steady[0] += 10
        clock.look()
    assert clock.seconds == 40.0
    assert len(clock.remarks) == 2
    assert "+3600 s" in clock.remarks[0]
