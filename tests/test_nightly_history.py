"""Nights are remembered, compared with the one before, and told in the order in which somebody has to look at them."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from datetime import UTC, datetime, timedelta, timezone
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from junitparser import JUnitXml

from tests.cases import for_each, for_each_row
from tests.test_nightly_summary import night, result
from vfio_user.nightly import history as history_module
from vfio_user.nightly.comparison import LOOKED_AT, compare
from vfio_user.nightly.ended import BY_FORCE, end_those_killed
from vfio_user.nightly.history import History, estimate, results_of
from vfio_user.nightly.morning import Morning, junit_of, write_morning
from vfio_user.nightly.summary import CaseResult, Cell, Flake, Moved, Status, Summary, Verdict, read_summary

PASS, FAIL, XFAIL, XPASS, SKIP, WEDGED = (
    Verdict.PASS,
    Verdict.FAIL,
    Verdict.XFAIL,
    Verdict.XPASS,
    Verdict.SKIP,
    Verdict.WEDGED,
)


def case(name: str, verdict: Verdict = PASS, seconds: float = 1.0, **fields: Any) -> CaseResult:
    why = {PASS: {}, SKIP: {"reason": "not here"}, XFAIL: {"known_issue": "lost"}}.get(verdict, {"cause": "it read 7"})
    return result(verdict, test=f"t.py:A.{name}", seconds=seconds, **{**why, **fields})


def nth(number: int, *results: CaseResult, status: Status = Status.FINISHED, **fields: Any) -> Summary:
    began = datetime(2026, 11, 1, tzinfo=UTC) + timedelta(days=number)
    usual = {"night": f"n-{number}", "began": began, "status": status}
    return night(*results, planned=len(results), **{**usual, **fields})


def compared(now: Summary, *before: Summary) -> Summary:
    nights = [(one.night, results_of(one)) for one in before]
    return now.model_copy(update={"comparison": compare(now, nights[0] if nights else None, nights)})


# -- remembered -------------------------------------------------------------------------------------------------------


def test_a_night_is_compared_with_the_last_that_was_finished(tmp_path: Path) -> None:
    history = History(tmp_path)
    for summary in (
        nth(2, case("a", FAIL)),
        nth(1, case("a")),
        nth(3, case("a"), status=Status.ENDED),
        nth(4, status=Status.UNDONE, reason="no space"),
        nth(5, status=Status.RUNNING),
    ):
        history.add(summary)
    found = history.last_finished("ours")
    assert found is not None
    assert found[0] == "n-2"
    assert {name: past.verdict for name, past in found[1].items()} == {"edu/t.py:A.a": FAIL}
    assert [name for name, _ in history.latest("ours", 5)] == ["n-3", "n-2", "n-1"]
    assert [name for name, _ in history.latest("ours", 1, but="n-3")] == ["n-2"]
    assert history.last_finished("theirs") is None


def test_nights_whose_folders_are_gone_are_remembered(tmp_path: Path) -> None:
    folder = tmp_path / "n-1"
    folder.mkdir()
    nth(1, case("a")).write(folder)
    assert History(tmp_path).latest("ours", 9) != []
    (folder / "summary.json").unlink()
    assert [name for name, _ in History(tmp_path).latest("ours", 9)] == ["n-1"]


@for_each([None, b"no database" * 100])
def test_history_is_made_again_of_the_nights_that_are_there(content: bytes | None, tmp_path: Path) -> None:
    for number in (1, 2):
        (tmp_path / f"n-{number}").mkdir()
        nth(number, case("a")).write(tmp_path / f"n-{number}")
    (tmp_path / "n-3").mkdir()
    (tmp_path / "n-3" / "summary.json").write_text("{")
    if content is not None:
        (tmp_path / history_module.NAME).write_bytes(content)
    assert [name for name, _ in History(tmp_path).latest("ours", 9)] == ["n-2", "n-1"]


def test_history_is_made_again_where_only_its_beginning_is_a_database(tmp_path: Path) -> None:
    """As a power cut or a bad disk leaves it: a night's end met that after all its cases."""
    for page in range(1, 6):
        base = tmp_path / str(page)
        history = History(base)
        for number in range(1, 4):
            (base / f"n-{number}").mkdir(parents=True)
            summary = nth(number, *[case(f"a{name}") for name in range(40)])
            summary.write(base / f"n-{number}")
            history.add(summary)
        with (base / history_module.NAME).open("r+b") as file:
            assert file.seek(0, os.SEEK_END) > 4096 * (page + 1)
            file.seek(4096 * page)
            file.write(bytes(4096))
        history.add(nth(9, case("a")))
        assert [name for name, _ in history.latest("ours", 9)] == ["n-9", "n-3", "n-2", "n-1"], page


