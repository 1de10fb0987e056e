"""Whether `vfio-user fuzz` and `vhost-user fuzz` find what is wrong, and nothing else: `scripts/fuzz seeded`.

Bugs of `tests/seeded_bugs/` are put into servers of ours, of which the fuzzer is told nothing but how they are started;
each has to be found within a minute, by a cause that comes again. Then the servers as they are have half an hour of all
of them, in which nothing may be found. Status 1 where a bug was not found, or something was where nothing is wrong.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.seeded_bugs.catalogue import load
from tests.seeded_bugs.planting import environment
from userdev.conformance.targets import CommandServer
from userdev.counted import counted
from userdev.fuzz import Bounds, Campaign, Find, Summary
from userdev.fuzz.drawing import sequences
from vfio_user.client.conformance import greeting
from vfio_user.fuzz import VfioUserSubject
from vfio_user.wire import CURRENT
from vhost_user.frontend.conformance import DEVICES, greet
from vhost_user.fuzz import VhostUserSubject

VFIO, VHOST = "vfio_user", "vhost_user"
LENGTH = 40
SEED = 1
"""For bugs: whether one is found within its time is not to depend on the night."""
REDUCTION = 10.0
"""Seconds, behind those that a bug has to be found in."""


@dataclass(frozen=True)
class Program:
    """A server of ours: its protocol, its device, and its options. {image} is the path of a new image of 1 MiB."""

    protocol: str
    device: str
    options: str = ""

    def __str__(self) -> str:
        return f"{self.protocol.replace('_', '-')} {self.device} {self.options}".strip()

    def command(self, folder: Path) -> str:
        """How it is started."""
        image = folder / "image"
        image.write_bytes(bytes(1 << 20))
        options = self.options.format(image=image)
        return f"{sys.executable} -P -m {self.protocol} serve {self.device} {options} --socket-path {{socket}}"


EDU = Program(VFIO, "edu", "--write-multiple")
NVME = Program(VFIO, "nvme", "--image memory:1M --map-doorbells memfd")
RNG, BLK = Program(VHOST, "rng"), Program(VHOST, "blk", "--image {image}")

BUGS: dict[str, Program] = {
    "wire-reply-without-flag": EDU,
    "wire-region-info-argsz": NVME,
    "wire-version-without-nul": EDU,
    "wire-fds-of-broken-message-leak": EDU,
    "version-minor-not-min": EDU,
    "session-fd-leak": EDU,
    "session-posted-write-answered": EDU,
    "session-maps-of-old-client-kept": EDU,
    "session-partial-multi-write": EDU,
    "session-reset-not-told-to-migration": EDU,
    "session-answered-before-the-effect": EDU,
    "session-posted-write-reordered": EDU,
    "dma-overlap-accepted": EDU,
    "dma-map-keeps-fd": EDU,
    "mig-feature-reply-size": EDU,
    "state-field-not-saved": EDU,
    "reset-keeps-one-value": EDU,
    "pci-write-mask-ignored": EDU,
    "pci-neighbours-cleared": EDU,
    "pci-bar-size-doubled": EDU,
    "pci-reset-keeps-command": EDU,
    "pci-msix-count": EDU,
    "irq-vector-off-by-one": EDU,
    "vhost-log-only-for-rings-that-start": RNG,
    "vhost-table-half-changed": RNG,
    "vhost-removed-by-offset": RNG,
    "vhost-split-event-index": RNG,
    "vhost-packed-event-wrap": RNG,
    "vhost-refused-message-keeps-its-descriptors": RNG,
    "vhost-writes-to-a-readable-buffer": BLK,
    "vhost-blk-writes-the-header": BLK,
}
"""Those that break a rule of every server's; what is wrong with a device alone, no fuzzer can know that knows none."""

UNCHANGED = (
    EDU,
    Program(VFIO, "edu", "--flr true --pm true --msix 0"),
    Program(VFIO, "gpio", "--write-multiple"),
    NVME,
    Program(VFIO, "nvme", "--image {image}"),
    RNG,
    BLK,
    Program(VHOST, "net"),
)


