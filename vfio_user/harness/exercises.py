"""Programs in the guest that exercise a device and report in JSON (guest_images/programs/edu.py has the form)."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from userdev.counted import times
from vfio_user.harness.guest import Guest, GuestFailure, Result

TOLD = 3
"""Things that are wrong, in a line; `wrong` has all of them."""


@dataclass(frozen=True)
class Exercise:
    """What a guest did and saw.

    `seen` is what the device answered, the same for every right device of its kind; `wrong` says what it should have
    answered; `device` is how it was driven; `seconds` were measured in the guest.
    """

    command: str
    ok: bool
    seen: Mapping[str, Any]
    wrong: tuple[str, ...]
    device: Mapping[str, Any]
    seconds: float
    error: str = ""

    @property
    def verdict(self) -> str:
        """What is wrong, in one line, the first `TOLD` of it; "right" when nothing is."""
        return "right" if self.ok else self.error or told_of(self.wrong) or "wrong, and it does not say why"

    @property
    def told(self) -> str:
        """What was seen, and what is wrong with it, the same for what is the same."""
        seen = json.dumps(dict(self.seen), sort_keys=True, default=str)
        return seen if self.ok else f"{self.verdict}; seen: {seen}"


@dataclass(frozen=True)
class Part:
    """A part of an exercise: arguments of the guest's program, and what it proves."""

    arguments: tuple[str, ...]
    proves: str


@dataclass(frozen=True)
class Program:
    """A program of the guest's that exercises a device: its name, the parts, and the image that has what they need.

    `options` are for a device that is given none. `ids`, a vendor's and its device's, are what every part looks for;
    None where they look for something else.
    """

    name: str
    parts: tuple[Part, ...]
    image: str = "minimal"
    options: tuple[str, ...] = ()
    ids: tuple[int, int] | None = None

    def is_for(self, ids: tuple[int, int]) -> bool:
        """Whether a device with these ids is one that the parts find."""
        return self.ids in (None, ids)


_DISK = (
    Part(("blocks", "--seconds", "1"), "blocks that were written are read back"),
    Part(("fio", "--seconds", "1"), "many requests at a time, verified by fio"),
    Part(("files", "--seconds", "1"), "a file system, its files whole, and e2fsck finds nothing"),
)

EXERCISES: Mapping[str, Program] = MappingProxyType(
    {
        "edu": Program(
            "edu",
            (
                Part(("identify",), "found with the right ids and BAR"),
                Part(("liveness",), "registers read and written"),
                Part(("factorial",), "computes"),  # by itself: a device without interrupts may compute wrongly, too
                Part(("factorial", "--interrupt"), "computes, and interrupts when done"),
                Part(("irq", "--times", "3"), "every interrupt vector counted"),
                Part(("--interrupts", "intx", "intx"), "INTx is a level until acknowledged"),
                Part(("dma",), "DMA both ways over page borders"),
            ),
            ids=(0x1234, 0x11E8),
        ),
        "nvme": Program("workload", _DISK, "storage", ("--image", "memory:64M")),
        "vhost-user-blk": Program("workload", _DISK, "storage", ("--image", "memory:64M")),
        "vhost-user-net": Program(
            "workload",
            (Part(("ping", "--seconds", "1"), "the station answers each ping, of any size, with its bytes"),),
        ),
        "vhost-user-rng": Program(
            "entropy",
            (
                Part(("driver",), "the kernel's driver has it"),
                Part(("read",), "its bytes are no constant and do not repeat"),
            ),
        ),
    }
)
"""By the name of a device of ours."""


def told_of(wrong: Sequence[str]) -> str:
    """What is wrong, in one line: the same once, with how often, and of more than `TOLD` the number of those left."""
    often = Counter(wrong)
    named = [text if count == 1 else f"{text} ({times(count)})" for text, count in often.items()]
    more = sum(list(often.values())[TOLD:])
    return "; ".join([*named[:TOLD], *([f"and {more} more"] if more else [])])


def exercise(guest: Guest, program: str, *arguments: str, timeout: float = 60.0) -> Exercise:
    """Run a program and return its report, good or bad.

    Raises:
        GuestFailure: it gives none.
    """
    command = (program, *arguments)
    return report_of(guest, command, guest.run(command, timeout))


def report_of(guest: Guest, command: Sequence[str], result: Result) -> Exercise:
    """The report of a program that has ended.

    Raises:
        GuestFailure: it gave none.
    """
    try:
        report = json.loads(result.stdout)
        return Exercise(
            command=" ".join(command),
            ok=bool(report["ok"]) and result.ok,
            seen=report.get("seen", {}),
            wrong=tuple(report.get("wrong", ())),
            device=report.get("device", {}),
            seconds=report["seconds"],
            error=report.get("error", ""),
        )
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise GuestFailure(
            f"{' '.join(command)!r} gave no report", evidence=f"{result.describe()}\n{guest.evidence()}", result=result
        ) from error


def succeed(guest: Guest, program: str, *arguments: str, timeout: float = 60.0) -> Exercise:
    """`exercise`, with `GuestFailure` for a bad verdict: what was wrong, the console and the kernel's log."""
    done = exercise(guest, program, *arguments, timeout=timeout)
    if not done.ok:
        raise GuestFailure(
            f"{done.command!r}: {done.verdict}", evidence=f"seen: {json.dumps(done.seen)}\n{guest.evidence()}"
        )
    return done