def test_a_night_that_ran_when_it_was_looked_at_is_read_again(tmp_path: Path) -> None:
    folder = tmp_path / "n-1"
    folder.mkdir()
    nth(1, status=Status.RUNNING).write(folder)
    assert History(tmp_path).last_finished("ours") is None
    nth(1, case("a")).write(folder)
    assert History(tmp_path).last_finished("ours") is not None


def test_nights_follow_each_other_whatever_the_clock_of_their_place_says(tmp_path: Path) -> None:
    """A machine that moved, or summer time that ended: 23:00 in Tokyo is before 16:00 in Lisbon."""
    history = History(tmp_path)
    moments = ((9, 23), (0, 16), (-5, 12), (2, 20))  # 14:00, 16:00, 17:00 and 18:00 in UTC
    for number, (hours, hour) in enumerate(moments, 1):
        began = datetime(2026, 11, 1, hour, tzinfo=timezone(timedelta(hours=hours)))
        history.add(nth(number, case("a"), began=began))
    assert [name for name, _ in history.latest("ours", 9)] == ["n-4", "n-3", "n-2", "n-1"]


def test_a_night_of_a_clock_that_was_ahead_is_no_longer_the_latest_once_that_is_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history_module, "KEPT", 2)
    history = History(tmp_path)
    now = datetime.now(UTC)
    for number, began in ((1, now + timedelta(days=400)), (2, now - timedelta(days=2)), (3, now - timedelta(days=1))):
        history.add(nth(number, case("a"), began=began))
        assert next(name for name, _ in history.latest("ours", 9)) == f"n-{number}"
    assert [name for name, _ in history.latest("ours", 9)] == ["n-3", "n-2"], "and it is the first to be forgotten"


def test_a_plan_has_so_many_nights_and_the_oldest_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history_module, "KEPT", 2)
    history = History(tmp_path)
    history.add(nth(1, case("a"), plan=nth(0).plan.model_copy(update={"name": "theirs"})))
    for number in (2, 3, 4):
        history.add(nth(number, case("a")))
    assert [name for name, _ in history.latest("ours", 9)] == ["n-4", "n-3"]
    assert [name for name, _ in history.latest("theirs", 9)] == ["n-1"]
    with sqlite3.connect(tmp_path / history_module.NAME) as database:
        assert database.execute("SELECT count(*) FROM results").fetchone() == (3,)
    database.close()


def test_a_question_leaves_nothing_where_there_were_no_nights(tmp_path: Path) -> None:
    assert History(tmp_path / "none").last_finished("ours") is None
    assert not (tmp_path / "none").exists()


def test_an_estimate_is_of_what_cases_took_before_here_or_in_other_cells(tmp_path: Path) -> None:
    history = History(tmp_path)
    history.add(nth(1, case("a", seconds=100.0), case("b", seconds=10.0)))
    history.add(nth(2, case("a", seconds=60.0), case("skipped", SKIP, seconds=9.0)))
    cases = [("edu/t.py:A.a", "t.py:A.a"), ("nvme/t.py:A.b", "t.py:A.b"), ("edu/t.py:A.new", "t.py:A.new")]
    found = estimate(cases, history.latest("ours", 5), 2)
    assert (found.seconds, found.cases, found.known) == (60, 3, 1)
    assert estimate(cases, history.latest("ours", 5), 1).seconds == 60 + 10 + (60 + 10) / 2
    assert str(found) == "3 cases, about 60 s (1 of them by what they took before)"


