"""What a case came to, from what avocado says of its test."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vfio_user.avocado_job.job import GONE_ON_WITHOUT
from vfio_user.avocado_job.whiteboard import ours_of, record_of, tried_by
from vfio_user.harness.evidence import cause_of
from vfio_user.harness.known_issues import XFAIL, XPASS
from vfio_user.nightly.cases import ONCE, Case
from vfio_user.nightly.cells import NightCell
from vfio_user.nightly.place import Ran
from vfio_user.nightly.servers import ServerIssue
from vfio_user.nightly.summary import CUT, CaseResult, Verdict

_NAMED = re.compile(rf"(?:{XFAIL}|{XPASS}): ([\w.-]+)")
"""The id of a known issue in what a test says of it."""

NOBODY_RAN_IT = "nobody ran it"
LONGEST = 300
"""Characters of a cause or a reason in a summary; longer ones are cut."""


def result_of(case: Case, test: Mapping[str, Any], *, ran: Ran, folder: Path) -> CaseResult:
    """The result of a case whose test avocado has reported; evidence is named from the night's `folder`."""
    verdict, why, issue = _judged(test)
    where = Path(str(test["logdir"]))
    cause = (cause_of(where / "data") or why) if verdict.is_wrong else ""
    if verdict is Verdict.PASS and not _is_of_its_cell(case, test):
        verdict, cause, known = Verdict.ERROR, _untried(case.cell), ""
    else:
        verdict, cause, issue, known = _of_its_own(case, verdict, cause, issue)
    return CaseResult(
        id=case.id,
        cell=case.cell.id,
        test=case.test,
        verdict=verdict,
        seconds=round(float(test.get("time_elapsed") or 0.0), 3),
        cause=_line(cause) if verdict.is_wrong else "",
        reason=_line(known or why.removeprefix(f"{XFAIL}: ")) if verdict in (Verdict.SKIP, Verdict.XFAIL) else "",
        known_issue=issue,
        slot=ran.slot,
        evidence=str(where.relative_to(folder)) if where.is_relative_to(folder) and where.is_dir() else "",
        attempts=0 if why == NOBODY_RAN_IT else ran.attempts,
    )


def skipped(case: Case) -> CaseResult:
    """That of a case which is not for its cell."""
    return CaseResult(
        id=case.id, cell=case.cell.id, test=case.test, verdict=Verdict.SKIP, reason=case.skipped, attempts=0
    )


def wedged(case: Case, cause: str = NOBODY_RAN_IT) -> CaseResult:
    """That of a case which could not be run, or of which nobody has heard."""
    return CaseResult(id=case.id, cell=case.cell.id, test=case.test, verdict=Verdict.WEDGED, cause=cause, attempts=0)


def named(test: Mapping[str, Any]) -> tuple[str, str]:
    """The cell's id and FILE:CLASS.METHOD of a test of avocado's result, whose name is a `TestID` of avocado's."""
    return str(test["name"].variant or ""), str(test["name"].name)


def qemu_of(test: Mapping[str, Any]) -> str:
    """The version of the QEMU that a test says it has used; "" where it says nothing."""
    return str(record_of(test).get("qemu", ""))


def _judged(test: Mapping[str, Any]) -> tuple[Verdict, str, str]:
    """The verdict, why, and the known issue's id."""
    why = str(test.get("fail_reason") or "").removeprefix("Test interrupted: ")
    named = _NAMED.match(why)
    issue = named[1] if named else ""
    match test["status"]:
        case "PASS" | "WARN":
            return Verdict.PASS, "", ""
        case "CANCEL" if issue:
            seen: Sequence[str] = record_of(test).get("known_issues") or [issue]
            return Verdict.XFAIL, why, seen[0]
        case "CANCEL":
            return Verdict.SKIP, why or "it does not say why", ""
        case "SKIP" if why:
            return Verdict.SKIP, why, ""
        case "SKIP":  # of a test of which nothing was heard
            return Verdict.WEDGED, NOBODY_RAN_IT, ""
        case "FAIL" if issue:
            return Verdict.XPASS, why, issue
        case "FAIL":
            return Verdict.FAIL, why or "it does not say why", ""
        case "INTERRUPTED" if any(said in why for said in GONE_ON_WITHOUT):
            return Verdict.WEDGED, why, ""
        case "INTERRUPTED":
            return Verdict.FAIL, why or "it was interrupted", ""
        case status:
            return Verdict.ERROR, why or f"avocado says {status}", ""


def _is_of_its_cell(case: Case, test: Mapping[str, Any]) -> bool:
    """Whether a test has started its cell's server, or need not have: a device of ours may be one made for the test."""
    made_for_it = case.cell.server.is_ours and case.is_of_its_kind and ours_of(test)
    return bool(tried_by(test) or made_for_it or not case.depends_on_cell)


def _untried(cell: NightCell) -> str:
    """Why a test that passed says nothing of its cell's server."""
    boots = "does not boot self.cell.device"
    if cell.server.is_ours:
        boots = f"starts no {cell.server.command.partition(' ')[0]} (docs/nightly.md has the tags kind and {ONCE})"
    elif cell.stands_for:
        boots = f"boots neither self.cell.device nor {cell.stands_for} without options"
    elif cell.server.protocol == "vfio-user":
        boots += f", and the kind {cell.server.kind!r} is no device of ours"
    return f"the cell's server was never started, so that nothing is known of it: the test {boots}"


def _of_its_own(case: Case, verdict: Verdict, cause: str, issue: str) -> tuple[Verdict, str, str, str]:
    """The same with what is known of the case's server: its own issues, where the harness's say nothing.

    The last is what is known, where that was seen.
    """
    known = _issue_of(case)
    if known is None or verdict not in (Verdict.PASS, Verdict.FAIL, Verdict.ERROR):
        return verdict, cause, issue, ""
    if verdict is Verdict.PASS:
        return Verdict.XPASS, f"{known.id} was not seen: {known.what}", known.id, ""
    if re.search(known.symptom, cause):
        return Verdict.XFAIL, "", known.id, f"{known.id}: {known.what}"
    first, *more = cause.split("\n")
    return verdict, "\n".join([f"{first} (not {known.id}, whose symptom is {known.symptom!r})", *more]), issue, ""


def _issue_of(case: Case) -> ServerIssue | None:
    return next((issue for issue in case.cell.server.known_issues if issue.is_of(case.test)), None)


def _line(text: str) -> str:
    """The first line, as much of it as can be read at a glance: the evidence has it whole."""
    line = text.strip().partition("\n")[0]
    return line if len(line) <= LONGEST else f"{line[: LONGEST - 1]}{CUT}"
