"""How many descriptors this process has, for tests of what leaves none behind; and whether any test has left some."""

from __future__ import annotations

import gc
import os
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, Self

from userdev.counted import counted

ENDING_SECONDS = 10.0
"""That a thread has to close what it had: it may be told to end and not be waited for."""
LOOK_SECONDS = 0.01


def fd_count(*, collect: bool = False) -> int:
    """Open descriptors, the one that looks among them; `collect`: without what is kept by frames and circles only."""
    if collect:
        gc.collect()
    return len(_numbers())


class Descriptors(NamedTuple):
    """Those that are open."""

    numbers: set[str]
    lasting: int
    """How many of them the process keeps, once it has needed them: those of the loop of all QMP connections."""

    @classmethod
    def now(cls) -> Self:
        qmp = sys.modules.get("vfio_user.harness.qmp")
        return cls(_numbers(), 3 * len(qmp._shared) if qmp is not None else 0)

    @property
    def transient(self) -> int:
        return len(self.numbers) - self.lasting

    def left(self) -> list[str]:
        """What more is open when threads and circles had their time to end."""
        for collect in (lambda: None, lambda: gc.collect(1), gc.collect):  # the young are few
            collect()
            if Descriptors.now().transient <= self.transient:
                return []
        end = time.monotonic() + ENDING_SECONDS
        while (now := Descriptors.now()).transient > self.transient:
            if time.monotonic() > end:
                kinds = Counter(map(_kind, now.numbers - self.numbers))
                found = [f"{count} of {kind}" for kind, count in kinds.items() if kind]
                return found or [counted(now.transient - self.transient, "descriptor")]
            time.sleep(LOOK_SECONDS)
        return []


def _numbers() -> set[str]:
    return set(os.listdir("/proc/self/fd"))  # noqa: PTH208 - before and behind each test: paths take five times as long


def _kind(number: str) -> str:
    with suppress(OSError):  # it is the one that has looked
        return str(Path("/proc/self/fd", number).readlink())
    return ""
