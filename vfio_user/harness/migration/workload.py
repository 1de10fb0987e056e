"""What the guest does while it is migrated: guest_images/programs/workload.py, which checks itself.

Which work there is for which device is a table, `SUBJECTS`.
"""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from userdev.errors import UserError, meant
from userdev.process import Deadline
from vfio_user.harness.booted_guest import BootedGuest, Plugged
from vfio_user.harness.device import SCRATCH, Device
from vfio_user.harness.exercises import EXERCISES, Exercise, report_of
from vfio_user.harness.guest import GuestFailure, standstill_in
from vfio_user.harness.migration.report import NO_PAGES, Report

NONE = "none"
MINIMAL = "minimal"


@dataclass(frozen=True)
class Subject:
    """A device of ours as something to work with: `kinds` of work, the first unless another is named.

    They need `image`; `options` are for a device that is given none; `chooses_interrupts`: a user may say which.
    """

    kinds: tuple[str, ...] = ()
    image: str = MINIMAL
    options: tuple[str, ...] = ()
    chooses_interrupts: bool = False


_OF_DISKS = ("fio", "blocks", "files")

SUBJECTS: Mapping[str, Subject] = MappingProxyType(
    {
        "edu": Subject(("dma", "interrupts", "registers", "idle"), chooses_interrupts=True),
        "gpio": Subject(),
        "nvme": Subject(_OF_DISKS, "storage", ("--image", "memory:64M")),
        # The client moves it, and not what its image has: that is where both hosts find it.
        "vhost-user-blk": Subject(_OF_DISKS, "storage", ("--image", f"{SCRATCH}/disk.img:64M")),
        "vhost-user-net": Subject(("ping",)),
        "vhost-user-rng": Subject(),
    }
)
KINDS = tuple(dict.fromkeys((NONE, *(kind for subject in SUBJECTS.values() for kind in subject.kinds))))


@dataclass(frozen=True)
class Assignment:
    """A device, what the guest does with it, and with which interrupts where one was chosen."""

    device: Device
    kind: str
    interrupts: str = ""

    @classmethod
    def of(cls, device: str, kind: str | None = None, interrupts: str | None = None) -> Assignment:
        """What is meant by an option of a command line; without a kind it is the first that there is.

        A device that is not of `SUBJECTS` may be like one of those, so that any work may do: the guest will tell.

        Raises:
            UserError: work that there is not.
        """
        wanted = Device.parse(device)
        subject = SUBJECTS.get(wanted.served)
        kind = kind or next(iter(subject.kinds if subject else ()), NONE)
        if subject and kind not in (NONE, *subject.kinds):
            near = meant(kind, (NONE, *subject.kinds))
            raise UserError(f"there is no workload {kind!r} for {wanted.name}", hint=f"{near}{all_kinds()}")
        if kind not in KINDS:
            raise UserError(f"there is no workload {kind!r}", hint=f"{meant(kind, KINDS)}{all_kinds()}")
        if interrupts and kind != NONE and kind not in _choosing_interrupts():
            raise UserError(f"the driver chooses the interrupts in workload {kind!r}", hint="leave out --interrupts")
        if subject and kind != NONE and not wanted.options:
            wanted = replace(wanted, options=subject.options)
        return cls(wanted, kind, interrupts or "")

    def start(self, guest: BootedGuest, plugged: Plugged, limit: float = 3600.0) -> Workload | None:
        """Have the guest do it; None where there is nothing to do.

        Raises:
            UserError: it is work with another device: a mistake of who asked, and none of the device.
            GuestFailure: its first round was wrong, or never ended.
        """
        self._require_device(plugged)
        options = ("--interrupts", self.interrupts) if self.interrupts else ()
        return Workload(guest, self.kind, *options, device=plugged, limit=limit) if self.kind != NONE else None

    def _require_device(self, plugged: Plugged) -> None:
        if self.device.served in SUBJECTS:
            return
        of = {name: EXERCISES.get(name) for name, subject in SUBJECTS.items() if self.kind in subject.kinds}
        known = {name: program.ids for name, program in of.items() if program and program.ids}
        there = (plugged.vendor, plugged.device)
        if known and len(known) == len(of) and there not in known.values():
            told = " or ".join(f"{name} ({ids[0]:04x}:{ids[1]:04x})" for name, ids in known.items())
            what = (
                f"workload {self.kind!r} is work with {told}, and {self.device.name} is {there[0]:04x}:{there[1]:04x}"
            )
            raise UserError(what, hint=all_kinds())


def image_for(assignments: Sequence[Assignment]) -> str:
    """The smallest image that has what all of them need: whatever is not minimal extends it."""
    images = {subject.image for subject in SUBJECTS.values() if {each.kind for each in assignments} & {*subject.kinds}}
    return next(iter(images - {MINIMAL}), MINIMAL)


