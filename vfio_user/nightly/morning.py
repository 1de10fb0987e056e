"""What people read in the morning: one page that opens without a network, Markdown for a chat, and JUnit.

All three are made of the summary in the night's folder, which has the same for programs.
"""

from __future__ import annotations

import functools
import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2
from junitparser import Error, Failure, JUnitXml, Skipped, TestCase, TestSuite
from junitparser.junitparser import FinalResult

from userdev.counted import counted
from userdev.errors import about
from vfio_user.harness import INDEX
from vfio_user.harness.artifacts import write_text
from vfio_user.nightly.history import in_words
from vfio_user.nightly.summary import CaseResult, Cell, Status, Summary, Verdict

PAGE, MARKDOWN, JUNIT = "index.html", "summary.md", "junit.xml"

MOST_IN_MARKDOWN = 20
"""Rows of each kind that a chat is told; the page has all."""


@dataclass(frozen=True)
class Section:
    """Results that are read together; `why` it is worth a look, and whether it is the first thing to be seen."""

    title: str
    why: str
    results: Sequence[CaseResult]
    is_loud: bool = False


@dataclass(frozen=True)
class Skipping:
    """Cases that were skipped for one reason."""

    reason: str
    number: int
    cells: Sequence[str]


@dataclass(frozen=True)
class CellRow:
    """A cell, and how many of its cases came to what."""

    cell: Cell
    counts: Mapping[Verdict, int]
    missing: int
    """Cases without a result, of a night that was ended."""


class Morning:
    """A night as it is read: its parts in the order in which somebody has to look at them."""

    def __init__(self, summary: Summary, folder: Path) -> None:
        """Sort the results of a night that is in `folder`."""
        self.summary = summary
        self.comparison = summary.compared()
        self._folder = folder
        self.by_id = {result.id: result for result in summary.results}

    @property
    def is_good(self) -> bool:
        """Whether nothing is wrong that was not so before, and the night was finished."""
        return self.summary.status is Status.FINISHED and not self.comparison.new

    @property
    def headline(self) -> str:
        """One sentence for all of it."""
        summary, new, old = self.summary, len(self.comparison.new), len(self.comparison.as_before)
        if summary.status in (Status.UNDONE, Status.RUNNING):
            return f"The night {'could not be done' if summary.status is Status.UNDONE else 'runs'}: {summary.reason}"
        ended = f"Ended {summary.reason}: " if summary.status is Status.ENDED else ""
        known = f", {old} {_are(old)} wrong as before" if old else ""
        what = f"{new} of {counted(summary.planned, 'case')} {_are(new)} newly wrong" if new else "nothing new is wrong"
        said = f"{ended}{what}{known}"
        return said[0].upper() + said[1:]  # a case's name stays as it is

    def sections(self) -> list[Section]:
        """Results that somebody has to look at, or knows of."""
        all_results = self.summary.results
        unexpected = [result for result in all_results if result.verdict is Verdict.XPASS]
        against = f"in {self.comparison.against}" if self.comparison.against else "before: there is no night before"
        found = [
            Section("New", f"wrong, and not so {against}", self._wrong(self.comparison.new), is_loud=True),
            Section("Known issues that were not seen", "what is known is out of date", unexpected, is_loud=True),
            Section("As before", f"wrong in the same way {against}", self._wrong(self.comparison.as_before)),
            Section("Mended", f"wrong {against}, and right now", self._results(self.comparison.mended)),
            Section("Known issues", "seen, as they had to be", [r for r in all_results if r.verdict is Verdict.XFAIL]),
        ]
        return [section for section in found if section.results]

    def skippings(self) -> list[Skipping]:
        """What was skipped, by its reason, the most first."""
        skipped = [result for result in self.summary.results if result.verdict is Verdict.SKIP]
        return [
            Skipping(reason, number, sorted({result.cell for result in skipped if result.reason == reason}))
            for reason, number in Counter(result.reason for result in skipped).most_common()
        ]

    def cells(self) -> list[CellRow]:
        """The cells of the matrix, in the plan's order."""
        counted = Counter((result.cell, result.verdict) for result in self.summary.results)
        rows = []
        for cell in self.summary.cells:
            counts = {verdict: counted[cell.id, verdict] for verdict in Verdict}
            rows.append(CellRow(cell, counts, cell.planned - sum(counts.values())))
        return rows

    def verdict(self, result: CaseResult) -> str:
        """That of a case, behind the one before where the night is to be read for that: PASS → FAIL."""
        before = self.comparison.before(result.id)
        return f"{before} → {result.verdict}" if before else result.verdict

    def why(self, result: CaseResult) -> str:
        """What a reader has to know of it: also of what cause it was wrong before, where that was another."""
        cause = self.comparison.cause_was.get(result.id)
        return f"{result.why} ({self.comparison.before(result.id)} before: {cause})" if cause else result.why

    def link(self, result: CaseResult) -> str:
        """Where the evidence of a case is, from the night's folder; "": nothing was kept."""
        if not result.evidence:
            return ""
        page = f"{result.evidence}/data/{INDEX}"
        return page if (self._folder / page).exists() else f"{result.evidence}/"

    def bundle_link(self, result: CaseResult) -> str:
        """Where the bundle of a case is, from the night's folder; "": there is none."""
        if not result.bundle:
            return ""
        page = f"{result.bundle}/{INDEX}"
        return page if (self._folder / page).exists() else f"{result.bundle}/"

    def repro(self, result: CaseResult) -> str:
        """The command that does a case's bundle again, from the folder in which the night was begun."""
        return shlex.join(["vfio-user", "repro", str(self._folder / result.bundle)])

    def _wrong(self, ids: Iterable[str]) -> list[CaseResult]:
        """Without those that have a section of their own."""
        return [result for result in self._results(ids) if result.verdict is not Verdict.XPASS]

    def _results(self, ids: Iterable[str]) -> list[CaseResult]:
        return [self.by_id[case] for case in ids]


