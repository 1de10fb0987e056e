"""What the guest does while it is migrated: guest_images/programs/workload.py, which checks itself."""

from __future__ import annotations

import json
import signal
import time

from vfio_user.harness.booted import BootedGuest, Plugged
from vfio_user.harness.deadline import Deadline
from vfio_user.harness.exercise import Exercise, report_of
from vfio_user.harness.guest import GuestFailure
from vfio_user.harness.migration.report import Report

KINDS = ("none", "idle", "registers", "interrupts", "dma")

_STARTING = 30.0
_ENDING = 30.0
_TOLD = 3  # wrong answers that a reader sees; all are in the evidence


class Workload:
    """A program that runs in the guest, wherever that is, until `end`."""

    def __init__(
        self,
        guest: BootedGuest,
        kind: str,
        *arguments: str,
        device: Plugged | None = None,
        limit: float = 3600.0,
    ) -> None:
        """Start it with a device, the guest's first if none is given, and wait until its first round was right.

        Raises `GuestFailure` when there is none.
        """
        self._guest = guest
        slot = (device or guest.device).address
        started = f"/run/workload-{slot}.started"
        self._now = f"{started}.now"
        guest.succeed(f"rm -f {started}")
        self.command = ("workload", kind, "--slot", slot, "--started", started, *arguments)
        self._job = guest.start(self.command, limit)
        if "right" not in guest.wait_until_succeeds(f"grep . {started}", _STARTING):
            raise GuestFailure(f"{' '.join(self.command)!r}: {self.end().verdict}", evidence=guest.evidence())

    def look(self) -> Exercise:
        """What it has done and seen so far; it checks everything that it can, and goes on."""
        began = time.monotonic()
        self._job.kill(signal.SIGUSR1)
        text = self._guest.wait_until_succeeds(
            f"cat {self._now} && rm {self._now}", _ENDING * self._guest.patience, interval=0.02
        )
        found = json.loads(text)
        wrong = tuple(found["wrong"])
        return Exercise(" ".join(self.command), not wrong, found["seen"], wrong, {}, time.monotonic() - began)

    def end(self) -> Exercise:
        """End it; what it did and saw. Raises `GuestFailure` when it gives no report."""
        self._job.kill()
        return report_of(self._guest, self.command, self._job.wait(Deadline(_ENDING * self._guest.patience)))


def judge(report: Report, done: Exercise) -> None:
    """Put a workload's verdict into the report of the migration that it lived through."""
    seen = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in done.seen.items())
    wrong = "; ".join(done.wrong[:_TOLD]) + (f"; and {more} more" if (more := len(done.wrong) - _TOLD) > 0 else "")
    report.judge(f"{done.command.split(' --started')[0]}", done.ok, seen if done.ok else done.error or wrong)
