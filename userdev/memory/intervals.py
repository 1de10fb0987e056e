"""What is mapped where: ranges of addresses in order, none overlapping, each found by any address in it."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from typing import Generic, Protocol, TypeVar


class Interval(Protocol):
    """Something at a range of addresses."""

    @property
    def iova(self) -> int:
        """Its first address."""

    @property
    def end(self) -> int:
        """The first address behind it."""


I = TypeVar("I", bound=Interval)  # noqa: E741


class IntervalMap(Generic[I]):
    """Intervals by address. That none overlap is up to whoever adds them, who knows what to say of it.

    `starts` and `by_start` are for paths that count every call: addresses in order, and what begins there.
    """

    __slots__ = ("by_start", "starts")

    def __init__(self) -> None:
        self.starts: list[int] = []
        self.by_start: dict[int, I] = {}

    def __len__(self) -> int:
        return len(self.starts)

    def __iter__(self) -> Iterator[I]:
        """In order of address; what is removed meanwhile is given all the same."""
        return iter([self.by_start[start] for start in self.starts])

    def starting_at(self, iova: int) -> I | None:
        """The one that begins there."""
        return self.by_start.get(iova)

    def find(self, iova: int) -> I | None:
        """The one that has this address."""
        place = bisect_right(self.starts, iova)
        if not place:
            return None
        found = self.by_start[self.starts[place - 1]]
        return found if iova < found.end else None

    def last_before(self, end: int) -> I | None:
        """The last that begins before this address."""
        place = bisect_left(self.starts, end)
        return self.by_start[self.starts[place - 1]] if place else None

    def within(self, iova: int, end: int) -> list[I]:
        """All that have any of the addresses from `iova` to before `end`, or begin there, in order."""
        starts = self.starts
        first = max(0, bisect_right(starts, iova) - 1)
        found = [self.by_start[start] for start in starts[first : bisect_left(starts, end)]]
        return found[1:] if found and found[0].iova < iova and found[0].end <= iova else found

    def add(self, interval: I) -> None:
        """Add one, in place of the one that begins where it does."""
        start = interval.iova
        if start not in self.by_start:
            self.starts.insert(bisect_left(self.starts, start), start)
        self.by_start[start] = interval

    def remove(self, iova: int) -> I | None:
        """Forget the one that begins there, and return it."""
        gone = self.by_start.pop(iova, None)
        if gone is not None:
            del self.starts[bisect_left(self.starts, iova)]
        return gone

    def clear(self) -> None:
        """Forget all of them."""
        self.starts.clear()
        self.by_start.clear()