def test_an_estimate_says_where_nothing_is_known_and_never_that_something_takes_no_time(tmp_path: Path) -> None:
    cases = [("edu/t.py:A.a", "t.py:A.a")]
    assert "not known" in str(estimate(cases, [], 2))
    history = History(tmp_path)
    history.add(nth(1, case("skipped", SKIP, seconds=9.0), case("a", WEDGED, seconds=9.0)))
    assert "not known" in str(estimate(cases, history.latest("ours", 5), 2))
    history.add(nth(2, case("a", seconds=0.4)))
    assert "about 1 s" in str(estimate(cases, history.latest("ours", 5), 2))
    history.add(nth(3, case("a", seconds=1234.0)))
    assert "about 21 min" in str(estimate(cases, history.latest("ours", 5), 2))


# -- compared ---------------------------------------------------------------------------------------------------------


def test_wrong_is_new_where_it_was_right_or_otherwise_before() -> None:
    before = nth(1, case("stays", FAIL), case("worse", FAIL), case("breaks"), case("heals", XPASS), case("goes"))
    after = nth(2, case("stays", FAIL), case("worse", WEDGED), case("breaks", FAIL), case("heals"), case("comes", FAIL))
    found = compare(after, (before.night, results_of(before)))
    assert found.new == ("edu/t.py:A.worse", "edu/t.py:A.breaks", "edu/t.py:A.comes")
    assert found.as_before == ("edu/t.py:A.stays",)
    assert found.mended == ("edu/t.py:A.heals",)
    assert found.added == ("edu/t.py:A.comes",)
    assert found.gone == ("edu/t.py:A.goes",)
    assert found.against == "n-1"
    was = {"worse": FAIL, "breaks": PASS, "heals": XPASS}
    assert found.was == {f"edu/t.py:A.{name}": verdict for name, verdict in was.items()}
    told = {name: found.before(f"edu/t.py:A.{name}") for name in (*was, "comes", "stays", "goes")}
    assert told == {**was, "comes": "no result", "stays": "", "goes": ""}


def test_every_case_of_both_nights_that_has_another_verdict_is_told_once() -> None:
    for was in Verdict:
        before = nth(1, case("a", was))
        for now in Verdict:
            found = compare(nth(2, case("a", now)), (before.night, results_of(before)))
            changed = [each.id for each in found.changed]
            assert [*found.new, *found.mended, *changed] == ["edu/t.py:A.a"] * (was is not now), (was, now)
            assert not (found.mended and now in (XFAIL, SKIP)), "what became known or was left out is not mended"
            assert all((each.before, each.after) == (was, now) for each in found.changed), (was, now)


ALIKE = {
    "a folder": ("no reply by /tmp/vfio-user-0pcy/dev0.sock", "no reply by /tmp/vfio-user-xz2a/dev0.sock"),
    "how long": ("did not answer in 5 s", "did not answer in 7.25 s"),
    "a process": ("qemu (process 1234) ended", "qemu (process 77) ended"),
    "an address": ("DMA of 4 bytes at 0x3fe5000 is refused", "DMA of 4 bytes at 0x2ab7000 is refused"),
    "a line": ("KeyError: 3 (summer.py:12, in write)", "KeyError: 3 (summer.py:17, in write)"),
    "a port": ("127.0.0.1:40123 refuses", "127.0.0.1:51001 refuses"),
    "a moment": ("ended at 2026-11-29 02:10:11.5", "ended at 2026-11-30 02:31:07.25"),
    "where it is cut": (f"{'long ' * 20}/a/b: and…", f"{'long ' * 20}/a/b/c/d…"),
}
OTHERWISE = {
    "another end": ("guest-dev0-crash was killed by SIGABRT", "assertion error: 5! is 24"),
    "another value": ("assertion error: 5! is 24", "assertion error: 5! is 6"),
    "another register": ("reads 0 at 0x10", "reads 0 at 0x14"),
    "another beginning of what is cut": (f"read {'long ' * 20}…", f"wrote {'long ' * 20}…"),
}


