"""How soon a guest answers: booted, and restored from its checkpoint, both in the same run.

    python -m benchmarks.boot [--rounds 5] [--image minimal] [--json FILE]

Each round boots and restores in turn, so that a busy machine is busy for both. Times are from the start of QEMU, in
seconds; the medians are printed, and how often faster a restore is.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

from vfio_user.harness import BootedGuest, Lab

GOALS = {"restore, agent answers": 0.2, "restore, SSH command": 0.6}


def by_agent(guest: BootedGuest) -> None:
    """`boot` returns when the agent has answered."""


def by_agent_command(guest: BootedGuest) -> None:
    guest.succeed("true")


def by_ssh(guest: BootedGuest) -> None:
    guest.ssh().succeed("true")


ENDINGS: dict[str, Callable[[BootedGuest], None]] = {
    "agent answers": by_agent,
    "agent command": by_agent_command,
    "SSH command": by_ssh,
}


def measure(rounds: int, image: str) -> dict[str, list[float]]:
    """Seconds of every round, by "boot" or "restore" and the ending."""
    times: dict[str, list[float]] = {}
    with Lab("benchmark-boot", progress=lambda message: print(message, file=sys.stderr)) as lab:
        lab.boot(image=image).close()  # provisions, and makes the checkpoint
        for round_number in range(rounds):
            for ending, reach in ENDINGS.items():
                for start, fresh in (("boot", True), ("restore", False)):
                    began = time.monotonic()
                    guest = lab.boot(image=image, fresh=fresh, name=f"{start}{round_number}-{ending.split()[0]}")
                    reach(guest)
                    times.setdefault(f"{start}, {ending}", []).append(time.monotonic() - began)
                    guest.close()
    return times


def main() -> None:
    arguments = argparse.ArgumentParser(prog="python -m benchmarks.boot", description=(__doc__ or "").split("\n")[0])
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--image", default="minimal")
    arguments.add_argument("--json", type=Path, metavar="FILE", help="write all times there")
    options = arguments.parse_args()
    times = measure(options.rounds, options.image)
    medians = {name: statistics.median(values) for name, values in times.items()}
    for name, median in medians.items():
        goal = f"   goal {GOALS[name]:.1f}" if name in GOALS else ""
        print(f"{name:24} {median:6.2f} s   ({min(times[name]):.2f} to {max(times[name]):.2f}){goal}")
    ratios = {ending: medians[f"boot, {ending}"] / medians[f"restore, {ending}"] for ending in ENDINGS}
    for ending, ratio in ratios.items():
        print(f"restore is {ratio:.1f} times faster to: {ending}")
    if options.json:
        options.json.write_text(json.dumps({"seconds": times, "medians": medians, "ratios": ratios}, indent=2) + "\n")


if __name__ == "__main__":
    main()