def all_kinds() -> str:
    """For a person: which work there is for which device."""
    kinds = (f"{name} has {', '.join(subject.kinds)}" for name, subject in SUBJECTS.items() if subject.kinds)
    return f"{'; '.join(kinds)}; {NONE} is for any device"


def _choosing_interrupts() -> set[str]:
    return {kind for subject in SUBJECTS.values() if subject.chooses_interrupts for kind in subject.kinds}


_START_SECONDS = 30.0
_END_SECONDS = 30.0
_LISTENING_SECONDS = 1.0  # in the guest, before somebody looks around whether anything is wrong


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

        Raises:
            GuestFailure: it was not, or never ended.
        """
        self._guest = guest
        slot = (device or guest.device).address
        started = f"/run/workload-{slot}.started"
        self.answers_in = f"{started}.now"
        guest.succeed(f"rm -f {started}")
        self.command = ("workload", kind, "--slot", slot, "--started", started, *arguments)
        self._job = guest.start(self.command, limit)
        if "right" not in guest.wait_until_succeeds(f"grep . {started}", _START_SECONDS, interval=0.02):
            raise GuestFailure(f"{' '.join(self.command)!r}: {self.end().verdict}", evidence=guest.evidence())

    def look(self) -> Exercise:
        """Report what it has done and seen so far; it checks everything that it can, and goes on."""
        self.ask()
        return self.answer()

    def ask(self) -> None:
        """Have it check everything that it can; `answer` waits for that."""
        self._job.kill(signal.SIGUSR1)

    def answer(self) -> Exercise:
        """Report what it was asked for.

        Raises:
            GuestFailure: it says nothing: it has ended.
        """
        return answers(self._guest, [self])[1][0]

    def exercise(self, answer: str, seconds: float) -> Exercise:
        """The report that is in an answer, which came after so many seconds."""
        found = json.loads(answer)
        wrong = tuple(found["wrong"])
        return Exercise(" ".join(self.command), not wrong, found["seen"], wrong, {}, seconds)

    def end(self) -> Exercise:
        """End it; what it did and saw.

        Raises:
            GuestFailure: it gives no report.
        """
        self._job.kill()
        return report_of(self._guest, self.command, self._job.wait(Deadline(_END_SECONDS * self._guest.patience)))


def answers(guest: BootedGuest, works: Sequence[Workload], boot_id: str = "") -> tuple[str, list[Exercise]]:
    """The guest's boot id, and what each of these works that were asked reports.

    A guest that was to have another boot id has none of them any more: they report nothing.

    Raises:
        GuestFailure: one of them says nothing: it has ended.
    """
    wait, began = guest.waiting(_END_SECONDS), time.monotonic()
    texts: dict[str, str] = {}
    while True:
        missing = [work.answers_in for work in works if work.answers_in not in texts]
        said = guest.call(said_in, missing, _LISTENING_SECONDS, boot_id)
        texts |= said["texts"]
        if boot_id not in ("", said["boot_id"]):
            return said["boot_id"], []
        silent = [work for work in works if work.answers_in not in texts]
        if not silent:
            seconds = time.monotonic() - began
            return said["boot_id"], [work.exercise(texts[work.answers_in], seconds) for work in works]
        if not wait.remaining:
            command = " ".join(silent[0].command)
            evidence = guest.evidence()
            silence = wait.without(f"{command!r} said nothing of what it has seen")
            raise GuestFailure(silence + standstill_in(evidence), evidence=evidence)


def said_in(files: list[str], seconds: float, boot_id: str) -> dict[str, Any]:
    """In the guest: what is in each of these files that is there within so many seconds, and then not any more.

    It is not waited for in a guest that has booted since it had `boot_id`.
    """
    import time
    from pathlib import Path

    now = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    deadline = time.monotonic() + seconds
    texts: dict[str, str] = {}
    while True:
        for path in map(Path, files):
            if str(path) not in texts and path.exists():
                texts[str(path)] = path.read_text()
                path.unlink()
        if len(texts) == len(files) or boot_id not in ("", now) or time.monotonic() >= deadline:
            return {"boot_id": now, "texts": texts}
        time.sleep(0.005)


def judge(report: Report, done: Exercise) -> None:
    """Put a workload's verdict into the report of the migration that it lived through."""
    seen = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in done.seen.items())
    wrong = f"{NO_PAGES}; {done.verdict}" if report.has_no_pages else done.verdict
    report.judge(f"{done.command.split(' --started')[0]}", done.ok, seen if done.ok else wrong)
