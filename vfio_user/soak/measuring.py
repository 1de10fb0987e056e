"""What a soak measures beside its events: memory and descriptors of everybody, what grows, clocks that jump."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from statistics import median
from typing import Any

import psutil

from userdev.control import ControlError
from vfio_user.harness import BootedGuest
from vfio_user.soak.order import HOP

WATCHED: Mapping[str, tuple[float, float]] = {
    # What of an event's line must not grow: by which factor, and by how much beside, it may.
    "harness_fds": (1.0, 8),
    "harness_rss": (1.1, 8 << 10),  # it has a few KiB of each event
    "qemu_fds": (1.0, 6),
    "qemu_rss": (1.5, 1 << 20),  # what TCG has translated stays, up to 1 GiB (tcg/region.c), and each boot adds to it
    "servers_fds": (1.0, 8),
    "servers_rss": (1.5, 32 << 10),
    "interposers_fds": (1.0, 8),
    "interposers_rss": (1.5, 32 << 10),
    "downtime": (2.5, 0.1),
}
_ENOUGH = 20  # values, for a trend to mean something
_JUMP = 5.0  # seconds by which the time of the day may leave the time that has passed; NTP's slewing is far below


def trends(events: Sequence[Mapping[str, Any]]) -> list[str]:
    """The figures that have grown from the first to the last quarter of those that have them; by medians, so that one
    slow event is none.
    """
    found = []
    for name, (factor, more) in WATCHED.items():
        for some in _alike(name, events):
            values = [event[name] for event in some if event.get(name) is not None]
            if len(values) < _ENOUGH:
                continue
            quarter = len(values) // 4
            first, last = median(values[:quarter]), median(values[-quarter:])
            if last > first * factor + more:
                found.append(f"{name} grew from {first:g} to {last:g}")
                break
    return found


def _alike(name: str, events: Sequence[Mapping[str, Any]]) -> Sequence[Sequence[Mapping[str, Any]]]:
    """Events whose values mean the same: behind a hop before a hop the harness has all that the next one needs."""
    if name != "harness_fds":
        return [events]
    kinds = [event.get("event") for event in events]
    before_hop = [both == (HOP, HOP) for both in zip_longest(kinds, kinds[1:])]
    return [
        [event for event, is_so in zip(events, before_hop, strict=True) if is_so is wanted] for wanted in (False, True)
    ]


def sizes(guest: BootedGuest) -> dict[str, int]:
    """Descriptors, and memory in KiB, of harness and QEMU, and in all of servers and interposers."""
    processes: dict[str, list[int]] = {"harness": [os.getpid()], "qemu": [guest.machine.child.pid]}
    for plugged in guest.devices:
        if plugged.server is None or not plugged.server.shares_memory:
            continue
        if plugged.server.is_interposed:
            processes.setdefault("interposers", []).append(plugged.server.interposer.child.pid)
        try:
            processes.setdefault("servers", []).append(plugged.server.owner.server_pid())
        except ControlError:  # it is being replaced
            continue
    found: dict[str, int] = {}
    for name, pids in processes.items():
        try:
            seen = [psutil.Process(pid) for pid in pids]
            found |= {
                f"{name}_fds": sum(process.num_fds() for process in seen),
                f"{name}_rss": sum(process.memory_info().rss for process in seen) >> 10,
            }
        except psutil.Error:  # it has ended: the verdict says so
            continue
    return found


class Clock:
    """The time of the day, watched for jumps: times of a soak are measured by the one that does not jump."""

    def __init__(self) -> None:
        self._offset = self._now()

    def jump(self) -> str:
        """What to say of a jump since this was asked last; nothing where there was none."""
        moved = self._now() - self._offset
        if abs(moved) < _JUMP:
            return ""
        self._offset += moved
        return f"the clock of this machine jumped by {moved:+.0f} s; what is told of durations is not touched by that"

    def _now(self) -> float:
        return time.time() - time.monotonic()