@for_each_row([*((*texts, True) for texts in ALIKE.values()), *((*texts, False) for texts in OTHERWISE.values())])
def test_wrong_is_as_before_where_its_cause_is_but_for_what_is_another_in_each_run(
    was: str, now: str, is_the_same: bool
) -> None:
    """A server that computed wrongly was "as in the last night", in which it had crashed; and the night was green."""
    before = nth(1, case("a", FAIL, cause=was))
    found = compare(nth(2, case("a", FAIL, cause=now)), (before.night, results_of(before)))
    case_id = "edu/t.py:A.a"
    assert (found.as_before, found.new) == (((case_id,), ()) if is_the_same else ((), (case_id,)))
    assert found.cause_was == ({} if is_the_same else {case_id: was})
    assert found.before(case_id) == ("" if is_the_same else FAIL)


def test_causes_are_remembered_and_those_that_an_earlier_version_did_not_keep_are_read_again(tmp_path: Path) -> None:
    """Where no folder has them any more, nobody can say that it is the same failure."""
    before, gone = nth(2, case("a", FAIL, cause="of old")), nth(1, case("a", FAIL, cause="of old"))
    history = History(tmp_path)
    for each in (gone, before):
        history.add(each)
    with contextlib.closing(sqlite3.connect(tmp_path / history_module.NAME)) as database, database:
        database.execute("ALTER TABLE results DROP COLUMN cause")
    (tmp_path / before.night).mkdir()
    before.write(tmp_path / before.night)
    seen = {night: past["edu/t.py:A.a"].cause for night, past in history.latest("ours", 9)}
    assert seen == {before.night: "of old", gone.night: ""}
    found = compare(before, (gone.night, dict(history.latest("ours", 9))[gone.night]))
    assert (found.new, found.was, found.cause_was) == (("edu/t.py:A.a",), {"edu/t.py:A.a": FAIL}, {})


def test_all_that_is_wrong_is_new_where_there_was_no_night() -> None:
    found = compare(nth(1, case("a", FAIL), case("b")), None)
    assert (found.new, found.added, found.against) == (("edu/t.py:A.a",), (), "")


def test_a_night_of_some_cells_is_compared_with_the_last_whole_one_and_none_with_it(tmp_path: Path) -> None:
    history = History(tmp_path)
    whole, some = nth(1, case("a"), case("b", FAIL)), nth(2, case("a", FAIL)).model_copy(update={"only": ("edu",)})
    for each in (whole, some):
        (tmp_path / each.night).mkdir()
        each.write(tmp_path / each.night)
        history.add(each)
    found = compare(some, history.last_finished("ours"))
    assert (found.against, found.new, found.gone) == (whole.night, ("edu/t.py:A.a",), ())
    assert [name for name, _ in History(tmp_path).latest("ours", 5)] == [whole.night]


def test_what_an_ended_night_did_not_come_to_is_not_gone() -> None:
    before = nth(1, case("a"), case("b", FAIL))
    after = night(case("a"), planned=2, status=Status.ENDED)
    found = compare(after, (before.night, results_of(before)))
    assert (found.gone, found.mended) == ((), ())


def test_a_night_that_was_killed_is_ended_by_the_next_with_what_it_came_to_and_a_page(tmp_path: Path) -> None:
    before, running = nth(1, case("a")), nth(2, case("a", FAIL), status=Status.RUNNING)
    undone = nth(3, status=Status.UNDONE, reason="no space")
    for each in (before, running, undone):
        (tmp_path / each.night).mkdir()
        each.write(tmp_path / each.night)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "summary.json").write_text('{"status": "running"')
    said: list[str] = []
    for _ in range(2):
        end_those_killed(tmp_path, said.append)
    assert said == [f"{running.night} was killed: {tmp_path / running.night / 'index.html'}"]
    ended = read_summary(tmp_path / running.night)
    assert (ended.status, ended.reason) == (Status.ENDED, BY_FORCE)
    assert ended.comparison is not None
    assert ended.comparison.against == before.night
    assert ended.comparison.was == {"edu/t.py:A.a": PASS}
    assert "Ended by force" in (tmp_path / running.night / "summary.md").read_text()
    assert [read_summary(tmp_path / each.night) for each in (before, undone)] == [before, undone]
    assert [name for name, _ in History(tmp_path).latest("ours", 5)] == [running.night, before.night]


