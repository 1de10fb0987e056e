"""What a process has of others, seen from outside: for tests that ask whether everything was let go."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

_OWN = "memfd:vfio-user-memory"
"""What a device declares with `memory` (vfio_user/migration/memory.py)."""


def client_things(pid: int) -> list[str]:
    """What a server has of a client: connected sockets (but for the one it listens at), memory files, eventfds.

    Memory that is the device's own is not the client's.
    """
    things = []
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):
            things.append(str(descriptor.readlink()))
    maps = [line for line in Path(f"/proc/{pid}/maps").read_text().splitlines() if _is_memory(line)]
    sockets = [thing for thing in things if thing.startswith("socket:")]
    return sockets[1:] + maps + [thing for thing in things if _is_memory(thing) or "eventfd" in thing]


def _is_memory(thing: str) -> bool:
    return "memfd:" in thing and _OWN not in thing


def anonymous(pid: int) -> int:
    """KiB of memory that a process has for itself alone, the guest's memory not counted."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss_Anon:"))
