"""A point in time that several waits share."""

from __future__ import annotations

import time


class Deadline:
    """A point in time, so that several waits can share one limit."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._end = time.monotonic() + seconds

    @classmethod
    def of(cls, limit: float | Deadline) -> Deadline:
        """`limit` itself when it is a deadline already, else one that many seconds from now."""
        return limit if isinstance(limit, Deadline) else cls(limit)

    @property
    def remaining(self) -> float:
        """Seconds left, never negative."""
        return max(0.0, self._end - time.monotonic())

    @property
    def passed(self) -> bool:
        """Whether no time is left."""
        return self.remaining == 0.0
