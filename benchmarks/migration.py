"""What a device adds to a live migration: downtime and total time, against the same guest without it.

    python -m benchmarks.migration [--rounds 5] [--json FILE]

Guests with the device and without it are migrated in turn, so that a busy machine is busy for both; medians are
printed, and of those with it how long each part of the downtime was. The device writes so many pages while the guest is
copied (every second one: no two of them make a run), or has so many bytes of state, all of it different from zero and
none of it changing. Goal: with 1,000 dirty pages the downtime is at most 1.5 times that without a device, plus 20 ms.
The guest is idle.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from userdev.errors import VerdictError
from vfio_user.harness import BootedGuest, Conductor, Lab, Limits, Mode, Pair, Phase, Plan, Tuning

DEVICE = "benchmarks.migration_device:"
MEMORY = 1152  # MiB, of which the guest uses the first 256
GOAL_PAGES, GOAL_FACTOR, GOAL_MORE = 1000, 1.5, 0.02


STANDING = (Phase.PAUSE, Phase.DEVICE_STATE, Phase.DIRTY_PAGES, Phase.SWITCHOVER, Phase.RESTORE, Phase.RESUME)
"""What the downtime consists of. In the switchover QEMU sends what is dirty: no server can make that shorter."""


@dataclass(frozen=True)
class Setting:
    """What the device has to carry over."""

    name: str
    device: str = "Dirtier"
    pages: int = 0


SETTINGS = (
    *(Setting(f"{pages:,} dirty pages", pages=pages) for pages in (1, 10, 100, 1_000, 10_000, 100_000)),
    *(
        Setting(f"{size} of state", device)
        for size, device in (
            ("1 KiB", "State1K"),
            ("64 KiB", "State64K"),
            ("1 MiB", "State1M"),
            ("16 MiB", "State16M"),
            ("256 MiB", "State256M"),
        )
    ),
)


def with_device(lab: Lab, guest: BootedGuest, pair: Pair, tuning: Tuning, pages: int) -> dict[str, float]:
    """Migrate a guest whose device writes `pages` pages meanwhile."""

    def watch(phase: Phase) -> None:
        server = guest.device.server
        if phase is Phase.PRE_COPY and pages and server is not None:
            lines = pages.to_bytes(4, "little")
            answer = server.control.call("region_write", region="BAR0", offset=0, data=_base64(lines))
            assert answer == {}

    return _migrate(lab, guest, pair, Plan(tuning, Limits(total=300)), Mode.COORDINATED, watch)


def without_device(lab: Lab, guest: BootedGuest, pair: Pair, tuning: Tuning) -> dict[str, float]:
    """Migrate a guest that has none, as QEMU does it alone."""
    return _migrate(lab, guest, pair, Plan(tuning), Mode.DIRECT)


def _migrate(
    lab: Lab,
    guest: BootedGuest,
    pair: Pair,
    plan: Plan,
    mode: Mode,
    watch: Callable[[Phase], None] = lambda _: None,
) -> dict[str, float]:
    report = lab.migrate(guest, to=pair.other(guest.host), mode=mode, plan=plan, conductor=Conductor(watch))
    if not report.ok or report.downtime is None:
        raise VerdictError(f"{report.verdict}: {report.reason}", evidence=json.dumps(report.as_dict(), default=str))
    phases = {f"phase {phase.phase}": phase.seconds for phase in report.phases}
    return {"downtime": report.downtime, "total": report.seconds, **phases}


def measure(
    setting: Setting, rounds: int, lab: Lab, pair: Pair, alone: BootedGuest, tuning: Tuning
) -> dict[str, dict[str, float]]:
    """Medians with the device and without it."""
    options: dict[str, Any] = {"memory": MEMORY, "kernel_options": ("mem=256M",)}
    guest = lab.boot(f"{DEVICE}{setting.device}", migratable=True, host=pair.a, **options)
    found: dict[str, list[dict[str, float]]] = {"with": [], "without": []}
    for _ in range(rounds):
        found["with"].append(with_device(lab, guest, pair, tuning, setting.pages))
        found["without"].append(without_device(lab, alone, pair, tuning))
    guest.close()
    return {
        side: {name: statistics.median(one[name] for one in runs) for name in runs[0]} for side, runs in found.items()
    }


def _base64(data: bytes) -> str:
    import base64

    return base64.b64encode(data).decode()


@click.command(help=__doc__)
@click.option("--rounds", default=5, show_default=True)
@click.option("--only", default="", help="Settings whose name has this in it.")
@click.option("--channels", default=0, show_default=True, help="Streams of multifd, for both; 0: one, without it.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the figures here.")
def main(rounds: int, only: str, channels: int, json_file: Path | None) -> None:
    figures = {}
    print(f"{'':22}{'downtime':>12}{'without':>12}{'total':>12}{'without':>12}")
    with Lab("benchmark-migration", progress=lambda message: print(message, file=sys.stderr)) as lab:
        pair = lab.hosts()
        alone = lab.boot(host=pair.a, memory=MEMORY, kernel_options=("mem=256M",))
        for setting in SETTINGS:
            if only not in setting.name:
                continue
            medians = figures[setting.name] = measure(setting, rounds, lab, pair, alone, Tuning(channels=channels))
            there, bare = medians["with"], medians["without"]
            row = (there["downtime"] * 1e3, bare["downtime"] * 1e3, there["total"] * 1e3, bare["total"] * 1e3)
            goal = ""
            if setting.pages == GOAL_PAGES:
                most = bare["downtime"] * GOAL_FACTOR + GOAL_MORE
                goal = f"   goal {most * 1e3:.0f} ms: {'reached' if there['downtime'] <= most else 'MISSED'}"
            print(f"{setting.name:22}" + "".join(f"{figure:9.1f} ms" for figure in row) + goal, flush=True)
            parts = [f"{name} {there[f'phase {name}'] * 1e3:.1f} ms" for name in STANDING if f"phase {name}" in there]
            print(f"{'':22}of it: {', '.join(parts)}", flush=True)
    if json_file:
        json_file.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
