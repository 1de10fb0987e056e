"""The requests of one channel that wait for a reply: by their order, as messages carry no identification."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

LIMIT = 256
"""Requests remembered at most: a peer that is never answered must not fill the memory."""


class SentRequest(NamedTuple):
    """A request that is to be answered."""

    request: int
    record: int
    """Number of its record in the trace; 0 without one."""


class Unanswered:
    """The requests without a reply, oldest first."""

    def __init__(self) -> None:
        self._waiting: deque[SentRequest] = deque(maxlen=LIMIT)

    def __len__(self) -> int:
        return len(self._waiting)

    def sent(self, request: int, record: int) -> None:
        """A request has been sent that is to be answered."""
        self._waiting.append(SentRequest(request, record))

    def answered(self, request: int) -> int:
        """The record of the request that a reply answers, 0 where nobody asked; those before it were not answered."""
        if all(waiting.request != request for waiting in self._waiting):
            return 0
        while (waiting := self._waiting.popleft()).request != request:
            pass
        return waiting.record
