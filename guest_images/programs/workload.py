#!/usr/bin/env python3
"""Keep an edu device busy, and check everything it does, until told to end: for what may be done to it meanwhile.

Runs until SIGTERM, or for --seconds. Prints one JSON object of the form that edu.py has; `seen` counts what was done
and has the longest time between two rounds. --started names a file that is written as soon as the first round was
right: "right", or when there will be none: "failed". At SIGUSR1 all is checked that else is checked in the end; what
is known (`seen` and `wrong`) is written to a file of that name with .now behind it.

    workload idle        looks at the device's identification ten times a second
    workload registers   writes and reads registers; others must keep what they hold
    workload interrupts  raises interrupts on each vector in turn: every one must come, once, where it belongs
    workload dma         has the device write pages of memory, and in the end compares each page that it ever wrote
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from edu import (
    BUFFER,
    CAUSES,
    DMA_ADDRESS_BITS,
    DMA_LENGTH,
    DMA_SOURCE,
    DMA_TARGET,
    FACTORIAL,
    IDENTIFICATION,
    IDENTITY,
    IDS,
    LIVENESS,
    RAISE,
    SELECT_VECTOR,
    TO_MEMORY,
    U32,
    Edu,
)
from guest_pci import INTX, MSI, MSIX, PAGE, DeviceError, find_device
from guest_vfio import ACCESS, open_device

ENOUGH = 20  # wrong answers, after which more would tell nothing new
KEPT = {DMA_SOURCE: 0x1111_2222, DMA_TARGET: 0x3333_4444, DMA_LENGTH: 0x55}


class Workload:
    """One kind of work: `round` is done again and again, `finish` once in the end.

    Interrupts of the kind that is asked for are enabled whatever the work is.
    """

    def __init__(self, edu: Edu, options: argparse.Namespace) -> None:
        self.edu = edu
        if options.interrupts:
            edu.enable_interrupts(options.interrupts, options.vectors)

    def round(self, number: int) -> None:
        """Do and check something; `number` counts from 0."""

    def check(self) -> None:
        """Check what has been done so far."""

    def finish(self) -> None:
        """Check what can be checked only now: that no interrupt came by itself and that each still can."""
        self.check()
        if not self.edu.vectors:
            return
        self.edu.expect_quiet()
        for vector in self.edu.used:
            self.edu.bar.write(SELECT_VECTOR, vector)
            self.edu.bar.write(RAISE, 1)
            self.edu.expect(f"in the end, the interrupts on vector {vector}", self.edu.interrupted(vector), 1)
            self.edu.acknowledge(1)
        self.edu.expect_quiet()


class Idle(Workload):
    def round(self, number: int) -> None:
        self.edu.expect("identification", self.edu.bar.read(IDENTIFICATION), IDENTITY)
        time.sleep(0.1)


class Registers(Workload):
    """`KEPT` is written once and has to stay; the others change with every round."""

    def __init__(self, edu: Edu, options: argparse.Namespace) -> None:
        super().__init__(edu, options)
        for register, value in KEPT.items():
            edu.bar.write(register, value)
        edu.bar.write(FACTORIAL, 12)

    def round(self, number: int) -> None:
        value = number * 0x9E3779B1 & U32
        self.edu.bar.write(LIVENESS, value)
        self.edu.expect(f"liveness of {value:#x}", self.edu.bar.read(LIVENESS), ~value & U32)
        if number % 16 == 0:
            self.check()

    def check(self) -> None:
        for register, value in KEPT.items():
            self.edu.expect(f"register {register:#x}, written long ago,", self.edu.bar.read(register), value)
        self.edu.expect("12!", self.edu.bar.read(FACTORIAL), 479001600)


class Interrupts(Workload):
    def __init__(self, edu: Edu, options: argparse.Namespace) -> None:
        options.interrupts = options.interrupts or "best"
        super().__init__(edu, options)
        self.raised = dict.fromkeys(edu.used, 0)

    def round(self, number: int) -> None:
        vector = self.edu.used[number % len(self.edu.used)]
        causes = number & U32 | 1
        self.edu.bar.write(SELECT_VECTOR, vector)
        self.edu.bar.write(RAISE, causes)
        self.raised[vector] += 1
        self.edu.expect(f"in round {number}, the interrupts on vector {vector}", self.edu.interrupted(vector), 1)
        self.edu.expect(f"in round {number}, the causes", self.edu.bar.read(CAUSES), causes)
        self.edu.acknowledge(causes)

    def finish(self) -> None:
        self.edu.expect_quiet()
        self.check()

    def check(self) -> None:
        counts = {number: self.edu.vectors[number].total for number in self.edu.used}
        self.edu.expect("the interrupts of all vectors", counts, self.raised)
        self.edu.seen["interrupts"] = sum(counts.values())


class Dma(Workload):
    """The processor writes the first page alone; all others are written by the device, and only read here."""

    def __init__(self, edu: Edu, options: argparse.Namespace) -> None:
        super().__init__(edu, options)
        self.memory = edu.device.dma_memory((options.pages + 1) * PAGE, address_bits=DMA_ADDRESS_BITS)
        self.written = [-1] * options.pages  # the round that wrote each page
        self.chance = random.Random(options.pages)

    def content(self, number: int) -> bytes:
        return random.Random(number).randbytes(PAGE) if number >= 0 else bytes(PAGE)

    def page(self, index: int) -> bytes:
        return bytes(self.memory.bytes[(index + 1) * PAGE : (index + 2) * PAGE])

    def round(self, number: int) -> None:
        index = self.chance.randrange(len(self.written))
        self.memory.bytes[:PAGE] = self.content(number)
        self.edu.transfer(self.memory.address, BUFFER, PAGE, 0)
        self.edu.transfer(BUFFER, self.memory.address + (index + 1) * PAGE, PAGE, TO_MEMORY)
        self.written[index] = number
        self.compare(index)
        self.compare(self.chance.randrange(len(self.written)))

    def compare(self, index: int) -> None:
        number = self.written[index]
        if self.page(index) != self.content(number):
            was = next((f"that of round {old}" for old in range(number) if self.page(index) == self.content(old)), "")
            self.edu.wrong.append(
                f"page {index} has not the content of round {number}, but {was or 'none ever written'}"
            )

    def check(self) -> None:
        for index in range(len(self.written)):
            self.compare(index)
        self.edu.seen["pages"] = sum(number >= 0 for number in self.written)


KINDS: dict[str, type[Workload]] = {"idle": Idle, "registers": Registers, "interrupts": Interrupts, "dma": Dma}


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    summary, _, more = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="workload", description=summary, epilog=more, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kind", choices=list(KINDS))
    parser.add_argument("--slot", default="", help="where the device is; needed when there are several")
    parser.add_argument("--access", choices=["auto", *ACCESS], default="auto")
    parser.add_argument("--interrupts", choices=["best", MSIX, MSI, INTX], default="", help="to be enabled")
    parser.add_argument("--vectors", type=int, default=0, metavar="N", help="use no more than the first N vectors")
    parser.add_argument("--pages", type=int, default=64, help="of memory, for the device to write")
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--started", metavar="FILE", default="")
    return parser.parse_args(arguments)


def work(workload: Workload, seconds: float, started: str) -> None:
    """Rounds until it is time, or until enough went wrong."""
    told: list[int] = []
    asked: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _frame: told.append(number))
    signal.signal(signal.SIGUSR1, lambda number, _frame: asked.append(number))
    edu = workload.edu
    rounds, longest = 0, 0.0
    before = began = time.monotonic()
    while not told and before - began < seconds and len(edu.wrong) < ENOUGH:
        workload.round(rounds)
        rounds += 1
        if started and rounds == 1:
            Path(started).write_text("right\n")
        now = time.monotonic()
        longest, before = max(longest, now - before), now
        if asked:
            asked.clear()
            workload.check()
            tell(f"{started}.now", {"seen": {**edu.seen, "rounds": rounds}, "wrong": edu.wrong})
    workload.finish()
    edu.seen |= {"rounds": rounds, "longest_round": round(longest, 4)}


def tell(file: str, what: dict[str, Any]) -> None:
    """Write a file that is never seen half written."""
    unfinished = Path(f"{file}.unfinished")
    unfinished.write_text(json.dumps(what))
    unfinished.rename(file)


def main() -> int:
    options = parse()
    report: dict[str, Any] = {"command": f"workload {options.kind}", "ok": False, "seen": {}, "wrong": []}
    began = time.monotonic()
    with ExitStack() as stack:
        try:
            device = open_device(find_device(IDS, options.slot), options.access)
            stack.enter_context(device)
            edu = Edu(device)
            report |= {"seen": edu.seen, "wrong": edu.wrong}
            workload = KINDS[options.kind](edu, options)
            report["device"] = {"slot": device.function.slot, "access": device.access, "interrupts": edu.kind}
            work(workload, options.seconds, options.started)
            report["ok"] = not edu.wrong
        except (DeviceError, OSError) as error:
            report["error"] = str(error)
    if len(found := report["wrong"]) > ENOUGH:
        report["wrong"] = [*found[:ENOUGH], f"and {len(found) - ENOUGH} more"]
    if options.started and not Path(options.started).exists():
        Path(options.started).write_text("failed\n")
    report["seconds"] = round(time.monotonic() - began, 3)
    print(json.dumps(report))
    return 0 if report["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