@for_each_row(
    [
        *((10.0, 20.0, True), (20.0, 10.0, True), (10.0, 14.0, False), (0.5, 2.0, False), (100.0, 104.0, False)),
        *((1.0, 4.0, True), (6.0, 9.0, True), (10.0, 15.0, True)),  # just so many seconds, just so many times as long
    ]
)
def test_a_duration_has_moved_by_much_of_itself_and_by_seconds(before: float, after: float, moved: bool) -> None:
    old = nth(1, case("a", seconds=before))
    found = compare(nth(2, case("a", seconds=after)), (old.night, results_of(old)))
    assert found.moved == ((Moved(id="edu/t.py:A.a", before=before, after=after),) if moved else ())


@for_each_row([(PASS, FAIL), (FAIL, PASS), (SKIP, PASS)])
def test_what_did_not_pass_has_no_duration(was: Verdict, now: Verdict) -> None:
    old = nth(1, case("a", was, seconds=1.0))
    assert compare(nth(2, case("a", now, seconds=60.0)), (old.night, results_of(old))).moved == ()


def test_the_duration_that_has_moved_most_is_first_whichever_way() -> None:
    old = nth(1, case("a", seconds=1.0), case("b", seconds=60.0), case("c", seconds=1.0))
    new = nth(2, case("a", seconds=10.0), case("b", seconds=1.0), case("c", seconds=30.0))
    found = compare(new, (old.night, results_of(old)))
    assert [moved.id[-1] for moved in found.moved] == ["b", "c", "a"]


@for_each_row(
    [
        ((PASS, FAIL, PASS), True),
        ((FAIL, PASS, FAIL), True),
        ((PASS, PASS, FAIL), False),
        ((FAIL, PASS, PASS), False),
        ((PASS, SKIP, PASS), False),
        ((XFAIL, XPASS, XFAIL), True),
    ]
)
def test_a_flake_changes_back_and_forth(verdicts: tuple[Verdict, ...], flakes: bool) -> None:
    nights = [nth(number, case("a", verdict)) for number, verdict in enumerate(verdicts)]
    found = compared(nights[-1], *reversed(nights[:-1])).comparison
    assert found is not None
    assert found.flakes == ((Flake(id="edu/t.py:A.a", verdicts=verdicts),) if flakes else ())


def test_what_went_back_and_forth_long_ago_is_no_flake() -> None:
    verdicts = [PASS, FAIL, PASS, FAIL, *[PASS] * LOOKED_AT]
    nights = [nth(number, case("a", verdict)) for number, verdict in enumerate(verdicts)][::-1]
    assert compared(*nights).comparison.flakes == ()  # type: ignore[union-attr]
    assert len(compared(*nights[4:]).comparison.flakes) == 1  # type: ignore[union-attr]


# -- told -------------------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """The words of a page, and where its links lead."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.links: list[str] = []
        self.loads: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if value is not None and (tag, name) == ("a", "href"):
                self.links.append(value)
            elif name in ("src", "href"):
                self.loads.append(str(value))

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def everything(folder: Path) -> Summary:
    before = nth(1, case("old", FAIL), case("new"), case("fine"), case("slow"))
    wrong = case("new", FAIL, cause="<b>it</b> read 7 | 8", evidence="job/1 new")
    (folder / "job/1 new/data").mkdir(parents=True)
    (folder / "job/1 new/data/index.html").write_text("x")
    after = nth(
        2,
        wrong,
        case("old", FAIL),
        case("surprise", XPASS, known_issue="lost"),
        case("known", XFAIL),
        case("out", SKIP, reason="the server cannot"),
        case("slow", seconds=60.0),
        commit="0123456789ab",
        remarks=("the clock jumped",),
    )
    cells = (Cell(id="edu", parameters={"cpus": "1"}, versions={"qemu": "11.1.3", "kernel": "6.12"}, planned=6),)
    return compared(after.model_copy(update={"cells": cells}), before, nth(0, case("new", FAIL)))


