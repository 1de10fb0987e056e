#!/usr/bin/env python3
"""Keep a device busy, and check everything it does, until told to end: for what may be done to it meanwhile.

Runs until SIGTERM, or for --seconds. Prints one JSON object of the form that edu.py has; `seen` counts what was done
and has the longest time between two rounds. --started names a file that is written as soon as the first round was
right: "right", or when there will be none: "failed". At SIGUSR1 all is checked that else is checked in the end; what
is known (`seen` and `wrong`) is written to a file of that name with .now behind it.

Of an edu device (edu_work.py):

    workload idle        looks at the device's identification ten times a second
    workload registers   writes and reads registers; others must keep what they hold
    workload interrupts  raises interrupts on each vector in turn: every one must come, once, where it belongs
    workload dma         has the device write pages of memory, and in the end compares each page that it ever wrote

Of a disk, of NVMe or of virtio (disk_work.py), which is overwritten:

    workload fio         lets fio write in random order, many at a time, and verify what it wrote
    workload blocks      writes single blocks, and in the end compares each block that it ever wrote
    workload files       writes and syncs files on ext4, and in the end compares those that are left

Of a network card with a station behind it (net_work.py):

    workload ping        pings the station: each answer must have just what was sent
"""

from __future__ import annotations

import argparse
import functools
import json
import signal
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any

from guest_pci import INTX, MSI, MSIX, DeviceError
from guest_vfio import ACCESS
from work import Work

ENOUGH = 20  # wrong answers, after which more would tell nothing new
MOST_REST = 0.01  # seconds

KINDS = {
    "idle": ("edu_work", "Idle"),
    "registers": ("edu_work", "Registers"),
    "interrupts": ("edu_work", "Interrupts"),
    "dma": ("edu_work", "Dma"),
    "fio": ("disk_work", "Fio"),
    "blocks": ("disk_work", "Blocks"),
    "files": ("disk_work", "Files"),
    "ping": ("net_work", "Ping"),
}


USUAL = ("dma", "--slot", "01:00.0", "--seconds", "1", "--started", "/tmp/started")
"""Arguments, for an agent to parse once for all of its forks."""


@functools.cache
def parser() -> argparse.ArgumentParser:
    summary, _, more = (__doc__ or "").partition("\n\n")
    made = argparse.ArgumentParser(
        prog="workload", description=summary, epilog=more, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("kind", choices=list(KINDS))
    made.add_argument("--slot", default="", help="where the device is; needed when there are several")
    made.add_argument("--seconds", type=float, default=float("inf"))
    made.add_argument("--started", metavar="FILE", default="")
    disk = made.add_argument_group("of a disk")
    disk.add_argument("--bytes", type=int, default=0, metavar="N", help="fio and blocks use no more than the first N")
    edu = made.add_argument_group("of an edu device")
    edu.add_argument("--access", choices=["auto", *ACCESS], default="auto")
    edu.add_argument("--interrupts", choices=["best", MSIX, MSI, INTX], default="", help="to be enabled")
    edu.add_argument("--vectors", type=int, default=0, metavar="N", help="use no more than the first N vectors")
    edu.add_argument("--pages", type=int, default=64, help="of memory, for the device to write")
    return made


def chosen(options: argparse.Namespace) -> Work:
    module, name = KINDS[options.kind]
    work: Work = getattr(import_module(module), name)(options)
    return work


def keep_busy(work: Work, seconds: float, started: str) -> None:
    """Rounds until it is time, or until enough went wrong; after each a rest as long as it was, for whoever shares the
    processor: other work in the guest, and without KVM all that the host does.
    """
    told: list[int] = []
    asked: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _frame: told.append(number))
    signal.signal(signal.SIGUSR1, lambda number, _frame: asked.append(number))
    rounds, longest = 0, 0.0
    before = began = time.monotonic()
    while not told and before - began < seconds and len(work.wrong) < ENOUGH:
        start = time.monotonic()
        work.round(rounds)
        rounds += 1
        if started and rounds == 1:
            Path(started).write_text("right\n")
        now = time.monotonic()
        longest, before = max(longest, now - before), now
        if asked:
            asked.clear()
            work.check()
            tell(f"{started}.now", {"seen": {**work.seen, "rounds": rounds}, "wrong": work.wrong})
        time.sleep(min(now - start, MOST_REST))
    work.finish()
    work.seen |= {"rounds": rounds, "longest_round": round(longest, 4)}


def tell(file: str, what: dict[str, Any]) -> None:
    """Write a file that is never seen half written."""
    unfinished = Path(f"{file}.unfinished")
    unfinished.write_text(json.dumps(what))
    unfinished.rename(file)


def main() -> int:
    options = parser().parse_args()
    report: dict[str, Any] = {"command": f"workload {options.kind}", "ok": False}
    began = time.monotonic()
    with chosen(options) as work:
        try:
            work.begin()
            keep_busy(work, options.seconds, options.started)
            report["ok"] = not work.wrong
        except (DeviceError, OSError) as error:
            report["error"] = str(error)
    report |= {"seen": work.seen, "wrong": work.wrong[:ENOUGH], "device": work.device}
    if (more := len(work.wrong) - ENOUGH) > 0:
        report["wrong"].append(f"and {more} more")
    report["seconds"] = round(time.monotonic() - began, 3)
    print(json.dumps(report), flush=True)
    if options.started and not Path(options.started).exists():  # behind the report: who reads it ends this program
        Path(options.started).write_text("failed\n")
    return 0 if report["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
