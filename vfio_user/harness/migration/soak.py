"""A guest that is migrated back and forth, verified from inside after each hop, until something is lost."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from time import time
from typing import Any

import psutil

from userdev.errors import VerdictError
from vfio_user.harness.booted_guest import BootedGuest
from vfio_user.harness.hosts import Pair
from vfio_user.harness.lab import Lab
from vfio_user.harness.migration.guest_migration import require_migratable
from vfio_user.harness.migration.journal import Journal
from vfio_user.harness.migration.plan import Limits, Plan
from vfio_user.harness.migration.report import Report, Verdict
from vfio_user.harness.migration.workload import Assignment, Workload, image_for, judge

_FOR_EVER = 2e5  # seconds; the guest's poll(2) takes no more than 2**31 ms, after they were multiplied for patience
_KEPT = 3  # machines whose logs stay: the one that runs, those of the last hops


@dataclass(frozen=True)
class Soak:
    """What is soaked, in the words of a command line; by default the device's first workload, in the image for that.

    `interrupts` are enabled beside the work, whatever that is.

    Raises:
        UserError: work that there is not.
    """

    device: str = "edu"
    workload: str = ""
    interrupts: str = ""
    hosts: str = "auto"
    image: str = ""
    memory: int = 512
    iommu: bool = False
    cpus: int = 1

    def __post_init__(self) -> None:
        _ = self.assignment

    @property
    def assignment(self) -> Assignment:
        """Workload and interrupts that the device is used with.

        Raises:
            UserError: names that do not exist.
        """
        return Assignment.of(self.device, self.workload, self.interrupts)

    def run(self, lab: Lab, journal: Journal, hops: int) -> Iterator[Report]:
        """Do the hops that the journal does not have; each good one's report, and that of the first bad one."""
        pair = lab.hosts(self.hosts)
        wanted = self.assignment
        guest = lab.boot(
            wanted.device,
            image=self.image or image_for([wanted]),
            migratable=True,
            host=pair.a,
            memory=self.memory,
            iommu=self.iommu,
            cpus=self.cpus,
        )
        require_migratable(guest)
        workload = wanted.start(guest, guest.device, limit=_FOR_EVER)
        names: list[str] = []
        while len(journal.hops) < hops:
            names.append(guest.name)
            report = self._hop(lab, guest, pair, workload)
            journal.hop(facts(len(journal.hops) + 1, report, guest))
            yield report
            if not report.ok:
                return
            while len(names) > _KEPT:
                lab.forget(names.pop(0))
        if workload is not None:
            judge(report := Report(report.mode, "", ""), workload.end())
            report.verdict = Verdict.MIGRATED if report.verdict is Verdict.STAYED else report.verdict
            if not report.ok:
                yield report

    def _hop(self, lab: Lab, guest: BootedGuest, pair: Pair, workload: Workload | None) -> Report:
        report = lab.migrate(guest, to=pair.other(guest.host), plan=Plan(limits=Limits(total=120)))
        if report.ok and workload is not None:
            try:
                judge(report, workload.look())
            except VerdictError as error:  # the guest is no more, or its program
                report.judge("the work goes on", False, str(error))
        return report

    def as_dict(self) -> dict[str, Any]:
        """The fields by name, as the journal compares them."""
        return asdict(self)


def facts(number: int, report: Report, guest: BootedGuest) -> dict[str, Any]:
    """A hop's line in the journal. Sizes are in KiB, times in seconds."""
    return {
        "hop": number,
        "verdict": report.verdict,
        "reason": report.reason,
        "from": report.source,
        "to": report.destination,
        "downtime": report.downtime,
        "seconds": round(report.seconds, 3),
        "at": round(time(), 3),
        "phases": {str(phase.phase): round(phase.seconds, 4) for phase in report.phases},
        "checks": [check.what for check in report.checks],
        "wrong": [asdict(check) for check in report.wrong],
        **_sizes(guest),
    }


WATCHED: Mapping[str, tuple[float, float]] = {
    # What of a hop's line must not grow: by which factor, and by how much beside, it may.
    "harness_fds": (1.0, 8),
    "harness_rss": (1.1, 8 << 10),  # it has a few KiB of each hop
    "qemu_fds": (1.0, 4),
    "qemu_rss": (1.5, 64 << 10),
    "server_fds": (1.0, 4),
    "server_rss": (1.5, 16 << 10),
    "downtime": (2.5, 0.1),
}
_ENOUGH = 20  # hops, for a trend to mean something


def trends(hops: Sequence[Mapping[str, Any]]) -> list[str]:
    """The figures that have grown from the first to the last quarter of the hops; by medians, so one slow hop is
    none.
    """
    if len(hops) < _ENOUGH:
        return []
    quarter = len(hops) // 4
    found = []
    for name, (factor, more) in WATCHED.items():
        first, last = (
            median(hop[name] for hop in part if hop.get(name) is not None) for part in (hops[:quarter], hops[-quarter:])
        )
        if last > first * factor + more:
            found.append(f"{name} grew from {first:g} to {last:g}")
    return found


def _sizes(guest: BootedGuest) -> dict[str, int]:
    processes = {"harness": os.getpid(), "qemu": guest.machine.child.pid}
    for plugged in guest.devices:
        if plugged.server is not None:
            processes["server"] = plugged.server.child.pid
            if plugged.server.is_interposed:
                processes["interposer"] = plugged.server.interposer.child.pid
    found: dict[str, int] = {}
    for name, pid in processes.items():
        try:
            process = psutil.Process(pid)
            found |= {f"{name}_fds": process.num_fds(), f"{name}_rss": process.memory_info().rss >> 10}
        except psutil.Error:  # it has ended: the verdict says so
            continue
    return found