def test_what_is_new_is_read_first_and_leads_to_its_evidence(tmp_path: Path) -> None:
    summary = everything(tmp_path)
    page = Page(write_morning(summary, tmp_path).read_text())
    order = ["New (1)", "Known issues that were not seen (1)", "As before (1)", "Known issues (1)", "Flakes (1)"]
    places = [page.text.index(title) for title in [*order, "Durations that moved (1)", "Cells (1)", "Skipped"]]
    assert places == sorted(places)
    assert "PASS → FAIL edu/t.py:A.new <b>it</b> read 7 | 8" in page.text
    assert "no result → XPASS edu/t.py:A.surprise" in page.text
    assert "→" not in page.text.partition("As before (1)")[2]
    assert "the clock jumped" in page.text
    assert "the server cannot" in page.text
    assert "job/1%20new/data/index.html" in page.links
    assert page.loads == []


def test_a_chat_is_told_the_same_and_nothing_of_it_is_markup(tmp_path: Path) -> None:
    write_morning(everything(tmp_path), tmp_path)
    text = (tmp_path / "summary.md").read_text()
    assert text.startswith("**")
    (row,) = [line for line in text.splitlines() if "A.new" in line and "read 7" in line]
    assert row.replace("\\|", "").count("|") == 4
    assert row.startswith("| PASS → FAIL |")
    assert "<b>" not in text.replace("\\<", "")


def test_page_chat_and_headline_tell_of_another_cause_which_it_was(tmp_path: Path) -> None:
    summary = compared(nth(2, case("a", FAIL, cause="5! is 24")), nth(1, case("a", FAIL, cause="ended by SIGABRT")))
    told = [Page(write_morning(summary, tmp_path).read_text()).text, (tmp_path / "summary.md").read_text()]
    for text in told:
        for said in ("New (1)", "1 of 1 case is newly wrong", "FAIL → FAIL", "5! is 24", "before: ended by SIGABRT"):
            assert said in text, said
        assert "As before" not in text


def test_names_in_junit_are_those_of_case_and_cell_and_reasons_are_there(tmp_path: Path) -> None:
    summary = everything(tmp_path)
    write_morning(summary, tmp_path)
    (suite,) = JUnitXml.fromfile(str(tmp_path / "junit.xml"))
    facts = {each.name: each.value for each in suite.properties()}  # type: ignore[no-untyped-call]
    assert facts == {"commit": "0123456789ab", "qemu": "11.1.3", "kernel": "6.12", "cpus": "1"}
    told = {test.name: [(type(each).__name__, each.message) for each in test.result] for test in suite}
    assert told == {
        "new": [("Failure", "<b>it</b> read 7 | 8")],
        "old": [("Failure", "it read 7")],
        "surprise": [("Failure", "it read 7")],
        "known": [("Skipped", "XFAIL: lost")],
        "out": [("Skipped", "the server cannot")],
        "slow": [],
    }
    assert {test.classname for test in suite} == {"edu/t.py:A"}
    assert (suite.tests, suite.failures, suite.skipped) == (6, 3, 2)


@for_each(list(Verdict))
def test_every_verdict_is_told_everywhere(verdict: Verdict, tmp_path: Path) -> None:
    summary = nth(1, case("a", verdict))
    page = write_morning(summary, tmp_path)
    assert f"1 {verdict}" in Page(page.read_text()).text
    assert len(junit_of(summary)) == 1


@for_each_row(
    [
        (Status.FINISHED, [case("a")], True),
        (Status.FINISHED, [case("a", FAIL)], False),
        (Status.ENDED, [case("a")], False),
        (Status.UNDONE, [], False),
    ]
)
def test_a_night_is_good_when_it_is_finished_and_nothing_new_is_wrong(
    status: Status, results: list[CaseResult], is_good: bool, tmp_path: Path
) -> None:
    summary = nth(1, *results, status=status, reason="between cases")
    assert Morning(summary, tmp_path).is_good is is_good


def test_an_ended_night_says_at_which_case_as_that_is_called(tmp_path: Path) -> None:
    for known in ([], [case("a", FAIL)]):
        summary = nth(1, *known, status=Status.ENDED, reason="in edu+cpus=2/my_tests.py:Mine.test")
        headline = Morning(summary, tmp_path).headline
        assert headline.startswith("Ended in edu+cpus=2/my_tests.py:Mine.test: ")
    assert Morning(nth(1, case("a"), status=Status.FINISHED), tmp_path).headline.startswith("N")


# -- told meanwhile ---------------------------------------------------------------------------------------------------
