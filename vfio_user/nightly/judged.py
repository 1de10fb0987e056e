"""What avocado tells of a night's tests, in its JUnit, JSON and HTML: what the night says of them.

A night knows more than a test does: whether the cell's server was started at all, and its known issues. A report that
said PASS of what the night calls ERROR would be believed by whoever is fed it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from vfio_user.avocado_job.job import avocado
from vfio_user.nightly.summary import CaseResult, Verdict

_STATUSES: Mapping[Verdict, Sequence[str]] = {
    Verdict.PASS: ("PASS", "WARN"),
    Verdict.SKIP: ("CANCEL", "SKIP"),
    Verdict.XFAIL: ("CANCEL",),
    Verdict.FAIL: ("FAIL",),
    Verdict.XPASS: ("FAIL",),
    Verdict.ERROR: ("ERROR",),
    Verdict.WEDGED: ("ERROR", "INTERRUPTED"),
}
"""Avocado's words for a verdict, the first of them where it has another one."""

_COUNTERS = {
    "PASS": "passed",
    "SKIP": "skipped",
    "FAIL": "failed",
    "WARN": "warned",
    "INTERRUPTED": "interrupted",
    "CANCEL": "cancelled",
}
"""Of avocado's result; every other status is counted in `errors`."""


def judged_job(settings: dict[str, Any], suites: Sequence[Any], judge: Callable[[Any], None]) -> Any:
    """A job of avocado's whose tests are judged before it writes its reports: `judge` is called with the job."""
    Job, _ = avocado()

    class Judged(Job):  # type: ignore[misc, valid-type]  # avocado has no types
        def render_results(self) -> None:
            judge(self)
            super().render_results()

    return Judged(settings, suites)


def judge(results: Any, test: dict[str, Any], result: CaseResult) -> None:
    """Give a test of avocado's results the status and reason that its case has, and count it as that."""
    if test["status"] in _STATUSES[result.verdict]:
        return
    for status, change in ((test["status"], -1), (now := _STATUSES[result.verdict][0], 1)):
        counter = _COUNTERS.get(status, "errors")
        setattr(results, counter, getattr(results, counter) + change)
    test |= {"status": now, "fail_reason": f"{result.verdict}: {result.why}", "fail_class": str(result.verdict)}
