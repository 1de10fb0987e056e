"""What declared memory costs: a reset, a digest and a migration of a BAR of which nothing, or little, was used.

    python -m benchmarks.declared_memory [--rounds 5] [--json FILE]

Beside each stands what it cost when all that was declared was looked at: zeros written over 1 GiB, 1 GiB hashed, the
pages of 1 GiB compared and those of another 1 GiB swapped with it; measured here, in the same run. Goals: 100 times
faster for 1 GiB; a DEVICE_RESET of an untouched BAR of 8 GiB within 20 ms, and less than 1 MiB more resident memory.
Each is measured in a process of its own.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click

from vfio_user.client import Client
from vfio_user.device import Bar, PciDevice, PciIds, memory
from vfio_user.server import Server
from vfio_user.wire.constants import MigrationState

GIB = 1 << 30
PIECE = 64 << 10
USED = 16 << 20
GOAL_RATIO, GOAL_SECONDS, GOAL_RESIDENT = 100, 0.02, 1 << 20


@dataclass
class Figure:
    """Seconds of the best round, and bytes of resident memory that it left behind."""

    what: str
    seconds: float
    resident: int
    baseline: str = ""
    ratio: float = 0.0
    goal: str = ""


def device(gigabytes: int) -> type[PciDevice]:
    class Gpu(PciDevice):
        ids = PciIds(0x1002, 0x75C8, class_code=0x120000)
        bars = (Bar(0, size=gigabytes * GIB, bits=64, prefetchable=True),)
        vram: memoryview = memory(gigabytes * GIB, bar=0, mmap=True)

    return Gpu


def resident() -> int:
    """Bytes, of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE


def measured(rounds: int, work: Callable[[], object], prepare: Callable[[], object] = int) -> tuple[float, int]:
    """(seconds of the best round, growth of resident memory over all of them)"""
    best, before = float("inf"), resident()
    for _ in range(rounds):
        prepare()
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
    return best, resident() - before


def reset(gigabytes: int, used: int, rounds: int) -> tuple[float, int]:
    """DEVICE_RESET, as a client asks for it."""
    gpu: Any = device(gigabytes)()
    with tempfile.TemporaryDirectory() as folder:
        address = f"unix:{folder}/socket"
        with Server(gpu, address), Client.connect(address) as client:
            client.reset()  # what the first of anything costs is not the memory's
            return measured(rounds, client.reset, lambda: fill(gpu.vram, used))


def digest(gigabytes: int, used: int, rounds: int) -> tuple[float, int]:
    gpu: Any = device(gigabytes)()
    fill(gpu.vram, used)
    return measured(rounds, gpu.digest)


def move(gigabytes: int, used: int, rounds: int) -> tuple[float, int]:
    """A state saved, and loaded by another device."""
    source, target = device(gigabytes)(), device(gigabytes)()
    fill(source.vram, used)  # type: ignore[attr-defined]
    with tempfile.TemporaryDirectory() as folder:
        one, other = f"unix:{folder}/1", f"unix:{folder}/2"
        with Server(source, one), Server(target, other), Client.connect(one) as left, Client.connect(other) as right:

            def carry() -> None:
                right.load_state(left.save())

            def run() -> None:
                for client in (left, right):
                    client.set_migration_state(MigrationState.RUNNING)

            return measured(rounds, carry, run)


def zeroed(gigabytes: int, used: int, rounds: int) -> tuple[float, int]:
    """Zeros over all of it."""
    view = memoryview(mmap.mmap(-1, gigabytes * GIB))

    def clear() -> None:
        view[:] = bytes(len(view))

    return measured(rounds, clear)


def hashed(gigabytes: int, used: int, rounds: int) -> tuple[float, int]:
    """All of it hashed."""
    view = memoryview(mmap.mmap(-1, gigabytes * GIB))
    return measured(rounds, lambda: hashlib.sha256(view).hexdigest())


def walked(gigabytes: int, used: int, rounds: int) -> tuple[float, int]:
    """All of it looked at by a source, hashed on both sides, and compared by a destination with what came."""
    view, received = (memoryview(mmap.mmap(-1, gigabytes * GIB)) for _ in range(2))
    zeros = bytes(PIECE)

    def walk() -> None:
        for at in range(0, len(view), PIECE):
            assert bytes(view[at : at + PIECE]) == zeros
        for at in range(0, len(view), PIECE):
            assert bytes(view[at : at + PIECE]) == bytes(received[at : at + PIECE])
        for _ in range(2):
            hashlib.sha256(view).hexdigest()

    return measured(rounds, walk)


def fill(view: memoryview, size: int) -> None:
    """Use so many bytes, here and there."""
    for at in range(0, size, PIECE):
        place = at * (len(view) // USED)
        view[place : place + PIECE] = b"\xa5" * PIECE


COSTS: dict[str, tuple[Callable[..., tuple[float, int]], Callable[..., tuple[float, int]]]] = {
    "DEVICE_RESET": (reset, zeroed),
    "digest": (digest, hashed),
    "migration": (move, walked),
}


def figures(rounds: int) -> list[Figure]:
    found = []
    for name, (work, former) in COSTS.items():
        baseline, _ = apart(former, 1, 0, 2)
        for gigabytes, used in ((1, 0), (8, 0), (1, USED), (8, USED)):
            seconds, grown = apart(work, gigabytes, used, rounds)
            figure = Figure(f"{name}, {gigabytes} GiB, {used >> 20} MiB used", seconds, grown)
            if gigabytes == 1:
                figure.baseline, figure.ratio = f"{former.__name__}: {baseline * 1e3:.0f} ms", baseline / seconds
            if not used and gigabytes == 1:
                figure.goal = _goal(figure.ratio >= GOAL_RATIO, f"{GOAL_RATIO} times")
            if not used and gigabytes == 8 and name == "DEVICE_RESET":
                within = seconds < GOAL_SECONDS and grown < GOAL_RESIDENT
                figure.goal = _goal(within, f"{GOAL_SECONDS * 1e3:.0f} ms and {GOAL_RESIDENT >> 10} KiB")
            found.append(figure)
            print(
                f"{figure.what:38}{seconds * 1e3:10.3f} ms{grown >> 10:10} KiB   {figure.baseline:18}"
                + (f"{figure.ratio:9.0f} times" if figure.ratio else " " * 15)
                + f"   {figure.goal}",
                flush=True,
            )
    return found


def _goal(reached: bool, goal: str) -> str:
    return f"goal {goal}: {'reached' if reached else 'MISSED'}"


def apart(work: Callable[..., tuple[float, int]], *arguments: int) -> tuple[float, int]:
    """In a process of its own, so that what one leaves behind is not the next one's."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(work, arguments)


@click.command(help=__doc__)
@click.option("--rounds", default=5, show_default=True)
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the figures here.")
def main(rounds: int, json_file: Path | None) -> None:
    print(f"{'':38}{'best':>13}{'resident':>14}   {'all looked at':18}")
    found = figures(rounds)
    if json_file:
        json_file.write_text(json.dumps([asdict(figure) for figure in found], indent=2) + "\n")
    if any("MISSED" in figure.goal for figure in found):
        sys.exit(1)


if __name__ == "__main__":
    main()
