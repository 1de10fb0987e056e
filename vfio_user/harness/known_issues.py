"""What is known to go wrong outside of this project, in QEMU above all, and how a run recognises it.

known_issues.yaml has the entries; the models below are its schema. A guest-driven test that names an entry
(`GuestTest.known_issue`) is expected to fail with the entry's symptom where the QEMU at hand has it: XFAIL. When that
stops, the test fails, as XPASS, for then the entry is out of date. A test that names none can only pass or fail.

What ends a program of somebody else's is kept apart: such an entry says what ended, and in which versions, and not what
did it. Nothing here does it again; `guard` is what keeps it from happening, and the entry's tests are the guard's.
"""

from __future__ import annotations

import functools
import re
import signal
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from importlib import resources
from typing import Annotated, Literal

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.version import Version
from pydantic import AfterValidator, field_validator, model_validator

from userdev.errors import UserError, VerdictError, meant
from userdev.process import Child
from userdev.written import Written, parse_list

XFAIL, XPASS = "XFAIL", "XPASS"
"""Verdicts of a test that names an issue: it was seen; it was to be seen, and was not."""


class IssueStatus(StrEnum):
    """The status of a report or a prediction."""

    CONFIRMED = "confirmed"
    """It was made to happen; the test shows it."""
    NOT_SEEN = "not-seen"
    """It was tried, and does not happen; the test would tell."""
    RIGHT = "right"
    """It happens, and may: whoever writes a server has to know it."""
    AVOIDED = "avoided"
    """It ends somebody's program, and was seen once; the tests are of the guard that keeps it from happening again."""
    UNTRIED = "untried"
    """It could not be tried here; `evidence` says why."""


class Here(StrEnum):
    """The meaning of an entry for one version."""

    HAPPENS = "happens"
    EXPECTED = "expected"
    """Affected, as far as is known; it was tried on other versions."""
    ABSENT = "absent"
    UNKNOWN = "unknown"
    OTHER = "other version"


