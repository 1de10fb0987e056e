"""What a server that dies may have lost: the requests it has not answered, and the writes it never answers.

A server works in the order it receives (specification, "Message ordering"), so its reply to a request says that the
posted writes sent before it are done. What the journal still holds is to be sent again: at least once, that is, not
exactly once.
"""

from __future__ import annotations

import errno
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from userdev.relay.direction import Direction
from userdev.transport import close_all
from vfio_user.interposer.passing import Passing, copy_message
from vfio_user.wire import Message

MAX_ENTRIES = 1 << 16
MAX_BYTES = 64 << 20
"""What is kept of a server that takes requests and answers none: beyond that it cannot be replaced."""
BARRIER_AT = 256
"""Posted writes without a reply behind them after which the server is asked something, to know where it is."""


@dataclass(frozen=True, eq=False)
class JournalEntry:
    """A message the server has been sent."""

    number: int
    since: float
    """Monotonic seconds when the client sent it."""
    sent: float
    """When the server was sent it."""
    message: Message
    """With descriptors of its own."""
    answered: tuple[Callable[[Message | None], None], ...] = ()
    """Who is told of the reply: see `Passing.answered`."""


class RequestJournal:
    """The messages to a server that it may not have dealt with yet."""

    def __init__(self) -> None:
        self._number = 0
        self._requests: dict[int, deque[JournalEntry]] = {}
        self._posted: deque[JournalEntry] = deque()
        self._count = self._bytes = 0

    def __len__(self) -> int:
        return self._count

    @property
    def wants_barrier(self) -> bool:
        """Whether so many posted writes are without a reply behind them that the server should be asked something."""
        return len(self._posted) >= BARRIER_AT

    @property
    def last(self) -> int:
        """Number of the last message sent."""
        return self._number

    def shown(self, passing: Passing) -> None:
        """A request that has been sent to the server, or a reply that has come from it.

        Raises:
            OSError: so much has no answer that this one is not kept, or its descriptors cannot be.
        """
        message, since = passing.message, passing.since
        if passing.direction is Direction.TO_CLIENT:
            if message.is_reply:
                self._answered(message.id)
        elif not message.is_reply:
            self._number += 1
            if self._count >= MAX_ENTRIES or self._bytes + message.size > MAX_BYTES:
                raise OSError(errno.ENOBUFS, "more has no answer than is kept for another server")
            kept = copy_message(message) if message.fds else message
            self._count += 1
            self._bytes += message.size
            now = time.monotonic()
            entry = JournalEntry(self._number, since or now, now, kept, passing.answered)
            if message.wants_reply:
                self._requests.setdefault(message.id, deque()).append(entry)
            else:
                self._posted.append(entry)

    def confirm(self, number: int) -> None:
        """Forget everything posted up to this number: it is done."""
        while self._posted and self._posted[0].number <= number:
            self._forget(self._posted.popleft())

    def requests(self) -> list[JournalEntry]:
        """Those that wait for a reply, oldest first."""
        return sorted((entry for waiting in self._requests.values() for entry in waiting), key=_number)

    def unanswered(self) -> list[JournalEntry]:
        """All that may be lost, in the order it was sent."""
        return sorted([*self.requests(), *self._posted], key=_number)

    def remove(self, entry: JournalEntry) -> None:
        """Whoever sent it has been answered otherwise."""
        waiting = self._requests.get(entry.message.id)
        if waiting is not None and entry in waiting:
            waiting.remove(entry)
            if not waiting:
                del self._requests[entry.message.id]
            self._forget(entry)

    def take_all(self) -> list[JournalEntry]:
        """`unanswered`, which are the caller's from now on: whatever is sent again will be shown again."""
        left = self.unanswered()
        self._requests.clear()
        self._posted.clear()
        self._count = self._bytes = 0
        return left

    def close(self) -> None:
        """Forget all entries and close their descriptors."""
        for entry in self.take_all():
            close_all(entry.message.fds)

    def _answered(self, id: int) -> None:
        waiting = self._requests.get(id)
        if waiting is None:
            return
        entry = waiting.popleft()
        if not waiting:
            del self._requests[id]
        self._forget(entry)
        if self._posted:
            self.confirm(entry.number)

    def _forget(self, entry: JournalEntry) -> None:
        self._count -= 1
        self._bytes -= entry.message.size
        close_all(entry.message.fds)


def _number(entry: JournalEntry) -> int:
    return entry.number
