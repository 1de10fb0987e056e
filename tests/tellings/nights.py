"""A night and the ones before it, with every verdict and every kind of change, and all that is told of them."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from junitparser import JUnitXml

from tests.tellings import Told, lines, said
from userdev.counted import counted
from vfio_user.cli.nightly import _counts, _wrong
from vfio_user.nightly.comparison import compare
from vfio_user.nightly.history import History, estimate
from vfio_user.nightly.morning import Morning, junit_of, write_morning
from vfio_user.nightly.summary import (
    CaseResult,
    Cell,
    Machine,
    PlanIdentity,
    Slot,
    Status,
    Summary,
    Verdict,
    case_id,
)

PASS, FAIL, ERROR, XFAIL, XPASS, SKIP, WEDGED = (
    Verdict.PASS,
    Verdict.FAIL,
    Verdict.ERROR,
    Verdict.XFAIL,
    Verdict.XPASS,
    Verdict.SKIP,
    Verdict.WEDGED,
)
_NONE = None
NAMES = ("n-5", "n-9", "n-7", "n-8")
"""Of the nights, which are not in the order of their beginnings."""
# Of each case: its cell, what it came to in each of four nights, and how long it took in the last two.
CASES: dict[str, tuple[str, tuple[Verdict | None, ...], tuple[float, float]]] = {
    "steady": ("edu", (PASS, PASS, PASS, PASS), (2.0, 2.1)),
    "old": ("edu", (PASS, FAIL, FAIL, FAIL), (4.0, 4.0)),
    "worse": ("edu", (FAIL, FAIL, FAIL, WEDGED), (4.0, 90.0)),
    "otherwise": ("edu", (FAIL, FAIL, FAIL, FAIL), (4.0, 4.0)),
    "breaks": ("edu", (PASS, PASS, PASS, FAIL), (1.0, 1.0)),
    "ends": ("nvme", (PASS, PASS, PASS, ERROR), (1.0, 1.5)),
    "mended": ("nvme", (PASS, PASS, ERROR, PASS), (3.0, 3.0)),
    "slower": ("nvme", (PASS, PASS, PASS, PASS), (10.0, 20.0)),
    "faster": ("nvme", (PASS, PASS, PASS, PASS), (60.0, 12.5)),
    "as-long": ("nvme", (PASS, PASS, PASS, PASS), (10.0, 12.9)),
    "flaky": ("edu", (PASS, FAIL, PASS, FAIL), (1.0, 1.0)),
    "known": ("edu", (XFAIL, XFAIL, XFAIL, XFAIL), (5.0, 5.0)),
    "seen-again": ("edu", (PASS, PASS, PASS, XFAIL), (5.0, 5.0)),
    "healed": ("nvme", (XFAIL, XFAIL, XFAIL, XPASS), (5.0, 5.0)),
    "skipped": ("edu", (SKIP, SKIP, SKIP, SKIP), (0.0, 0.0)),
    "skipped-too": ("nvme", (SKIP, SKIP, SKIP, SKIP), (0.0, 0.0)),
    "now-skipped": ("nvme", (PASS, PASS, PASS, SKIP), (1.0, 0.0)),
    "gone": ("edu", (PASS, PASS, PASS, _NONE), (1.0, 0.0)),
    "gone-wrong": ("edu", (FAIL, FAIL, FAIL, _NONE), (1.0, 0.0)),
    "added": ("nvme", (_NONE, _NONE, _NONE, PASS), (0.0, 1.0)),
}
MACHINE = Machine(name="m", kernel="6.18", processors=2, memory=8000, python="3.11.7", accelerator="tcg")
WHY: dict[Verdict, dict[str, Any]] = {
    PASS: {},
    SKIP: {"reason": "the server cannot", "attempts": 0},
    XFAIL: {"known_issue": "unplug-abort", "reason": "QEMU was killed by SIGABRT"},
    XPASS: {"known_issue": "unplug-abort", "cause": "it is right now"},
    FAIL: {"cause": "it read 7 | 8, not <9>"},
    ERROR: {"cause": "no guest came up"},
    WEDGED: {"cause": "it took longer than 90 s", "attempts": 2},
}

OF_ITS_OWN = {("otherwise", 3): {"cause": "it was killed by SIGABRT"}}
"""What a case says in a night, where that is not what all of its verdict say."""


def night(number: int, *, status: Status = Status.FINISHED, most: int = len(CASES)) -> Summary:
    """The night of that number; of one that was ended only the first cases have results."""
    results: list[CaseResult] = []
    for name, (cell, verdicts, seconds) in CASES.items():
        if (verdict := verdicts[number]) is not None:
            test = f"avocado_tests/test_{cell}.py:Tests.test_{name}"
            kept = {"evidence": f"job/{len(results)}"} if verdict.is_wrong else {}
            bundle = {"bundle": f"job/{len(results)}/bundle"} if verdict is FAIL else {}
            took = seconds[max(0, number - 2)]
            fields = {"id": case_id(cell, test), "cell": cell, "test": test, "verdict": verdict, "seconds": took}
            why = {**WHY[verdict], **OF_ITS_OWN.get((name, number), {})}
            results.append(CaseResult.model_validate({**fields, "slot": "here", **kept, **bundle, **why}))
    planned = {cell: sum(result.cell == cell for result in results) for cell in ("edu", "nvme")}
    cells = [
        Cell(id=cell, parameters={"device": cell, "cpus": "2"}, versions={"qemu": "11.1.3"}, planned=count)
        for cell, count in planned.items()
    ]
    return Summary(
        night=NAMES[number],
        plan=PlanIdentity(name="ours", file="nightly.yaml", digest="0" * 64),
        commit="0123456789ab-dirty",
        began=datetime(2026, 11, 1 + number, 2, 30, tzinfo=UTC),
        ended=datetime(2026, 11, 1 + number, 3, 0, tzinfo=UTC),
        seconds=1800.4,
        status=status,
        reason={Status.ENDED: "by SIGINT", Status.UNDONE: "no space"}.get(status, ""),
        remarks=("the clock jumped by 60 s",),
        slots=(Slot(name="here", machine=MACHINE, parallel=2),),
        cells=(*cells, Cell(id="far", parameters={"device": "blk"}, planned=0, reason="the server is not there")),
        results=tuple(results[:most]),
    )


def compared(summary: Summary, base: Path) -> Summary:
    """It, beside those of that folder."""
    history = History(base)
    before = history.last_finished("ours", but=summary.night)
    nights = history.latest("ours", 10, but=summary.night)
    return summary.model_copy(update={"comparison": compare(summary, before, nights)})


def told(folder: Path) -> Told:
    """Compared by the command, and as people read the last one in the morning: finished, ended and compared to none."""
    for number in range(4):
        (folder / NAMES[number]).mkdir()
        night(number).write(folder / NAMES[number])
    found = {line: said(folder, line) for line in LINES}
    for name, summary in (
        ("finished", compared(night(3), folder)),
        ("ended", compared(night(3, status=Status.ENDED, most=7), folder)),
        ("undone", night(2, status=Status.UNDONE, most=3)),
        ("the first", compared(night(0), folder / "none")),
    ):
        found[name] = _read_in_the_morning(summary, folder / summary.night)
    cases = [(case.id, case.test) for case in night(3).results]
    nights = History(folder).latest("ours", 2)
    expected = estimate([*cases, ("edu/new", "new")], nights, 2)
    found["history"] = {
        "nights": [name for name, _ in nights],
        "of the last": {case: [past.verdict, past.seconds] for case, past in nights[0][1].items()},
        "expected": [expected.seconds, expected.cases, expected.known, str(expected)],
    }
    return found


LINES = (
    "vfio-user nightly compare n-7 n-8 --json",
    "vfio-user nightly compare n-7 n-8/summary.json",
    "vfio-user nightly compare n-8 n-5 --json",
    "vfio-user nightly compare n-9 n-9",
)


def _read_in_the_morning(summary: Summary, folder: Path) -> Told:
    morning = Morning(summary, folder)
    page = _Page(write_morning(summary, folder).read_text())
    (folder / "junit.xml").unlink()
    return {
        "headline": morning.headline,
        "is good": morning.is_good,
        "sections": {part.title: [part.is_loud, *(each.line for each in part.results)] for part in morning.sections()},
        "skipped": [[each.reason, each.number, *each.cells] for each in morning.skippings()],
        "cells": {row.cell.id: [row.missing, *row.counts.values()] for row in morning.cells()},
        "comparison": summary.comparison and summary.comparison.model_dump(mode="json"),
        "command line": [*(_wrong(summary, summary.comparison) if summary.comparison else ()), _counts(summary)],
        "page": page.numbers(),
        "links": page.links,
        "chat": [
            _rows(line, folder) for line in lines((folder / "summary.md").read_text()) if re.match(r"[|#*>]|.*\d", line)
        ],
        "JUnit": _junit(junit_of(summary)),
        "results": counted(len(summary.results), "result"),
    }


def _rows(line: str, folder: Path) -> str:
    return line.replace(str(folder), "FOLDER")


def _junit(report: JUnitXml) -> dict[str, object]:
    return {
        suite.name: {
            "began": suite.timestamp,
            "facts": {each.name: each.value for each in suite.properties()},  # type: ignore[no-untyped-call]
            "cases": [
                [case.classname, case.name, case.time, *((type(each).__name__, each.message) for each in case.result)]
                for case in suite
            ],
        }
        for suite in report
    }


class _Page(HTMLParser):
    """The cells of a page's tables, and where its links lead."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self._rows: list[list[str]] = []
        self._in_row = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "tr":
            self._rows.append([])
            self._in_row = True
        self.links += [str(value) for name, value in attrs if (tag, name) == ("a", "href")]

    def handle_endtag(self, tag: str) -> None:
        self._in_row = self._in_row and tag != "tr"

    def handle_data(self, data: str) -> None:
        if self._in_row and (word := " ".join(data.split())):
            self._rows[-1].append(word)

    def numbers(self) -> list[str]:
        """Each row of the tables, its cells in their order."""
        return [" | ".join(row) for row in self._rows]
