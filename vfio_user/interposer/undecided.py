"""What the server has been asked to change, and has not answered yet: a refusal leaves everything as it was."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import Generic, TypeVar

from vfio_user.interposer.passing import Passing
from vfio_user.wire import Message

T = TypeVar("T")


class Undecided(Generic[T]):
    """The changes of one stage; each is done or undone, once."""

    def __init__(self, done: Callable[[T], None], undone: Callable[[T], None]) -> None:
        self._done, self._undone = done, undone
        self._open: dict[int, T] = {}
        self._numbers = count()

    def add(self, passing: Passing, change: T) -> None:
        """Await what the server answers to this request; where no answer is wanted, what was asked is done when it is
        sent.
        """
        number = next(self._numbers)
        self._open[number] = change
        passing.when_answered(lambda reply: self._answered(number, reply))
        passing.when_never_sent(lambda: self._withdrawn(number))

    def close(self) -> None:
        """The session has ended: undo what is open."""
        while self._open:
            self._undone(self._open.popitem()[1])

    def _withdrawn(self, number: int) -> None:
        if number in self._open:
            self._undone(self._open.pop(number))

    def _answered(self, number: int, reply: Message | None) -> None:
        if number not in self._open:  # a request that was sent twice is answered twice, or the session has ended
            return
        change = self._open.pop(number)
        if reply is not None and reply.refuses:
            self._undone(change)
        else:
            self._done(change)
