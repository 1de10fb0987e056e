"""Which reply answers which request. Ids may be reused while in flight, so the oldest request of an id is meant."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from userdev.transport import close_all
from vfio_user.wire import Message

LIMIT = 64
"""Requests of one id remembered at most: a peer that is never answered must not fill the memory."""


class PendingRequest(NamedTuple):
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
        self._first: dict[int, PendingRequest] = {}
        self._more: dict[int, deque[PendingRequest]] = {}  # those whose id was in use already; there seldom are any
        self.stale = 0
        """How many of them were asked by a server that has been replaced."""

    def __contains__(self, id: int) -> bool:
        return id in self._first

    def __len__(self) -> int:
        return len(self._first) + sum(map(len, self._more.values()))

    def sent(self, id: int, request: PendingRequest) -> None:
        """A request that wants a reply has gone out."""
        if id not in self._first:
            self._first[id] = request
            return
        more = self._more.setdefault(id, deque())
        if len(more) == LIMIT:
            self._forget(more.popleft())
        more.append(request)

    def replied(self, id: int) -> PendingRequest | None:
        """The request that a reply of this id answers, None where nobody asked."""
        request = self._first.pop(id, None)
        if self._more and id in self._more:
            self._first[id] = self._more[id].popleft()
            if not self._more[id]:
                del self._more[id]
        if self.stale and request is not None:
            self.stale -= request.stale
        return request

    def _forget(self, request: PendingRequest) -> None:
        self.stale -= request.stale
        if request.message is not None:
            close_all(request.message.fds)

    def close(self) -> None:
        """Forget all of them."""
        for request in [*self._first.values(), *(request for more in self._more.values() for request in more)]:
            if request.message is not None:
                close_all(request.message.fds)
        self._first.clear()
        self._more.clear()
        self.stale = 0

    def make_stale(self) -> None:
        """Whoever asked is gone."""
        self._first = {id: request._replace(stale=True) for id, request in self._first.items()}
        for id, more in self._more.items():
            self._more[id] = deque(request._replace(stale=True) for request in more)
        self.stale = len(self)
