"""What a case came to, of what avocado says; what of earlier nights is told; what is watched meanwhile."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any, cast

import pytest

from tests.cases import for_each_row
from tests.test_nightly_summary import night as a_night
from userdev.errors import UserError
from vfio_user.nightly.bundles import Bundles
from vfio_user.nightly.cases import Case, Tags, cases_of
from vfio_user.nightly.cells import NightCell
from vfio_user.nightly.night import Night, only_one
from vfio_user.nightly.place import Ran
from vfio_user.nightly.plan import USUALLY
from vfio_user.nightly.servers import Server, ServerIssue, our_servers
from vfio_user.nightly.summary import Status, Summary, Verdict
from vfio_user.nightly.verdicts import LONGEST, named, qemu_of, result_of, skipped, wedged
from vfio_user.nightly.watch import HELD_BACK_MIB, Clock, Space, held_back

TEST = "test_it.py:A.test_a"


def case(server: Server | None = None) -> Case:
    return Case(NightCell("g", {"server": "edu", **USUALLY}, server or our_servers()["edu"]), TEST)


def said(folder: Path, status: str, reason: str = "", **more: Any) -> dict[str, Any]:
    """A test of avocado's result."""
    logdir = folder / "job" / "test-results" / "1"
    logdir.mkdir(parents=True, exist_ok=True)
    usual = {"logdir": str(logdir), "time_elapsed": 1.5, "whiteboard": '{"tried": ["edu"]}'}
    name = SimpleNamespace(name=TEST, variant="edu")
    return {"name": name, "status": status, "fail_reason": reason, **usual, **more}


@for_each_row(
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
    ]
)
def test_what_avocado_says_is_a_verdict(status: str, reason: str, verdict: Verdict, why: str, tmp_path: Path) -> None:
    found = result_of(case(), said(tmp_path, status, reason), ran=Ran("here", 1), folder=tmp_path)
    assert found.verdict is verdict
    assert why in found.cause + found.reason + found.known_issue
    assert (found.evidence, found.slot, found.seconds) == ("job/test-results/1", "here", 1.5)
    assert found.attempts == (0 if reason == "" and status == "SKIP" else 1)


def test_a_long_cause_is_cut_in_the_summary(tmp_path: Path) -> None:
    found = result_of(case(), said(tmp_path, "FAIL", "x" * 2000), ran=Ran("here", 1), folder=tmp_path)
    assert len(found.cause) == LONGEST
    assert found.cause.endswith("x…")


def test_a_test_tells_on_its_whiteboard_what_was_seen(tmp_path: Path) -> None:
    board = json.dumps({"qemu": "11.1.3", "known_issues": ["late-reply"]})
    test = said(tmp_path, "CANCEL", "XFAIL: late-reply: it comes late", whiteboard=board)
    assert result_of(case(), test, ran=Ran("", 1), folder=tmp_path).known_issue == "late-reply"
    assert qemu_of(test) == "11.1.3"
    assert {qemu_of({**test, "whiteboard": none}) for none in ("not {json", "[]", "[" * 2000)} == {""}
    assert named(test) == ("edu", TEST)


@for_each_row(
    [
        ("FAIL", "it came too late", Verdict.XFAIL),
        ("ERROR", "too late to start", Verdict.XFAIL),
        ("FAIL", "it read 7", Verdict.FAIL),
        ("PASS", "", Verdict.XPASS),
        ("CANCEL", "no KVM here", Verdict.SKIP),
    ]
)
def test_a_server_has_known_issues_of_its_own(status: str, reason: str, verdict: Verdict, tmp_path: Path) -> None:
    issue = ServerIssue(id="slow", what="it is slow", tests=("A.test_a",), symptom="late")
    server = our_servers()["edu"].model_copy(update={"known_issues": (issue,)})
    found = result_of(case(server), said(tmp_path, status, reason), ran=Ran("", 1), folder=tmp_path)
    assert found.verdict is verdict
    assert found.known_issue == ("slow" if verdict in (Verdict.XFAIL, Verdict.XPASS) else "")
    assert ("not slow, whose symptom is 'late'" in found.cause) == (verdict is Verdict.FAIL)


