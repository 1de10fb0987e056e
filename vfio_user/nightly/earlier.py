"""Earlier nights of a plan, as they are on disk: what they came to, and how long their cases took."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from userdev.errors import UserError
from vfio_user.nightly.summary import FILE, CaseResult, Status, Summary, Verdict, read_summary

REMEMBERED = 5
"""Nights that are looked at for durations."""

UNKNOWN_SECONDS = 15.0
"""What a case is taken to last of which nothing is known."""


def earlier_nights(base: Path, plan: str) -> Iterator[Summary]:
    """Summaries of nights of the plan of this name in a folder, the latest first; what is none is passed over."""
    for file in sorted(base.glob(f"*/{FILE}"), key=lambda path: path.parent.name, reverse=True):
        with suppress(UserError):
            summary = read_summary(file)
            if summary.plan.name == plan:
                yield summary


def last_finished(nights: Iterable[Summary]) -> Summary | None:
    """The latest night that was not ended before its time: what a new one is compared with."""
    return next((night for night in nights if night.status is Status.FINISHED), None)


def new_wrong(night: Summary, before: Summary | None) -> list[CaseResult]:
    """What is wrong, and was not so in the night before: all of it where there was none."""
    known = {result.id: result.verdict for result in before.wrong()} if before else {}
    return [result for result in night.wrong() if known.get(result.id) is not result.verdict]


@dataclass(frozen=True)
class Estimate:
    """How long cases will take: `seconds` of the machine, of which `known` cases of `cases` are as they took before."""

    seconds: float
    cases: int
    known: int

    def __str__(self) -> str:
        minutes = self.seconds / 60
        return f"{self.cases} cases, about {minutes:.0f} min ({self.known} of them by what they took before)"


def estimate(cases: Sequence[tuple[str, str]], nights: Iterable[Summary], parallel: int) -> Estimate:
    """How long `cases` (id, test) will take, so many at once; one that never ran, as its test does in other cells."""
    by_id: dict[str, float] = {}
    by_test: dict[str, list[float]] = defaultdict(list)
    for night, _ in zip(nights, range(REMEMBERED), strict=False):
        for result in night.results:
            if result.seconds and result.verdict not in (Verdict.SKIP, Verdict.WEDGED):
                by_id.setdefault(result.id, result.seconds)
                by_test[result.test].append(result.seconds)
    total = sum(_seconds(case, test, by_id, by_test) for case, test in cases)
    return Estimate(total / parallel, len(cases), sum(case in by_id for case, _ in cases))


def _seconds(case: str, test: str, by_id: Mapping[str, float], by_test: Mapping[str, list[float]]) -> float:
    if case in by_id:
        return by_id[case]
    return statistics.median(by_test[test]) if by_test.get(test) else UNKNOWN_SECONDS
