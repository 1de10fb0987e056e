"""Which reply answers which request: ids say it, and of one id the oldest is meant.

Ids may be in use more than once, which nothing forbids, so what is open is kept in order. There is no role here and no
I/O: the client, the server's own requests, the interposer's books and a replay keep theirs in it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Container, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")

IDS = 1 << 16


class OpenRequests(Generic[T]):
    """The requests of one direction that have no reply yet, each as what its owner keeps of it.

    >>> open = OpenRequests[str]()
    >>> open.sent(7, "first")
    >>> open.sent(7, "second")
    >>> open.replied(7), open.replied(7), open.replied(7)
    ('first', 'second', None)
    """

    def __init__(self, limit: int = IDS, forget: Callable[[T], None] = lambda request: None) -> None:
        """Of one id the first and `limit` more are kept; an older one goes to `forget`."""
        self._first: dict[int, T] = {}
        self._more: dict[int, deque[T]] = {}  # those whose id was in use already; there seldom are any
        self._limit = limit
        self._forget = forget

    def __contains__(self, id: object) -> bool:
        return id in self._first

    def __len__(self) -> int:
        return len(self._first) + sum(map(len, self._more.values()))

    def __iter__(self) -> Iterator[T]:
        yield from self._first.values()
        for more in self._more.values():
            yield from more

    def sent(self, id: int, request: T) -> None:
        """A request that wants a reply has gone out."""
        if id not in self._first:
            self._first[id] = request
            return
        more = self._more.setdefault(id, deque())
        if len(more) == self._limit:
            self._forget(more.popleft())
        more.append(request)

    def replied(self, id: int) -> T | None:
        """What a reply of this id answers, which is open no more; None where nobody asked."""
        request = self._first.pop(id, None)
        if self._more and id in self._more:
            self._first[id] = self._more[id].popleft()
            if not self._more[id]:
                del self._more[id]
        return request

    def change(self, change: Callable[[T], T]) -> None:
        """Keep something else of each."""
        self._first = {id: change(request) for id, request in self._first.items()}
        self._more = {id: deque(map(change, more)) for id, more in self._more.items()}

    def clear(self) -> None:
        """Forget all: nothing will be answered any more."""
        self._first.clear()
        self._more.clear()


def free_id(last: int, *taken: Container[int], step: int = 1) -> int | None:
    """The next id after `last` that nobody has, counted in steps of 1 or -1; None where all are in use."""
    for _ in range(IDS):
        last = (last + step) % IDS
        if not any(last in ids for ids in taken):
            return last
    return None
