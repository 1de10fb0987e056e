"""What a night is on disk: summary.json in the night's folder. The models are its schema; docs/nightly.md tells of it.

It is written when the night begins and again whenever a part of it has ended, whole each time, so that a night which
was killed has left what it knew. Fields may be added without another `SCHEMA`: readers pass over what they do not know.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from enum import StrEnum
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, ValidationError, model_validator

from userdev.counted import counted
from userdev.errors import UserError, about

FILE = "summary.json"
SCHEMA: Literal[1] = 1
CUT = "…"
"""What a cause or a reason ends with that was cut."""


class Verdict(StrEnum):
    """What became of a case."""

    PASS = "PASS"
    FAIL = "FAIL"
    """A guest or a device did something wrong."""
    ERROR = "ERROR"
    """It could not be done, so that nothing is known."""
    XFAIL = "XFAIL"
    """It showed a known issue, as it had to."""
    XPASS = "XPASS"
    """It did not show the known issue that it names: what is known is out of date."""
    SKIP = "SKIP"
    """Not for this cell, with the reason."""
    WEDGED = "WEDGED"
    """Planned, and nobody can say what became of it: its runner went, its QEMU is not to be had, nobody ran it."""

    @property
    def is_wrong(self) -> bool:
        """Whether somebody has to look at it."""
        return self not in (Verdict.PASS, Verdict.XFAIL, Verdict.SKIP)


class Status(StrEnum):
    """How far a night has come."""

    RUNNING = "running"
    """Or it was killed: nobody holds its folder's lock then."""
    FINISHED = "finished"
    """Every case has a result."""
    ENDED = "ended"
    """Somebody ended it; what has a result has one."""
    UNDONE = "undone"
    """It could not be done: `reason` says why."""


def _inside(path: str) -> str:
    parts = PurePosixPath(path)
    if parts.is_absolute() or ".." in parts.parts:
        raise ValueError(f"{path!r} leads out of the night's folder")
    return path


InsidePath = Annotated[str, AfterValidator(_inside)]
"""A path from the night's folder; "" for none."""


