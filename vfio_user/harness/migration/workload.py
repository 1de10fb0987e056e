"""What the guest does while it is migrated: guest_images/programs/workload.py, which checks itself."""

from __future__ import annotations

from vfio_user.harness.booted import BootedGuest
from vfio_user.harness.deadline import Deadline
from vfio_user.harness.exercise import Exercise, report_of
from vfio_user.harness.guest import GuestFailure
from vfio_user.harness.migration.report import Report

KINDS = ("none", "idle", "registers", "interrupts", "dma")

_STARTED = "/run/workload.started"
_STARTING = 30.0
_ENDING = 30.0
_TOLD = 3  # wrong answers that a reader sees; all are in the evidence


class Workload:
    """A program that runs in the guest, wherever that is, until `end`."""

    def __init__(self, guest: BootedGuest, kind: str, *arguments: str, limit: float = 3600.0) -> None:
        """Start it, and wait until its first round was right. Raises `GuestFailure` when there is none."""
        self._guest = guest
        guest.succeed(f"rm -f {_STARTED}")
        self.command = ("workload", kind, "--slot", guest.device.address, "--started", _STARTED, *arguments)
        self._job = guest.start(self.command, limit)
        if "right" not in guest.wait_until_succeeds(f"grep . {_STARTED}", _STARTING):
            raise GuestFailure(f"{' '.join(self.command)!r}: {self.end().verdict}", evidence=guest.evidence())

    def end(self) -> Exercise:
        """End it; what it did and saw. Raises `GuestFailure` when it gives no report."""
        self._job.kill()
        return report_of(self._guest, self.command, self._job.wait(Deadline(_ENDING * self._guest.patience)))


def judge(report: Report, done: Exercise) -> None:
    """Put a workload's verdict into the report of the migration that it lived through."""
    seen = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in done.seen.items())
    wrong = "; ".join(done.wrong[:_TOLD]) + (f"; and {more} more" if (more := len(done.wrong) - _TOLD) > 0 else "")
    report.judge(done.command.split(" --")[0], done.ok, seen if done.ok else done.error or wrong)
