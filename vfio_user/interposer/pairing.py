"""Which reply answers which request. Ids may be reused while in flight, so the oldest request of an id is meant."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from vfio_user.wire import Message

LIMIT = 1 << 16
"""Requests remembered at most: a peer that is never answered must not fill the memory."""


@dataclass(slots=True)
class Pending:
    """A request on its way."""

    number: int
    """Of its record in the trace; 0 without one."""
    command: int
    message: Message | None
    """The request, where something needs it once its reply is there; its descriptors are the pairing's."""
    stale: bool = False
    """Asked by a server that has been replaced: the reply is for nobody."""


class Pairing:
    """The requests of one direction that have no reply yet."""

    def __init__(self) -> None:
        self._by_id: dict[int, deque[Pending]] = {}
        self.count = 0
        self.stale = 0
        """How many of them were asked by a server that has been replaced."""

    def __contains__(self, id: int) -> bool:
        return id in self._by_id

    def sent(self, id: int, request: Pending) -> None:
        """A request that wants a reply has gone out."""
        if self.count >= LIMIT:
            self.replied(next(iter(self._by_id)))
        waiting = self._by_id.get(id)
        if waiting is None:
            self._by_id[id] = deque((request,))
        else:
            waiting.append(request)
        self.count += 1

    def replied(self, id: int) -> Pending | None:
        """The request that a reply of this id answers, None where nobody asked."""
        waiting = self._by_id.get(id)
        if waiting is None:
            return None
        request = waiting.popleft()
        self.count -= 1
        self.stale -= request.stale
        if not waiting:
            del self._by_id[id]
        return request

    def clear(self) -> list[Pending]:
        """Forget all of them; returns them."""
        left = [request for waiting in self._by_id.values() for request in waiting]
        self._by_id.clear()
        self.count = self.stale = 0
        return left

    def make_stale(self) -> None:
        """Whoever asked is gone."""
        for waiting in self._by_id.values():
            for request in waiting:
                request.stale = True
        self.stale = self.count
