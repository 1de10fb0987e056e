"""How many hops a minute a soak makes, what they consist of, and whether anything grows with them.

    python -m benchmarks.hops [--hops 100] [--json FILE]

`vfio-user soak` with an edu at DMA in a guest of 512 MiB goes back and forth. A minute's hops are those of the median
time from the end of one to the end of the next, with all that is looked at and started between. What grows is the
difference between the last third of hops and the third before, by hop: the first has what any process takes once.
Beside it stand hops of a guest that has no device and is not looked at, in the same way: the floor of any soak.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import click

from vfio_user.harness import Lab, Plan, Tuning

MEMORY = 512  # MiB
GROWING = {"harness": "harness_rss", "interposers": "interposers_rss", "servers": "servers_rss", "QEMU": "qemu_rss"}
"""What grows: its key in an event's line, in KiB."""
MOST_BARE = 20


def soak(hops: int, folder: Path) -> list[dict[str, Any]]:
    """The lines of a soak's hops."""
    words = ["soak", "--hops", str(hops), "--device", "edu", "--workload", "dma", "--memory", str(MEMORY), "--json"]
    command = [sys.executable, "-P", "-m", "vfio_user", *words]
    done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, text=True, check=False)
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode:
        raise click.ClickException(f"the soak ended with {done.returncode} after {len(lines)} hops")
    return lines


def of_no_device(hops: int) -> float:
    """Seconds of the median hop of a guest without a device."""
    with Lab("benchmark-hops", progress=lambda message: print(message, file=sys.stderr)) as lab:
        pair = lab.hosts()
        guest = lab.boot(migratable=True, host=pair.a, memory=MEMORY)
        taken = []
        for _ in range(hops):
            began = time.monotonic()
            report = lab.migrate(guest, to=pair.other(guest.host), plan=Plan(Tuning(channels=2)))
            taken.append(time.monotonic() - began)
            if not report.ok:
                raise click.ClickException(report.sentence)
    return statistics.median(taken)


def period(lines: list[dict[str, Any]]) -> float:
    """Seconds from hop to hop, of the median one."""
    ends = [float(each["at"]) for each in lines]
    return statistics.median(end - before for before, end in pairwise(ends))


def growth(lines: list[dict[str, Any]], key: str) -> float:
    """KiB a hop."""
    third = max(1, len(lines) // 3)
    before, last = lines[-2 * third : -third] or lines, lines[-third:]
    grown: float = statistics.median(each[key] for each in last) - statistics.median(each[key] for each in before)
    return grown / third


@click.command(help=__doc__)
@click.option("--hops", type=click.IntRange(min=2), default=100, show_default=True)
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the figures here.")
def main(hops: int, json_file: Path | None) -> None:
    with tempfile.TemporaryDirectory(prefix="vfu-") as folder:
        lines = soak(hops, Path(folder))
    figures: dict[str, Any] = {
        "a_minute": 60 / period(lines),
        "floor": 60 / of_no_device(min(hops, MOST_BARE)),
        "phases": {
            phase: statistics.median(each["phases"].get(phase, 0.0) for each in lines) for phase in lines[0]["phases"]
        },
        "growth": {name: growth(lines, key) for name, key in GROWING.items()},
    }
    print(f"hops a minute: {figures['a_minute']:.1f}; of a guest without a device: {figures['floor']:.1f}")
    print("of one: " + ", ".join(f"{phase} {seconds:.3f} s" for phase, seconds in figures["phases"].items()))
    print("grows by hop: " + ", ".join(f"{name} {size:.2f} KiB" for name, size in figures["growth"].items()))
    if json_file:
        json_file.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
