"""From a failure back to what it takes: the shortest sequence of the last events that still fails.

By delta debugging (Zeller and Hildebrandt, "Simplifying and Isolating Failure-Inducing Input", 2002), whose minimum is
one of which nothing can be left out. A try costs a guest, so there are not many.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Reduction(Generic[T]):
    """What was found. `reproduced`: it failed again at all; `minimal`: nothing of `events` can be left out."""

    events: tuple[T, ...]
    tries: int = 0
    reproduced: bool = False
    minimal: bool = False


class _NoMoreTries(Exception):
    """All tries were used."""


def reduce(events: Sequence[T], fails: Callable[[Sequence[T]], bool], most: int) -> Reduction[T]:
    """Find it among the ends of `events` of length 1, 2, 4 and so on, then leave out what can be.

    `fails` tries a sequence, with a fresh guest: whether that fails in the same way. It is asked at most `most` times.
    """
    known: dict[tuple[T, ...], bool] = {}

    def tried(some: tuple[T, ...]) -> bool:
        if some not in known:
            if len(known) >= most:
                raise _NoMoreTries
            known[some] = fails(some)
        return known[some]

    shortest: tuple[T, ...] = ()
    minimal = False
    try:
        if shortest := _failing_end(tuple(events), tried):
            shortest, minimal = _minimal(shortest, tried), True
    except _NoMoreTries:
        shortest = min((some for some, failed in known.items() if failed), key=len, default=())
    return Reduction(shortest or tuple(events), len(known), bool(shortest), minimal)


def _failing_end(events: tuple[T, ...], fails: Callable[[tuple[T, ...]], bool]) -> tuple[T, ...]:
    """The first end that fails, as they grow; none of them: nothing."""
    length = 1
    while True:
        if fails(events[-length:]):
            return events[-length:]
        if length >= len(events):
            return ()
        length = min(2 * length, len(events))


def _minimal(events: tuple[T, ...], fails: Callable[[tuple[T, ...]], bool]) -> tuple[T, ...]:
    """Leave out pieces, ever smaller ones, as long as the rest still fails."""
    pieces = 2
    while len(events) > 1:
        size = -(-len(events) // pieces)
        rests = (events[:begin] + events[begin + size :] for begin in range(0, len(events), size))
        if rest := next((rest for rest in rests if fails(rest)), ()):
            events, pieces = rest, max(pieces - 1, 2)
        elif size == 1:
            break
        else:
            pieces = min(2 * pieces, len(events))
    return events
