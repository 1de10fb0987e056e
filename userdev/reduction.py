"""The smallest part of a sequence that still does it: delta debugging.

Zeller and Hildebrandt, "Simplifying and Isolating Failure-Inducing Input" (2002): pieces are left out, ever smaller
ones, as long as the rest still fails, until nothing can be left out by itself. Of that paper's two moves only this one
is made: of a conversation a piece alone, without what came before it, fails too seldom to be worth its try.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterable, Sequence
from itertools import chain
from typing import Generic, TypeVar

T = TypeVar("T")

HASTE = 4
"""So many times smaller are the next pieces where none of a size could be left out; where some could, half as large.
What is needed one by one, a hundred reads before the one that fails, is tried so in the end all the same."""


class Stopped(Exception):
    """There may be no more tries."""


class Reduction(Generic[T]):
    """One search. `best` is at any moment the smallest part that is known to fail, also where it was stopped."""

    def __init__(
        self,
        items: Iterable[T],
        fails: Callable[[Sequence[T]], bool],
        *,
        closed: Callable[[Sequence[T]], Collection[T]] = lambda some: some,
        least: int = 0,
        alike: Callable[[T], Hashable] | None = None,
        stop: Callable[[], bool] = lambda: False,
        progress: Callable[[int, int], None] = lambda left, tries: None,
    ) -> None:
        """Nothing is tried yet: that all of `items`, which differ from each other, fails is taken for granted.

        fails: tries a part, in the order of `items`. It is not asked twice about the same one.
        closed: what of a part has a meaning: it may leave out more, or bring back what others need.
        alike: the kind of an item: pieces are also taken of one kind, from among the others. Of a conversation that
            says much the same again and again what does not matter is seldom in one piece.
        least: no part with fewer items is worth a try.
        stop: asked before each try, whether there may be no more.
        progress: told of (items left, tries so far) after each try.
        """
        self.best: tuple[T, ...] = tuple(items)
        self.tries = 0
        self.minimal = False
        """Whether nothing of `best` can be left out by itself."""
        self._fails = fails
        self._closed = closed
        self._least = least
        self._stop = stop
        self._progress = progress
        self._order = {item: place for place, item in enumerate(self.best)}
        self._arrangements = [self._order.__getitem__]
        if alike is not None:
            self._arrangements.insert(0, self._by_kind(alike).__getitem__)
        self._known: dict[tuple[T, ...], bool] = {}

    def run(self) -> None:
        """Search until nothing can be left out, or `stop` says so."""
        try:
            self._search()
        except Stopped:
            return
        self.minimal = True

    def _search(self) -> None:
        size = max(1, len(self.best))
        while True:
            arrangements = self._arrangements if size > 1 else self._arrangements[-1:]
            before = len(self.best)
            for arrangement in arrangements:
                self._sweep(size, arrangement)
            gained = len(self.best) < before
            if size == 1 and not gained:
                return
            size = max(1, -(-size // 2) if gained else size // HASTE)

    def _by_kind(self, alike: Callable[[T], Hashable]) -> dict[T, int]:
        """The place of each item, where those of a kind are together."""
        kinds: dict[Hashable, list[T]] = {}
        for item in self.best:
            kinds.setdefault(alike(item), []).append(item)
        return {item: place for place, item in enumerate(chain.from_iterable(kinds.values()))}

    def _sweep(self, size: int, arrangement: Callable[[T], int]) -> None:
        """Leave out one piece of so many items after the other, as they are arranged."""
        begin = 0
        while begin < len(self.best):
            items = sorted(self.best, key=arrangement)
            rest = items[:begin] + items[begin + size :]
            if len(rest) < self._least or not self._better(rest):
                begin += size

    def _better(self, part: Sequence[T]) -> bool:
        """Whether a part, closed, is smaller and fails; it is the best then."""
        whole = tuple(sorted(self._closed(part), key=self._order.__getitem__))
        if len(whole) < len(self.best) and self._try(whole):
            self.best = whole
            return True
        return False

    def _try(self, part: tuple[T, ...]) -> bool:
        if part not in self._known:
            if self._stop():
                raise Stopped
            self._known[part] = self._fails(part)
            self.tries += 1
            self._progress(len(part) if self._known[part] else len(self.best), self.tries)
        return self._known[part]
