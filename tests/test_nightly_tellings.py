"""A night is told in several ways, and each has the same of it: page, chat, JUnit, command line, whether it is good."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from click.testing import CliRunner
from junitparser import Error, Failure, Skipped

from tests.test_nightly_history import FAIL, PASS, SKIP, WEDGED, XFAIL, XPASS, Page, case, compared, nth
from tests.test_nightly_summary import night
from vfio_user.cli.nightly import _counts, _wrong, command
from vfio_user.nightly.comparison import LOOKED_AT
from vfio_user.nightly.morning import Morning, junit_of, write_morning
from vfio_user.nightly.summary import Cell, Status, Summary, Verdict

CAUSED = (FAIL, XPASS, Verdict.ERROR, WEDGED)


def test_every_verdict_has_its_reason_in_each_telling(tmp_path: Path) -> None:
    for verdict in Verdict:
        field = {SKIP: "reason", XFAIL: "known_issue"}.get(verdict, "cause")
        told: dict[str, Any] = {field: "because"} if verdict is not PASS else {}
        summary = nth(1, case("a", verdict, **told))
        [suite] = junit_of(summary)
        results = [(type(each), each.message) for each in next(iter(suite)).result]
        kind = {SKIP: Skipped, XFAIL: Skipped, FAIL: Failure, XPASS: Failure, PASS: None}.get(verdict, Error)
        assert [each for each, _ in results] == ([kind] if kind else []), verdict
        assert all(message.endswith("because") for _, message in results), verdict
        page = Page(write_morning(summary, tmp_path).read_text()).text
        chat = (tmp_path / "summary.md").read_text()
        assert ("because" in page) is (verdict is not PASS), verdict
        assert ("because" in chat) is (verdict not in (PASS, SKIP)), verdict
        for before, known in ((), ""), ((nth(0, case("a", verdict, **told)),), " (as in the last night)"):
            said = list(_wrong(summary, compared(summary, *before).compared()))
            assert said == ([f"{verdict} edu/t.py:A.a: because{known}"] if verdict in CAUSED else []), verdict


def test_a_known_issue_is_told_in_its_words_in_each_telling(tmp_path: Path) -> None:
    summary = nth(1, case("a", XFAIL, known_issue="late", reason="late: a reply comes late"))
    [suite] = junit_of(summary)
    page = Page(write_morning(summary, tmp_path).read_text()).text
    for told in (page, (tmp_path / "summary.md").read_text(), next(iter(suite)).result[0].message):
        assert "late: a reply comes late" in told


def test_a_verdict_that_is_another_is_told_in_the_morning_as_compare_tells_it(tmp_path: Path) -> None:
    """What is neither wrong now nor mended: a failure that is a known issue now, what is skipped."""
    before = nth(1, case("a", FAIL, cause="it broke"), case("b", PASS), case("c", PASS))
    after = nth(
        2,
        case("a", XFAIL, known_issue="late", reason="late: it is | late"),
        case("b", SKIP, reason="no"),
        case("c", PASS),
    )
    summary = compared(after, before)
    page = Page(write_morning(summary, tmp_path).read_text()).text
    chat = (tmp_path / "summary.md").read_text()
    assert "Other verdicts (2)" in page
    assert re.search(r"FAIL\s+XFAIL\s+edu/t.py:A.a\s+late: it is \| late", page)
    assert "| FAIL | XFAIL | edu/t.py:A.a | late: it is \\| late |" in chat
    assert "| PASS | SKIP | edu/t.py:A.b | no |" in chat
    write_morning(before, tmp_path)
    assert "Other verdicts" not in (tmp_path / "index.html").read_text() + (tmp_path / "summary.md").read_text()


def test_compare_says_what_was_wrong_and_was_not_come_to_and_that_plans_are_not_the_same(tmp_path: Path) -> None:
    before = nth(1, case("a", FAIL, cause="it broke"), case("b", FAIL, cause="that too"), case("c", PASS))
    ended = nth(2, case("a", PASS)).model_copy(update={"cells": before.cells, "status": Status.ENDED})
    other = ended.model_copy(update={"plan": before.plan.model_copy(update={"name": "mine"})})
    for after, plans in ((ended, 0), (other, 1)):
        for number, summary in enumerate((before, after)):
            (tmp_path / str(number)).mkdir(exist_ok=True)
            summary.write(tmp_path / str(number))
        said = CliRunner().invoke(command, ["compare", str(tmp_path / "0"), str(tmp_path / "1")]).output.splitlines()
        assert [line for line in said if "not run" in line] == ["not run: edu/t.py:A.b: FAIL before: that too"], plans
        assert sum("is of the plan" in line and "'mine'" in line for line in said) == plans, said


def test_how_long_a_night_took_is_told_in_seconds_or_minutes(tmp_path: Path) -> None:
    for seconds, words in ((0.4, "1 s"), (16.2, "17 s"), (5000.0, "83 min")):
        summary = nth(1, case("a", PASS)).model_copy(update={"seconds": seconds})
        page = Page(write_morning(summary, tmp_path).read_text()).text
        assert words in page, seconds
        assert words in (tmp_path / "summary.md").read_text(), seconds


def test_a_repro_command_works_where_the_night_was_begun(tmp_path: Path) -> None:
    summary = nth(1, case("a", FAIL).model_copy(update={"bundle": "job/1/bundle"}))
    write_morning(summary, tmp_path)
    assert f"`vfio-user repro {tmp_path}/job/1/bundle`" in (tmp_path / "summary.md").read_text()


def test_what_was_wrong_before_is_told_so_and_keeps_no_night_from_being_good(tmp_path: Path) -> None:
    before = nth(1, case("old", FAIL), case("worse", FAIL), case("breaks"))
    for wrong, new in (((), 0), (("worse",), 1), (("worse", "breaks"), 2)):
        results = (
            case("old", FAIL),
            case("worse", WEDGED if "worse" in wrong else FAIL),
            case("breaks", FAIL if "breaks" in wrong else PASS),
        )
        summary = compared(nth(2, *results), before)
        assert summary.comparison is not None
        morning = Morning(summary, tmp_path)
        assert morning.is_good is (new == 0), wrong
        known = 2 - (new > 0)
        what = f"{new} of 3 cases {'is' if new == 1 else 'are'} newly wrong" if new else "Nothing new is wrong"
        assert morning.headline == f"{what}, {known} {'is' if known == 1 else 'are'} wrong as before", wrong
        lines = list(_wrong(summary, summary.comparison))
        assert sum(line.endswith("(as in the last night)") for line in lines) == known, wrong
        assert len(lines) == new + known, wrong
        was = {"worse": " (FAIL in the last night: it read 7)", "breaks": " (PASS in the last night)"}
        assert all(any(f"A.{name}" in line and line.endswith(was[name]) for line in lines) for name in wrong), wrong


def test_a_cell_has_each_of_its_cases_once_those_that_were_not_run_too(tmp_path: Path) -> None:
    planned = {"edu": len(Verdict) + 2, "b": 2}
    cells = tuple(Cell(id=name, parameters={"device": name}, planned=number) for name, number in planned.items())
    results = [case(verdict.lower(), verdict) for verdict in Verdict]
    summary = night(*results, status=Status.ENDED, reason="it was ended", cells=cells)
    rows = Morning(summary, tmp_path).cells()
    assert [row.cell.id for row in rows] == ["edu", "b"]
    for row in rows:
        assert sum(row.counts.values()) + row.missing == row.cell.planned, row.cell.id
    assert [row.missing for row in rows] == [2, 2]
    page = write_morning(summary, tmp_path).read_text()
    table = page[page.index("Cells (2)") :]
    numbers = [re.findall(r'<td class="number[^>]*>(\d+)</td>', line) for line in table.split("<tr>")[2:4]]
    assert numbers == [["1"] * len(Verdict) + ["2"], ["0"] * len(Verdict) + ["2"]]


def test_counts_leave_out_what_there_was_none_of() -> None:
    summary = nth(1, case("a"), case("b"), case("c", FAIL), case("d", SKIP))
    assert _counts(summary) == "2 PASS, 1 FAIL, 1 SKIP"


def test_a_flake_goes_back_and_forth_within_the_nights_that_are_looked_at_and_no_longer() -> None:
    def flakes(verdicts: list[Verdict]) -> int:
        nights: list[Summary] = [nth(number, case("a", verdict)) for number, verdict in enumerate(verdicts)]
        comparison = compared(nights[-1], *reversed(nights[:-1])).comparison
        assert comparison is not None
        return len(comparison.flakes)

    within = [PASS, FAIL, *[PASS] * (LOOKED_AT - 2)]
    assert len(within) == LOOKED_AT
    assert flakes(within) == 1
    assert flakes([*within, PASS]) == 0