def write_morning(summary: Summary, folder: Path) -> Path:
    """Write page, Markdown and JUnit of a night into its folder; the page.

    Raises:
        UserError: one of them cannot be written.
    """
    morning = Morning(summary, folder)
    for template, name in (("page.html", PAGE), ("page.md", MARKDOWN)):
        text = (
            _templates()
            .get_template(template)
            .render(
                morning=morning, summary=summary, comparison=morning.comparison, Verdict=Verdict, most=MOST_IN_MARKDOWN
            )
        )
        write_text(folder / name, text)
    with about(folder / JUNIT):
        junit_of(summary).write(str(folder / JUNIT), pretty=True)
    return folder / PAGE


@functools.cache
def _templates() -> jinja2.Environment:
    """Those of a night, which are compiled once in a process."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("vfio_user.nightly", "."),
        autoescape=jinja2.select_autoescape(["html"]),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"cell": _in_a_table, "duration": in_words}
    return environment


def junit_of(summary: Summary) -> JUnitXml:
    """A night as JUnit: a suite for each cell; names are the same on every machine, and in every night."""
    report = JUnitXml(summary.plan.name)
    for cell in summary.cells:
        suite = TestSuite(cell.id)
        suite.timestamp = summary.began.isoformat()
        for name, value in {"commit": summary.commit, **cell.versions, **cell.parameters}.items():
            if value:
                suite.add_property(name, value)
        for result in summary.results:
            if result.cell == cell.id:
                suite.add_testcase(_testcase(result))
        report.add_testsuite(suite)
    return report


def _testcase(result: CaseResult) -> TestCase:
    where, _, name = result.test.rpartition(".")
    case = TestCase(name or result.test, f"{result.cell}/{where}" if where else result.cell, result.seconds)
    case.result = _TOLD[result.verdict](result)
    return case


_TOLD: Mapping[Verdict, Callable[[CaseResult], list[FinalResult]]] = {
    Verdict.PASS: lambda result: [],
    Verdict.SKIP: lambda result: [Skipped(result.reason)],
    Verdict.XFAIL: lambda result: [Skipped(f"{Verdict.XFAIL}: {result.why}")],
    Verdict.FAIL: lambda result: [Failure(result.cause, result.verdict)],
    Verdict.XPASS: lambda result: [Failure(result.cause, result.verdict)],
    Verdict.ERROR: lambda result: [Error(result.cause, result.verdict)],
    Verdict.WEDGED: lambda result: [Error(result.cause, result.verdict)],
}
"""What JUnit has for a verdict."""


def _are(number: int) -> str:
    return "is" if number == 1 else "are"


def _in_a_table(text: str) -> str:
    """Text in a cell of a table in Markdown, where nothing of it may be markup."""
    plain = " ".join(text.split())
    return "".join(f"\\{letter}" if letter in "\\`*_[]<>|#" else letter for letter in plain)