THEIRS = Server(about="a", protocol="vfio-user", kind="edu", command="./s {socket}", supports=())


@for_each_row(
    [
        ("edu", "vfio-user", "neither self.cell.device nor edu without options"),
        ("mine", "vfio-user", "does not boot self.cell.device, and the kind 'mine' is no device of ours"),
        ("mine", "vhost-user", "does not boot self.cell.device"),
    ]
)
def test_a_test_that_passes_without_the_server_of_its_cell_says_nothing(
    kind: str, protocol: str, why: str, tmp_path: Path
) -> None:
    """Nor that a known issue of the server is gone, or seen: of ours a test may need none."""
    issue = ServerIssue(id="slow", what="it is slow", tests=("A.test_a",), symptom="never")
    for issues in ((), (issue,)):
        server = THEIRS.model_copy(update={"kind": kind, "protocol": protocol, "known_issues": issues})
        for board in ("", "not {json", "[]", "{}", '{"tried": 1}', '{"tried": []}'):
            found = result_of(case(server), said(tmp_path, "PASS", whiteboard=board), ran=Ran("", 1), folder=tmp_path)
            assert (found.verdict, found.known_issue) == (Verdict.ERROR, ""), (board, issues)
            assert found.cause.endswith(why)
        test = said(tmp_path, "PASS", whiteboard='{"tried": ["./s {socket}"]}')
        found = result_of(case(server), test, ran=Ran("", 1), folder=tmp_path)
        assert found.verdict is (Verdict.XPASS if issues else Verdict.PASS)


def test_nor_does_one_that_passes_without_ours_unless_it_says_what_it_is_of(tmp_path: Path) -> None:
    """An edu of its own is one where the test says that it is of edus; one that depends on no cell starts nothing."""
    mine = '{"tried": [], "ours": ["tests.mine:MyEdu"]}'
    rows: tuple[tuple[str, dict[str, Any], Verdict], ...] = (
        ("", {}, Verdict.ERROR),
        (mine, {}, Verdict.ERROR),
        (mine, {"is_of_its_kind": True}, Verdict.PASS),
        ('{"ours": []}', {"is_of_its_kind": True}, Verdict.ERROR),
        ("", {"depends_on_cell": False}, Verdict.PASS),
        ('{"tried": ["edu"]}', {}, Verdict.PASS),
    )
    for board, more, verdict in rows:
        given = replace(case(), **more)
        found = result_of(given, said(tmp_path, "PASS", whiteboard=board), ran=Ran("", 1), folder=tmp_path)
        assert found.verdict is verdict, (board, more)
        assert ("the test starts no edu" in found.cause) is (verdict is Verdict.ERROR), (board, more)
    theirs = replace(case(THEIRS), is_of_its_kind=True)
    found = result_of(theirs, said(tmp_path, "PASS", whiteboard=mine), ran=Ran("", 1), folder=tmp_path)
    assert found.verdict is Verdict.ERROR, "what is made for a test says nothing of a server of others"


def test_a_test_that_depends_on_no_cell_is_run_in_the_first_of_its_group_alone() -> None:
    tags: dict[str, Tags] = {
        "once.py:A.a": {"once": None, "kind": {"blk"}},
        "edu.py:A.a": {"kind": {"edu"}},
        "any.py:A.a": {},
    }
    cells = [replace(case().cell, is_first=True), replace(case().cell, values={**case().cell.values, "cpus": 2})]
    found = list(cases_of(cells, tags, lambda _: {}))
    names = ["edu/once.py:A.a", "edu/edu.py:A.a", "edu/any.py:A.a", "edu+cpus=2/edu.py:A.a", "edu+cpus=2/any.py:A.a"]
    assert [each.id for each in found] == names
    assert [each.depends_on_cell for each in found] == [False, True, True, True, True]
    assert [each.is_of_its_kind for each in found] == [False, True, False, True, False]


