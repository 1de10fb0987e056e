"""What can go wrong around a night while it runs: a disk that fills up, a clock that jumps."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from userdev.counted import counted

SPARE_MIB = 512
"""What is to be free where the results are: what passed gives up its artifacts for that."""

HELD_BACK_MIB = 8
"""What a night's last summary, its page and the history of nights may take."""

JUMP_SECONDS = 2.0
"""From so many seconds on a clock has jumped; one that is set right by NTP goes more slowly."""


def free_mib(folder: Path) -> int:
    """MiB that may still be written there."""
    return shutil.disk_usage(folder).free >> 20


@contextmanager
def held_back(folder: Path) -> Iterator[IO[bytes]]:
    """Hold space back for the last words of a block whose disk is filled by others; once truncated, they may have it.

    It is a file without a name, of which nothing is left whatever becomes of the process.
    """
    with tempfile.TemporaryFile(dir=folder) as held:
        with suppress(OSError):  # there is not so much: what there is does
            os.posix_fallocate(held.fileno(), 0, HELD_BACK_MIB << 20)
        yield held


class Space:
    """The space for results in a folder; `free` is asked how many MiB there are."""

    def __init__(self, folder: Path, *, spare: int = SPARE_MIB, free: Callable[[Path], int] = free_mib) -> None:
        self._folder = folder
        self._spare = spare
        self._free = free
        self.given_up: set[Path] = set()
        """Folders of tests that passed, which are there no longer."""

    def keep(self, passed: Iterable[Path]) -> None:
        """Remove folders of tests that passed, the oldest first, until there is enough space or none is left."""
        for folder in passed:
            if self._free(self._folder) >= self._spare:
                return
            if folder not in self.given_up:
                shutil.rmtree(folder, ignore_errors=True)
                self.given_up.add(folder)

    @property
    def remark(self) -> str:
        """What to say of it; "" where nothing was given up."""
        if not self.given_up:
            return ""
        given_up = counted(len(self.given_up), "case")
        return f"the disk was nearly full: the artifacts of {given_up} that passed were given up"


class Clock:
    """The machine's clock against one that does not jump."""

    def __init__(self, now: Callable[[], float] = time.time, steady: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._steady = steady
        self._began = steady()
        self._offset = now() - steady()
        self.remarks: list[str] = []

    @property
    def seconds(self) -> float:
        """Since the beginning, whatever the clock did."""
        return self._steady() - self._began

    def look(self) -> None:
        """Remark a jump since the last look."""
        offset = self._now() - self._steady()
        if abs(jump := offset - self._offset) > JUMP_SECONDS:
            self.remarks.append(f"the machine's clock jumped by {jump:+.0f} s after {self.seconds:.0f} s")
        self._offset = offset
