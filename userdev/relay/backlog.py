"""What is kept of either direction for later, and when that is too much to read on."""

from __future__ import annotations

from collections.abc import Callable

from userdev.relay.direction import Direction

MAX_MESSAGES = 4096
MAX_BYTES = 64 << 20
"""Of one direction. Both are soft: what had been read when the limit was reached is kept as well."""


class Backlog:
    """Counts messages that are held, delayed or reordered, and answers of ours that their asker does not take; a full
    one is felt by the sender as a peer that is busy.
    """

    def __init__(
        self, changed: Callable[[Direction], None], emptied: Callable[[Direction], None] = lambda direction: None
    ) -> None:
        """`changed` is called when a direction has become full, or no longer is; `emptied` when nothing is kept of it
        any more.
        """
        self._changed = changed
        self._emptied = emptied
        self._messages = [0, 0]
        self._bytes = [0, 0]

    def full(self, direction: Direction) -> bool:
        """Whether so much is kept that no more is to be read."""
        return self._messages[direction] >= MAX_MESSAGES or self._bytes[direction] >= MAX_BYTES

    def has(self, direction: Direction) -> bool:
        """Whether anything is kept."""
        return self._messages[direction] > 0

    def keep(self, direction: Direction, size: int) -> None:
        """A message of so many bytes is kept for later."""
        self._messages[direction] += 1
        self._bytes[direction] += size
        if self.full(direction):
            self._changed(direction)

    def let_go(self, direction: Direction, size: int) -> None:
        """A message that was kept is sent on, or dropped."""
        was_full = self.full(direction)
        self._messages[direction] -= 1
        self._bytes[direction] -= size
        if was_full and not self.full(direction):
            self._changed(direction)
        if not self._messages[direction]:
            self._emptied(direction)