class _Model(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class PlanIdentity(_Model):
    """The plan that was run. Nights of one `name` are compared with each other."""

    name: str
    file: str
    """As it was given."""
    digest: str
    """SHA-256 of all that decides which cases there are: plan, lock file, servers."""


class Machine(_Model):
    """A machine that ran cases. `memory` is in MiB, `kernel` its release."""

    name: str
    kernel: str
    processors: int
    memory: int
    python: str
    accelerator: Literal["kvm", "tcg"]


class Slot(_Model):
    """A place where cases were run, one at a time or several (`parallel`)."""

    name: str
    machine: Machine
    parallel: int = 1


class Cell(_Model):
    """One combination of the plan's parameters."""

    id: str
    """The same from night to night and on every machine."""
    parameters: Mapping[str, str]
    """All of them by name, also those that are as usual: protocol, device, server, qemu, cpus..."""
    versions: Mapping[str, str] = {}
    """`qemu`, `kernel` (the guest's), `server`: what of them was in fact used, as far as it is known."""
    planned: int
    """Number of its cases."""
    reason: str = ""
    """Why nothing of it could be run, where that is so: its cases are WEDGED, or SKIP where it is not for here."""


class CaseResult(_Model):
    """What became of one test in one cell."""

    id: str
    """CELL/TEST: the same from night to night and on every machine."""
    cell: str
    test: str
    """FILE:CLASS.METHOD, the file from the root of what the tests are in."""
    verdict: Verdict
    seconds: float = 0.0
    """Of the last attempt, on a clock that does not jump."""
    cause: str = ""
    """The first cause, where something is wrong."""
    reason: str = ""
    """Why it was skipped, or what is known of what it showed."""
    known_issue: str = ""
    """The id of the known issue that was seen (XFAIL), or that the test names and did not see (XPASS)."""
    slot: str = ""
    evidence: InsidePath = ""
    """The folder with what was kept of it."""
    bundle: str = ""
    """The folder that does it again (docs/bundles.md), from the night's folder; "" where there is none."""
    attempts: int = 1
    """More than 1: the slot that ran it died; 0: nobody ran it."""

    @property
    def bundle_is_evidence(self) -> bool:
        """Whether its bundle is in the folder with what was kept of it."""
        return bool(self.evidence) and PurePosixPath(self.bundle).is_relative_to(self.evidence)

    @property
    def why(self) -> str:
        """What a reader has to know of its verdict; "" of one that passed."""
        return self.cause or self.reason or self.known_issue

    @property
    def line(self) -> str:
        """It for a person, in a line: verdict, id, why and how long, where it was run."""
        why = self.why
        took = f" ({self.seconds:.1f} s)" if self.attempts else ""
        return f"{self.verdict} {self.id}{f': {why}' if why else ''}{took}"

    @model_validator(mode="after")
    def _says_why(self) -> CaseResult:
        if self.id != case_id(self.cell, self.test):
            raise ValueError(f"the id of test {self.test!r} in cell {self.cell!r} is not {self.id!r}")
        needed = {Verdict.PASS: "", Verdict.SKIP: "reason", Verdict.XFAIL: "known_issue"}.get(self.verdict, "cause")
        if needed and not getattr(self, needed):
            raise ValueError(f"{self.id}: {self.verdict} without its {needed}")
        return self


class Moved(_Model):
    """A case that took another time than in the night before, in seconds."""

    id: str
    before: float
    after: float


class Flake(_Model):
    """A case whose verdict changes from night to night; `verdicts` are those of the last ones, the latest last."""

    id: str
    verdicts: tuple[Verdict, ...]


class Changed(_Model):
    """A case that has another verdict than in the night before."""

    id: str
    before: Verdict
    after: Verdict


class Comparison(_Model):
    """A night beside the last finished one of its plan: ids of cases, in the order of the plan."""

    against: str = ""
    """The night before; "": there was none, so that all that is wrong is new."""
    new: tuple[str, ...] = ()
    """Wrong, and not so before: right, or wrong with another verdict or of another cause."""
    as_before: tuple[str, ...] = ()
    """Wrong in the same way before: with the same verdict, and the same cause as `vfio_user.bundle.steady` has it."""
    mended: tuple[str, ...] = ()
    was: Mapping[str, Verdict] = {}
    """What those of `new` and `mended` were before, but for cases of which there was nothing."""
    cause_was: Mapping[str, str] = {}
    """The first cause before of those of `new` that were wrong then, too."""
    changed: tuple[Changed, ...] = ()
    """Other verdicts that are neither wrong now nor mended: a known issue now, skipped, no longer skipped."""
    added: tuple[str, ...] = ()
    gone: tuple[str, ...] = ()
    moved: tuple[Moved, ...] = ()
    flakes: tuple[Flake, ...] = ()

    def before(self, case: str) -> str:
        """The verdict that a case of `new` or `mended` had before, in words; "" of others, and without such a night."""
        if case in self.was:
            return self.was[case]
        return "no result" if self.against and case in self.new else ""


class Summary(_Model):
    """A night."""

    schema_version: Literal[1] = SCHEMA
    night: str
    """Its id: the name of its folder."""
    plan: PlanIdentity
    commit: str = ""
    """Of this project, `-dirty` behind it where files were changed; "" outside of a checkout."""
    only: tuple[str, ...] = ()
    """Patterns of the cells and cases to which it was limited; none: it is of the whole plan."""
    began: AwareDatetime
    ended: AwareDatetime | None = None
    seconds: float = 0.0
    """How long it took, on a clock that does not jump: `ended` - `began` where the machine's clock did not."""
    status: Status = Status.RUNNING
    reason: str = ""
    """Why it was undone or ended."""
    remarks: tuple[str, ...] = ()
    """What a reader has to know: artifacts that were given up for space, a clock that jumped."""
    slots: tuple[Slot, ...] = ()
    cells: tuple[Cell, ...] = ()
    results: tuple[CaseResult, ...] = ()
    comparison: Comparison | None = None
    """With the night before, once this one has ended."""

    @property
    def planned(self) -> int:
        """Number of cases of the plan."""
        return sum(cell.planned for cell in self.cells)

    def counts(self) -> Mapping[Verdict, int]:
        """How many results have each verdict."""
        counted = Counter(result.verdict for result in self.results)
        return {verdict: counted[verdict] for verdict in Verdict}

    def wrong(self) -> list[CaseResult]:
        """Results that somebody has to look at."""
        return [result for result in self.results if result.verdict.is_wrong]

    def compared(self) -> Comparison:
        """The comparison, or that with nothing: all that is wrong is new where nobody knows of a night before."""
        return self.comparison or Comparison(new=tuple(result.id for result in self.wrong()))

    def write(self, folder: Path) -> Path:
        """Write it to the night's folder: whoever reads meanwhile sees the one before, or this one."""
        path = folder / FILE
        beside = path.with_suffix(".new")
        with about(path):
            beside.write_text(self.model_dump_json(indent=1) + "\n")
            beside.replace(path)
        return path

    @model_validator(mode="after")
    def _adds_up(self) -> Summary:
        if problem := next(_problems(self), ""):
            raise ValueError(problem)
        return self


def case_id(cell: str, test: str) -> str:
    """The id of a test in a cell."""
    return f"{cell}/{test}"


def read_summary(path: Path) -> Summary:
    """The summary in a night's folder, or in the file itself.

    Raises:
        UserError: there is none, or it is not as the schema says.
    """
    file = path / FILE if path.is_dir() else path
    try:
        return Summary.model_validate_json(file.read_bytes())
    except OSError as error:
        raise UserError(f"{path} is no night: {file}: {error.strerror}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(word) for word in first["loc"])
        raise UserError(f"{file} is no summary of a night: {f'{where}: ' if where else ''}{first['msg']}") from None


def _problems(summary: Summary) -> Iterator[str]:
    cells = Counter(cell.id for cell in summary.cells)
    yield from (f"cell {cell} is there twice" for cell, number in cells.items() if number > 1)
    ids = Counter(result.id for result in summary.results)
    yield from (f"case {case} is there twice" for case, number in ids.items() if number > 1)
    seen = Counter(result.cell for result in summary.results)
    yield from (f"there is no cell {cell}" for cell in seen if cell not in cells)
    for cell in summary.cells:
        if seen[cell.id] > cell.planned:
            yield f"cell {cell.id} has {counted(seen[cell.id], 'result')} of {counted(cell.planned, 'case')}"
        if summary.status is Status.FINISHED and seen[cell.id] < cell.planned:
            yield f"cell {cell.id} has {counted(seen[cell.id], 'result')} of {cell.planned}, and the night is finished"