def test_what_was_not_run_says_why() -> None:
    assert wedged(case(), "no such QEMU").cause == "no such QEMU"
    assert skipped(Case(case().cell, TEST, "it cannot")).reason == "it cannot"
    assert wedged(case()).attempts == skipped(Case(case().cell, TEST, "it cannot")).attempts == 0


# -- one at a time ----------------------------------------------------------------------------------------------------


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
    for jump in (0.0, 3600.0, 0.5, 0.5, -3600.0, 0.0, 7200.0):
        now[0] += 10 + jump
        steady[0] += 10
        clock.look()
    assert clock.seconds == 70.0
    assert [remark.partition("jumped by ")[2] for remark in clock.remarks] == [
        "+3600 s after 20 s",
        "-3600 s after 50 s",
        "+7200 s after 70 s",
    ]


def test_artifacts_are_given_up_for_space_where_nobody_has_to_look_at_them_alone(tmp_path: Path) -> None:
    night, given, place = Night.__new__(Night), case(), SimpleNamespace(ran=lambda test: Ran("here", 1))
    for verdict in Verdict:
        result = result_of(given, said(tmp_path, "PASS"), ran=Ran("here", 1), folder=tmp_path)
        night.folder, night._cases, night._known, night._taken = tmp_path, {given.id: given}, {}, []
        night._passed, night._qemus, night._say, night._bundles = [], {}, lambda _: None, Bundles()
        night._space = Space(tmp_path, spare=0)
        why = {"cause": "it read 7", "reason": "not here", "known_issue": "slow"}
        told = result.model_copy(update={"verdict": verdict, **why})
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr("vfio_user.nightly.night.result_of", lambda *_, told=told, **__: told)
            job = SimpleNamespace(result=SimpleNamespace(tests=[said(tmp_path, "PASS")]))
            ending = SimpleNamespace(tests=lambda job: [])
            assert night._take(job, place, ending) == 1  # type: ignore[arg-type]
        assert bool(night._passed) is not verdict.is_wrong, verdict


def test_of_what_was_given_up_for_space_the_summary_names_nothing(tmp_path: Path) -> None:
    night = Night.__new__(Night)
    night.folder, night._space = tmp_path, Space(tmp_path, spare=0)
    result = result_of(case(), said(tmp_path, "PASS"), ran=Ran("here", 1), folder=tmp_path)
    for evidence, bundle, kept, bundle_kept in (
        ("a", "", "a", ""),
        ("b", "", "", ""),
        ("b", "b/data/bundle", "", ""),
        ("b", "../bundles/b", "", "../bundles/b"),
        ("a", "a/data/bundle", "a", "a/data/bundle"),
        ("", "", "", ""),
    ):
        night._space.given_up = {tmp_path / "b"}
        left = night._without_what_is_gone(result.model_copy(update={"evidence": evidence, "bundle": bundle}))
        assert (left.evidence, left.bundle) == (kept, bundle_kept), (evidence, bundle)


def test_a_case_of_which_a_finished_job_says_nothing_is_wedged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    night, given = Night.__new__(Night), case()

    class Job(AbstractContextManager["Job", None]):
        logdir, result = tmp_path, SimpleNamespace(tests=[])

        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setattr("vfio_user.nightly.night.judged_job", lambda *_: Job())
    night.folder, night._cases, night._known = tmp_path, {given.id: given}, {}
    night._say = lambda said: None
    for name in ("run_bounded", "complete_junit"):
        monkeypatch.setattr(f"vfio_user.nightly.night.{name}", lambda *_, **__: None)
    monkeypatch.setattr("vfio_user.nightly.night.Ending", lambda: SimpleNamespace(came=False))
    monkeypatch.setattr("vfio_user.nightly.night.is_full", lambda folder: False)
    finished: list[Status] = []
    for name, value in {
        "_suites": lambda *_: [1],
        "_job_settings": dict,
        "_take": lambda *_: 0,
        "_finish": finished.append,
    }.items():
        setattr(night, name, value)
    night._run(None, None, lambda _: None)  # type: ignore[arg-type]
    assert finished == [Status.FINISHED]
    assert night._known[given.id].verdict is Verdict.WEDGED


