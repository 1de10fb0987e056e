"""Looking rather than sleeping: to wake a thread takes longer than to do a request.

The rule is that of vfio-user's sessions (vfio_user/server/connection.py): one looks for a moment where sleeps were
short, and whoever else wants the core gets it between two looks. The times are longer: a guest without KVM takes 130 us
from the end of a request to its next one on a quiet machine. It takes 350 us on a busy one, where 600 us here had its
reads, one at a time, go from 0.6 of those of QEMU's own disk to 0.9; but a guest of two processors on two cores, which
want both, was slower by half.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from time import perf_counter_ns

LOOK_NS = 200_000
"""How long a look may be in vain."""

SHORT_NS = 200_000
"""A sleep that was shorter would have been better spent looking."""

AGAIN = 16
"""Short sleeps in a row that it takes to look again after a long one."""

TURNS = 32
"""After so many that were worth it, there is one without."""

YIELDED_NS = 4_000
"""A yield that takes longer has let somebody run who waited for this core: then sleeping is better than looking."""


class Watch:
    """Of one thread."""

    def __init__(self) -> None:
        self._short = -AGAIN
        self._turns = 0

    def slept(self, ns: int) -> None:
        """Learn from how long a sleep was."""
        self._short = min(self._short + 1, 1) if ns < SHORT_NS else -AGAIN

    @property
    def is_worth_while(self) -> bool:
        """Whether to look: sleeps have been short, and it is not time for what else there is."""
        self._turns += 1
        if self._turns > TURNS:
            self._turns = 0
        return self._short > 0 and self._turns > 0

    def until(self, found: Callable[[], bool], given_up: Callable[[], bool]) -> bool:
        """Look until something is `found`, which is told, or for long enough."""
        begin = now = perf_counter_ns()
        while now - begin < LOOK_NS and not given_up():
            if found():
                return True
            before = perf_counter_ns()
            os.sched_yield()
            now = perf_counter_ns()
            if now - before > YIELDED_NS:
                return False
        return False
