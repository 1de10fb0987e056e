"""Looking rather than sleeping: to wake a thread takes longer than to do a request.

What a sleep takes says little of what a look would have: with one request at a time, a guest without KVM wakes this
thread 330 us after the last one, and has its next request there after 110, since nobody has to be woken. So looking is
tried where sleeps were at all short, and judged by what it finds: as long as four of five looks find something they go
on, else it takes twice as many sleeps until the next try (as util/aio-posix.c of QEMU has times grow and shrink). And
nobody looks whose core is wanted, by a guest of two processors on two cores for example: whoever waits for it gets it
between two looks, and one who was away for long then sleeps, and looks less.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from time import perf_counter_ns
from typing import TypeVar

T = TypeVar("T")

LOOK_NS = 500_000
"""How long a look may be in vain: a guest without KVM needs 250 us from the end of one request to the next."""

SHORT_NS = 600_000
"""A sleep that was shorter may be one that a look would have spared: waking takes 200 us of it on a virtual machine."""

AGAIN = 16
"""Short sleeps in a row before a look is tried, at first."""

SELDOM = 256
"""As many at most, where looks were in vain: a try is 500 us then, of 80 ms."""

PAUSE_NS = 50_000_000
"""After a sleep that was longer, what comes may be something else, and nothing is known of it."""

WORTH, VAIN = 1, 4
"""What a look that has found something adds to the score of the last ones, and what one in vain takes away."""

GOOD = 16
"""The best score; below 0, looking is given up for a while."""

YIELDED_NS = 4_000
"""A yield that takes longer has let somebody run who waited for this core."""

WANTED_NS = 100_000
"""So long within one look, they want it for more than to pass the last answer on, as QEMU's own thread does."""


class BusyWait:
    """Of one thread."""

    def __init__(self, turns: int = 0) -> None:
        """`turns`: after so many looks there is a sleep, for what else is waited for and not looked at; 0: never."""
        self._turns = turns
        self._turn = 0
        self._sleeps = 0
        self._needed = AGAIN
        self._score = 0

    def slept(self, ns: int) -> None:
        """Learn from how long a sleep was."""
        self._sleeps = self._sleeps + 1 if ns < SHORT_NS else 0
        if ns > PAUSE_NS:
            self._needed = AGAIN

    @property
    def is_worth_while(self) -> bool:
        """Whether to look: sleeps have been short for long enough, and it is not time for what else there is."""
        if self._turns:
            self._turn = (self._turn + 1) % (self._turns + 1)
            if not self._turn:
                return False
        return self._sleeps >= self._needed

    def until(self, look: Callable[[], T]) -> T | None:
        """Look until something is there, and return it; None where it took too long, or this core is wanted.

        `look` returns what is false for as long as there is nothing.
        """
        found = look()
        if not found:
            away = 0
            begin = before = perf_counter_ns()
            while not found:
                os.sched_yield()
                now = perf_counter_ns()
                if now - before > YIELDED_NS:
                    away += now - before
                if now - begin >= LOOK_NS or away >= WANTED_NS:
                    self._was_in_vain(wanted=away >= WANTED_NS)
                    return None
                found = look()
                before = perf_counter_ns()
        if self._score < GOOD:
            self._has_found()
        return found

    def _has_found(self) -> None:
        self._score += WORTH
        if self._score >= GOOD:
            self._score, self._needed = GOOD, AGAIN

    def _was_in_vain(self, *, wanted: bool) -> None:
        self._score -= VAIN
        if wanted or self._score < 0:
            self._score = self._sleeps = 0
            self._needed = min(2 * self._needed, SELDOM)