def _pattern(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise ValueError(f"{text!r} is no pattern: {error}") from None
    if all(re.search(text, whatever) for whatever in _WHATEVER):
        raise ValueError(f"{text!r} is found in whatever is said, so that each failure would be this one")
    return text


_WHATEVER = [letter * 40 for letter in "aeinost"]
"""What has nothing in common but that something is said."""

Pattern = Annotated[str, AfterValidator(_pattern)]
"""A regular expression, found anywhere, but not everywhere."""


class Symptom(Written):
    """The signs of the issue; all that is given has to be there."""

    ends: str = ""
    """The signal that ends QEMU."""
    says: Pattern = ""
    """In what QEMU prints."""
    finds: Pattern = ""
    """In the failure that the test raises."""

    @field_validator("ends")
    @classmethod
    def _is_signal(cls, name: str) -> str:
        if name and name not in signal.Signals.__members__:
            raise ValueError(f"{name!r} is no signal")
        return name

    @model_validator(mode="after")
    def _is_something(self) -> Symptom:
        if not (self.ends or self.says or self.finds):
            raise ValueError("a symptom has at least one of ends, says and finds")
        return self


@dataclass(frozen=True)
class ObservedFailure:
    """A failure of a run: the error's text, the signal that ended QEMU if one did, what QEMU printed."""

    text: str
    ended: str = ""
    said: str = ""


class KnownIssue(Written):
    """One entry."""

    id: str
    what: str
    """What happens, in a sentence."""
    component: Literal["qemu", "kernel", "server"] = "qemu"
    versions: str
    """Those affected as far as is known: ">=10.1" or ">=10.1,<11.2"."""
    tried: tuple[str, ...] = ()
    """The versions on which it was tried."""
    status: IssueStatus
    symptom: Symptom | None = None
    evidence: str
    """What was done and seen."""
    tests: tuple[str, ...] = ()
    """The guest-driven tests that show it, FILE:CLASS.METHOD; of an entry with a guard those of the guard, which may be
    unit tests, FILE::FUNCTION."""
    guard: str = ""
    """What keeps it from happening here."""
    workaround: str = ""
    link: str = ""
    """Where upstream has it."""

    @field_validator("versions")
    @classmethod
    def _are_versions(cls, text: str) -> str:
        try:
            if not SpecifierSet(text):
                raise ValueError("no version is named; all are >=0")
        except InvalidSpecifier:
            raise ValueError(f"{text!r} is no condition such as >=10.1,<11.2") from None
        return text

    @field_validator("tried")
    @classmethod
    def _is_list_of_versions(cls, tried: tuple[str, ...]) -> tuple[str, ...]:
        for version in tried:
            Version(version)
        return tried

    @model_validator(mode="after")
    def _is_complete(self) -> KnownIssue:
        tried = self.status is not IssueStatus.UNTRIED
        if tried != bool(self.tried) or tried != bool(self.tests):
            raise ValueError(f"tried and tests are given with every status but {IssueStatus.UNTRIED}")
        if (self.symptom is not None) != (self.status in (IssueStatus.CONFIRMED, IssueStatus.AVOIDED)):
            raise ValueError(
                f"a symptom is given with the status {IssueStatus.CONFIRMED} or {IssueStatus.AVOIDED}, and no other"
            )
        if self.symptom is not None and bool(self.symptom.ends) != (self.status is IssueStatus.AVOIDED):
            raise ValueError("what ends a program is avoided, and not shown")
        if self.status is IssueStatus.AVOIDED and not self.guard:
            raise ValueError("what is avoided has a guard")
        return self

    def affects(self, version: Version) -> bool:
        """Whether this version of the component is among those affected."""
        return SpecifierSet(self.versions).contains(version, prereleases=True)

    def here(self, version: Version) -> Here:
        """The meaning of the entry for this version."""
        same = any(Version(tried) == version for tried in self.tried)
        match self.status:
            case IssueStatus.UNTRIED:
                return Here.UNKNOWN if self.affects(version) else Here.OTHER
            case IssueStatus.NOT_SEEN:
                return Here.ABSENT if same else Here.UNKNOWN
            case _ if not self.affects(version):
                return Here.OTHER
            case _:
                return Here.HAPPENS if same else Here.EXPECTED

    def expected(self, version: Version) -> bool:
        """Whether a test has to show it on this version."""
        return self.status is IssueStatus.CONFIRMED and self.affects(version)

    def shows(self, failure: ObservedFailure) -> bool:
        """Whether this failure has the symptom."""
        wanted = self.symptom
        return (
            wanted is not None
            and wanted.ends in ("", failure.ended)
            and re.search(wanted.says, failure.said) is not None
            and re.search(wanted.finds, failure.text) is not None
        )


@functools.cache
def known_issues() -> Mapping[str, KnownIssue]:
    """All entries by id, in the file's order.

    Raises:
        UserError: one is not as it should be, with file and line.
    """
    file = resources.files(__package__).joinpath("known_issues.yaml")
    return read_known_issues(file.read_text(), str(file))


def read_known_issues(text: str, source: str) -> Mapping[str, KnownIssue]:
    """The entries of a YAML text by id; `source` is its name in errors.

    Raises:
        UserError: one is not as it should be, with its line.
    """
    return {entry.id: entry for entry in parse_list(KnownIssue, text, source, unique="id")}


def known_issue(identity: str) -> KnownIssue:
    """The entry of this id.

    Raises:
        UserError: there is none.
    """
    issue = known_issues().get(identity)
    if issue is None:
        hint = f"{meant(identity, known_issues())}`vfio-user known-issues` lists them"
        raise UserError(f"there is no known issue {identity!r}", hint=hint)
    return issue


def recognise(
    failure: ObservedFailure, version: Version, issues: Iterable[KnownIssue] | None = None
) -> list[KnownIssue]:
    """The issues that may have ended QEMU: a hint for the reader, never a verdict."""
    return [
        issue
        for issue in (known_issues().values() if issues is None else issues)
        if issue.affects(version) and issue.symptom and issue.symptom.ends and issue.shows(failure)
    ]


@contextmanager
def expected_to_fail(issue: KnownIssue, version: Version, qemu: Child, seen: list[str]) -> Iterator[None]:
    """A block that asks for what would be right, and has to fail with the issue's symptom where `version` is affected.

    What was seen of it is added to `seen`, and the failure is over. Where `version` is not affected nothing is special.

    Raises:
        VerdictError: (XPASS) nothing went wrong, and the entry is out of date.
    """
    if not issue.expected(version):
        yield
        return
    printed = qemu.log.stat().st_size
    try:
        yield
    except (VerdictError, UserError, AssertionError) as error:
        failure = failure_of(qemu, error, printed, wait=2.0)
        if not issue.shows(failure):
            error.add_note(f"this is not the symptom of the known issue {issue.id}: {failure}")
            raise
        seen.append(f"{issue.id}: {issue.what}")
        return
    raise VerdictError(f"{XPASS}: {issue.id} no longer happens on {version}: {issue.what}")


def failure_of(qemu: Child, error: BaseException, printed: int = 0, wait: float = 0.0) -> ObservedFailure:
    """The failure, with what QEMU printed since its log had `printed` bytes; QEMU has `wait` seconds to end."""
    code = qemu.wait(wait)
    words = [str(error), getattr(error, "hint", ""), getattr(error, "evidence", "")]
    return ObservedFailure(
        text="\n".join(filter(None, words)),
        ended=signal.Signals(-code).name if code is not None and code < 0 else "",
        said=qemu.log.read_bytes()[printed:].decode(errors="replace"),
    )