@dataclass
class Heard:
    """Keeps what was found."""

    finds: list[Find] = field(default_factory=list)
    found_at: float = 0.0
    """When the last one was, before it was reduced."""

    def played(self, summary: Summary) -> None:
        """Nothing: the end is told."""

    def found(self, find: Find) -> None:
        """Note when; what is kept is told."""
        self.found_at = time.monotonic()

    def reducing(self, left: int, tries: int) -> None:
        """Nothing: the end is told."""

    def kept(self, find: Find, path: Path | None) -> None:
        """Keep it."""
        self.finds.append(find)


@contextmanager
def player(program: Program, folder: Path, bug: str) -> Iterator[VfioUserSubject | VhostUserSubject]:
    """A player of the program, with this bug in it if any."""
    planted = environment(load()[bug] if bug else None, folder)
    greeted: Callable[..., None] = greeting(CURRENT) if program.protocol == VFIO else greet
    with CommandServer(program.command(folder), folder, greeted, timeout=10, environment=planted) as target:
        made = (
            VfioUserSubject(target, CURRENT, timeout=10)
            if program.protocol == VFIO
            else VhostUserSubject(target, DEVICES[program.device], timeout=10)
        )
        try:
            yield made
        finally:
            made.close()


def fuzz(program: Program, seed: int, bounds: Bounds, bug: str = "") -> tuple[Summary, Heard]:
    """Fuzz a program, with this bug in it if any."""
    heard = Heard()
    with tempfile.TemporaryDirectory(prefix="vfu-") as folder, player(program, Path(folder), bug) as made:
        wrong = made.prepare()
        kinds = made.kinds()
        drawn = sequences(kinds, seed, LENGTH) if kinds else iter(())
        summary = Campaign(made, drawn, seed=seed, bounds=bounds, listener=heard, folder=None).run(wrong)
    return summary, heard


def seeded(bugs: list[str], seconds: float, seed: int) -> int:
    """Look for each of these bugs; how many were not found."""
    missed = 0
    for bug in bugs:
        begin = time.monotonic()
        summary, heard = fuzz(BUGS[bug], seed, Bounds(seconds, finds=1, reduction=REDUCTION), bug)
        if summary.interrupted:
            return missed + 1
        took = (heard.found_at or time.monotonic()) - begin
        good = [find for find in heard.finds if find.reproduced]
        missed += not good
        what = f"{good[0].cause}, {counted(len(good[0].steps), 'step')}" if good else "NOT FOUND"
        print(f"{bug:<40} {took:5.1f} s, {summary.sequences:4} sequences: {what}", flush=True)
    return missed


def unchanged(seconds: float, seed: int) -> int:
    """Look at our servers as they are, for so long in all; how many finds there were."""
    count = 0
    for program in UNCHANGED:
        summary, heard = fuzz(program, seed, Bounds(seconds / len(UNCHANGED)))
        finds = heard.finds
        count += len(finds)
        told = f"{summary.sequences:,} sequences, {summary.steps:,} steps in {summary.seconds:.0f} s"
        print(f"{program!s:<50} {told}: {counted(len(finds), 'find')}", flush=True)
        for find in finds:
            print(f"  {find.what}", *(f"    {step}" for step in find.steps), sep="\n", flush=True)
        if summary.interrupted:
            return count + 1
    return count


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(prog="scripts/fuzz seeded", description=__doc__)
    parser.add_argument("bugs", nargs="*", metavar="BUG", help="these bugs instead of all")
    parser.add_argument("--seconds", type=float, default=60.0, help="for each bug (60); 0 leaves them out")
    parser.add_argument("--unchanged", type=float, default=1800.0, help="seconds for all servers as they are (1800)")
    parser.add_argument("--seed", type=int, default=1, help="for servers as they are; bugs have the same each time (1)")
    arguments = parser.parse_args()
    if unknown := set(arguments.bugs) - BUGS.keys():
        parser.error(f"{', '.join(sorted(unknown))}: not among those that are tried: {', '.join(BUGS)}")
    missed = seeded(arguments.bugs or list(BUGS), arguments.seconds, SEED) if arguments.seconds else 0
    found = 0 if arguments.bugs else unchanged(arguments.unchanged, arguments.seed)
    print(f"{missed} bugs were not found, {found} finds where nothing is wrong")
    return int(bool(missed or found))


if __name__ == "__main__":
    sys.exit(main())
