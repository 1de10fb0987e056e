"""From a failure back to what it takes: the shortest sequence of the last events that still fails.

By delta debugging (`userdev.reduction`), whose minimum is one of which nothing can be left out. A try costs a guest, so
there are not many.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from userdev import reduction as delta_debugging
from userdev.reduction import Stopped

T = TypeVar("T")


@dataclass(frozen=True)
class Reduction(Generic[T]):
    """What was found. `reproduced`: it failed again at all; `minimal`: nothing of `events` can be left out.

    `untried` says why no more could be tried, where that is so.
    """

    events: tuple[T, ...]
    tries: int = 0
    reproduced: bool = False
    minimal: bool = False
    untried: str = ""


class Untried(Exception):
    """A sequence could not be tried, and no other will be."""


def reduce(
    events: Sequence[T],
    fails: Callable[[Sequence[T]], bool],
    most: int,
    alike: Callable[[T], Hashable] | None = None,
) -> Reduction[T]:
    """Find it among the ends of `events` of length 1, 2, 4 and so on, then leave out what can be.

    `fails` tries a sequence, with a fresh guest: whether that fails in the same way, or `Untried`, after which it is
    asked no more. It is asked at most `most` times.
    `alike` is the kind of an event: what does not matter is mostly of a kind, and left out together.
    """
    known: dict[tuple[T, ...], bool] = {}
    untried: list[str] = []

    def enough() -> bool:
        return len(known) >= most or bool(untried)

    def tried(some: Sequence[T]) -> bool:
        if tuple(some) not in known:
            if enough():
                raise Stopped
            try:
                known[tuple(some)] = fails(some)
            except Untried as error:
                untried.append(str(error))
                raise Stopped from error
        return known[tuple(some)]

    try:
        shortest = _failing_end(tuple(events), tried)
    except Stopped:
        shortest = ()
    search = delta_debugging.Reduction(shortest, tried, least=1, alike=alike, stop=enough)
    search.run()
    minimal = bool(shortest) and search.minimal
    return Reduction(search.best or tuple(events), len(known), bool(shortest), minimal, "".join(untried))


def _failing_end(events: tuple[T, ...], fails: Callable[[tuple[T, ...]], bool]) -> tuple[T, ...]:
    """The first end that fails, as they grow; none of them: nothing."""
    length = 1
    while True:
        if fails(events[-length:]):
            return events[-length:]
        if length >= len(events):
            return ()
        length = min(2 * length, len(events))
