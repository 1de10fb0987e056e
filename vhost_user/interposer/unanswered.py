"""The requests of one channel that wait for a reply: by their order, as messages carry no identification."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from vhost_user.wire import Message

LIMIT = 256
"""Requests remembered at most: a peer that is never answered must not fill the memory."""


class SentRequest(NamedTuple):
    """A request that is to be answered."""

    request: int
    record: int
    """Number of its record in the trace; 0 without one."""
    answered: tuple[Callable[[Message | None], None], ...] = ()
    """Who is told of its reply: see `Passing.answered`."""

    def tell(self, reply: Message | None) -> None:
        """Tell them."""
        for told in self.answered:
            told(reply)


class Unanswered:
    """The requests without a reply, oldest first."""

    def __init__(self) -> None:
        self._waiting: deque[SentRequest] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    def sent(self, request: SentRequest) -> None:
        """A request has been sent that is to be answered."""
        self._waiting.append(request)
        if len(self._waiting) > LIMIT:
            self._waiting.popleft().tell(None)

    def answered(self, reply: Message) -> int:
        """The record of the request that a reply answers, 0 where nobody asked; those before it were not answered."""
        if all(waiting.request != reply.request for waiting in self._waiting):
            return 0
        while (waiting := self._waiting.popleft()).request != reply.request:
            waiting.tell(None)
        waiting.tell(reply)
        return waiting.record
