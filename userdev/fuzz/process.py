"""What is asked of a server's process from outside: descriptors, mappings and memory that it may not gather."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import astuple, dataclass
from pathlib import Path

from userdev.counted import counted
from userdev.fuzz.finds import Found, Oracle
from userdev.process import Deadline

DESCRIPTORS = Oracle("descriptors", "a client that has left leaves no descriptor behind")
MAPPINGS = Oracle("mappings", "a client that has left leaves none of its memory mapped")
GROWTH = Oracle("growth", "clients that have left leave no memory behind")

MAX_GROWTH = 64 << 20
"""Bytes by which a process may grow: that of a Python or Go program goes up and down by some MiB."""

CLOSING_SECONDS = 0.2
"""That a process which has more than it had is looked at again: it may be about to close what a client left, and have
another thread for that. Each try of a reduction takes so long where it does not.
"""
NOTES = 3
_OF_CLIENTS = ("/memfd:",)
"""How memory that clients share is called in /proc/PID/maps."""


@dataclass(frozen=True)
class Holdings:
    """What a process has."""

    descriptors: int
    mappings: int
    memory: int

    def least(self, other: Holdings) -> Holdings:
        """The least that there was of each."""
        return Holdings(*map(min, astuple(self), astuple(other)))

    @classmethod
    def of(cls, pid: int) -> Holdings | None:
        """Count them; None: there is no such process any more, or it is not ours to look at."""
        with suppress(OSError):
            base = Path(f"/proc/{pid}")
            descriptors = sum(1 for _ in (base / "fd").iterdir())
            maps = (base / "maps").read_text().splitlines()
            mappings = sum(any(name in line for name in _OF_CLIENTS) for line in maps)
            memory = int((base / "statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")
            return cls(descriptors, mappings, memory)
        return None


class Watched:
    """The process of a server, compared with what it was behind its first client."""

    def __init__(self) -> None:
        self._first: tuple[int, Holdings] | None = None

    def note(self, pid: int | None, ask: Callable[[], object]) -> None:
        """Take what a process has for what it is to have, at the same moment of a session as `check`.

        It is looked at a few times, and asked something between that: it may be about to close what is another's.
        """
        self._first = None
        for _ in range(NOTES):
            now = Holdings.of(pid) if pid is not None else None
            if pid is None or now is None:
                return
            self._first = pid, now if self._first is None else self._first[1].least(now)
            ask()

    def check_again(self, pid: int | None, ask: Callable[[], object]) -> None:
        """`check`, until it has no more than it had, or its time is over; it is asked something in between.

        Raises:
            Found: it has more still.
        """
        deadline = Deadline(CLOSING_SECONDS)
        while not deadline.passed:
            try:
                return self.check(pid)
            except Found:
                ask()
        return self.check(pid)

    def check(self, pid: int | None) -> None:
        """Compare, at a moment when it has one client that has done nothing yet; another process says nothing.

        Raises:
            Found: it has more than it had.
        """
        now = Holdings.of(pid) if pid is not None else None
        if now is None or self._first is None or self._first[0] != pid:
            return
        first = self._first[1]
        if now.descriptors > first.descriptors:
            more = now.descriptors - first.descriptors
            raise Found(
                DESCRIPTORS, "left open", f"the server has {counted(more, 'descriptor')} more than before this sequence"
            )
        if now.mappings > first.mappings:
            more = now.mappings - first.mappings
            raise Found(MAPPINGS, "left mapped", f"the server has {more} mappings of client memory more than before")
        if now.memory - first.memory > MAX_GROWTH:
            grown = now.memory - first.memory >> 20
            raise Found(GROWTH, "grown", f"the server has grown by {grown} MiB since its first client")
