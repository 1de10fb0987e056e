"""What a migration was: its phases with times and bytes, what was checked, and the verdict."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from vfio_user.harness.artifacts import write_text


class Phase(StrEnum):
    """The phases in their order. Until RESUME has begun the source can go on as if nothing had been tried."""

    START = "start"
    PREPARE = "prepare"
    PRE_COPY = "pre-copy"
    PAUSE = "pause"
    DEVICE_STATE = "device state"
    DIRTY_PAGES = "dirty pages"
    SWITCHOVER = "switchover"
    RESTORE = "restore"
    RESUME = "resume"


class Mode(StrEnum):
    """The party that moves the device."""

    AUTO = "auto"
    """Native where the client can, else coordinated."""
    COORDINATED = "coordinated"
    """The harness does what the client leaves out."""
    NATIVE = "native"
    """The client itself; the harness watches."""
    DIRECT = "direct"
    """Nobody: plain `migrate`, as a user would do it."""


class Verdict(StrEnum):
    """The verdict on a migration; only MIGRATED is success."""

    MIGRATED = "migrated"
    """The guest runs on the destination, and everything checked is as it was."""
    LOST = "lost"
    """The guest runs on the destination without something it had."""
    STAYED = "stayed"
    """The migration failed or was cancelled; the guest runs on the source as before."""
    DEAD = "dead"
    """The guest runs nowhere any more."""


NO_PAGES = "no device told of any page that it had written meanwhile"
"""What is to be said first where memory is not what it was behind a migration whose report `has_no_pages`."""


@dataclass
class PhaseRecord:
    """One phase: when it began (seconds since the migration's beginning), how long it took, what it moved."""

    phase: Phase
    began: float
    seconds: float = 0.0
    bytes: int = 0
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class MigrationCheck:
    """A comparison: `detail` says what differs, or what was seen."""

    what: str
    ok: bool
    detail: str = ""


@dataclass
class Report:
    """The whole story of one migration. Times are seconds; `downtime` is from the last instruction on the source to the
    first on the destination, as QEMU's events of them come here; None where there was none.
    """

    mode: Mode
    source: str
    destination: str
    devices: list[str] = field(default_factory=list)
    by_qemu: list[str] = field(default_factory=list)
    """Those of them that QEMU moves by itself, whatever the mode."""
    verdict: Verdict = Verdict.STAYED
    reason: str = ""
    phases: list[PhaseRecord] = field(default_factory=list)
    downtime: float | None = None
    seconds: float = 0.0
    ram_bytes: int = 0
    checks: list[MigrationCheck] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    hindered: str = ""
    """Why a host could not do its part, where that is so: by it nothing is known of guest and devices."""
    machine: str = ""
    """The name of the machine that the guest was to arrive in, by which its logs are called."""

    def __post_init__(self) -> None:
        self._began, self._when = time.monotonic(), time.time()

    @property
    def ok(self) -> bool:
        """Whether the guest runs on the destination with all that was checked as it was."""
        return self.verdict is Verdict.MIGRATED

    @property
    def sentence(self) -> str:
        """The verdict, what it means for the guest, and why."""
        match self.verdict:
            case Verdict.MIGRATED:
                return f"{self.verdict}: the guest is on {self.destination}"
            case Verdict.STAYED:
                failed = f"the migration to {self.destination} failed {self.reason}".rstrip()
                return f"{self.verdict}: {failed}; on {self.source} the guest goes on as before"
            case Verdict.LOST:
                return f"{self.verdict}: the guest is not what it was: {self.reason}"
            case Verdict.DEAD:
                return f"{self.verdict}: the guest runs nowhere any more: {self.reason}"

    @property
    def wrong(self) -> list[MigrationCheck]:
        """The checks that found a difference, in their order."""
        return [check for check in self.checks if not check.ok]

    @contextmanager
    def phase(self, phase: Phase) -> Iterator[PhaseRecord]:
        """Time what is done in the block; its record is there from the beginning, whatever happens."""
        began = time.monotonic()
        record = PhaseRecord(phase, began - self._began)
        self.phases.append(record)
        try:
            yield record
        finally:
            record.seconds = time.monotonic() - began
            self.seconds = time.monotonic() - self._began

    def check(self, what: str, ok: bool, detail: str = "") -> None:
        """Note a comparison: `what` was compared, whether it was alike, and what was seen."""
        self.checks.append(MigrationCheck(what, ok, detail))

    @property
    def has_no_pages(self) -> bool:
        """Whether devices were asked which pages they had written, and told of none."""
        asked = [record.details for record in self.phases if record.phase is Phase.DIRTY_PAGES]
        return any(told and not any(told.values()) for told in asked)

    def judge(self, what: str, ok: bool, detail: str = "") -> None:
        """Add a check, and let the verdict follow: what is wrong now was lost."""
        self.check(what, ok, detail)
        if not ok and self.verdict in (Verdict.MIGRATED, Verdict.STAYED):
            self.verdict = Verdict.LOST
        if not ok:
            self.reason = "; ".join(filter(None, (self.reason, f"{what}: {detail}")))

    def hinder(self, why: str) -> None:
        """Note why a host could not do its part, and tell it beside what came of that; "" is no reason."""
        self.hindered = why
        if why not in self.reason:
            self.reason = "; ".join(filter(None, (self.reason, why)))

    @property
    def last_phase(self) -> Phase | None:
        """The phase that was begun last; None before the first."""
        return self.phases[-1].phase if self.phases else None

    def write(self, folder: Path) -> None:
        """Write it into a run's folder, with the moment at which it began, by the name of where it went."""
        told = {"when": self._when, **self.as_dict()}
        write_text(folder / f"{self.machine}.migration.json", json.dumps(told, indent=2, default=str) + "\n")

    def as_dict(self) -> dict[str, Any]:
        """For JSON: every field, enumerations as their text."""
        return asdict(self)