def test_a_night_is_finished_though_its_history_is_not_to_be_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where somebody looks at it with a lock: its cases were told as nothing then, and there was no page."""

    def locked(*_: object, **__: object) -> None:
        raise UserError("history.sqlite: database is locked")

    mornings, written, said = list[Summary](), list[Status](), list[str]()
    monkeypatch.setattr("vfio_user.nightly.night.write_morning", lambda summary, _: mornings.append(summary))
    for status in (Status.FINISHED, Status.ENDED, Status.UNDONE):
        night = Night.__new__(Night)
        night.summary, night.folder, night._remarks = a_night(), tmp_path, ()
        night._history, night._say = cast(Any, SimpleNamespace(last_finished=locked)), said.append
        monkeypatch.setattr(night, "_write", lambda night=night: written.append(night.summary.status), raising=False)
        night._finish(status, "why")
        assert mornings[-1].status is status
        assert "database is locked" in "".join(night._remarks)
    assert written == [status for status in (Status.FINISHED, Status.ENDED, Status.UNDONE) for _ in range(2)]
    assert len(said) == 3


def test_a_night_says_that_no_space_is_left_though_that_cannot_be_written_either(tmp_path: Path) -> None:
    night, closed = Night.__new__(Night), list[bool]()
    night.folder, night.summary = tmp_path, SimpleNamespace(model_copy=lambda **_: None)  # type: ignore[assignment]

    def fails(error: Exception) -> Callable[..., None]:
        def fail(*_: object) -> None:
            raise error

        return fail

    for name, value in {
        "_make_ready": lambda *_: None,
        "_run": fails(UserError("no space is left there")),
        "_finish": fails(OSError(28, "No space left on device", "summary.json")),
    }.items():
        setattr(night, name, value)
    place = SimpleNamespace(close=lambda: closed.append(True))
    with pytest.raises(UserError, match="no space is left there"):
        night.run(SimpleNamespace(only=()), place, lambda _: None)  # type: ignore[arg-type]
    assert closed == [True]


def test_a_night_on_a_disk_that_others_have_filled_has_space_for_its_last_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was told as one that was killed, without a page, and its summary named artifacts that had been given up."""
    night, held, room = Night.__new__(Night), list[IO[bytes]](), list[int]()

    @contextmanager
    def seen(folder: Path) -> Iterator[IO[bytes]]:
        with held_back(folder) as file:
            held.append(file)
            yield file

    def mib() -> int:
        return os.fstat(held[0].fileno()).st_blocks * 512 >> 20

    def fails(*_: object) -> None:
        room.append(mib())
        raise UserError("no space is left there")

    monkeypatch.setattr("vfio_user.nightly.night.held_back", seen)
    night.folder, night.summary = tmp_path, SimpleNamespace(model_copy=lambda **_: None)  # type: ignore[assignment]
    for name, value in {
        "_make_ready": lambda *_: None,
        "_run": fails,
        "_finish": lambda *_: room.append(mib()),
    }.items():
        setattr(night, name, value)
    with pytest.raises(UserError, match="no space is left there"):
        night.run(SimpleNamespace(only=()), SimpleNamespace(close=lambda: None), lambda _: None)  # type: ignore[arg-type]
    assert room == [HELD_BACK_MIB, 0]
    assert [*tmp_path.iterdir()] == []


def test_a_test_is_skipped_where_the_server_cannot_what_it_needs_or_nobody_knows_whether_it_can() -> None:
    cell = case().cell
    can = {"migration": "", "reset": "it says no"}
    for needs, skipped_for in (
        ([], []),
        (["migration"], []),
        (["reset"], ["reset: it says no"]),
        (["dma"], ["dma: nobody knows of it"]),
        (["migration", "reset", "dma"], ["dma: nobody knows of it", "reset: it says no"]),
    ):
        (found,) = cases_of([cell], {TEST: {"needs": needs}}, lambda _: can)
        assert bool(found.skipped) is bool(skipped_for), needs
        assert all(why in found.skipped for why in skipped_for), needs
