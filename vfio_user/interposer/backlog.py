"""What the interposer keeps of one direction for later, and when that is too much to read on."""

from __future__ import annotations

from vfio_user.wire import Message

MAX_MESSAGES = 4096
MAX_BYTES = 64 << 20
"""Both are soft: what had been read when the limit was reached is kept as well."""


class Backlog:
    """Counts messages that are held, delayed or reordered; a full one is felt by the sender as a peer that is busy."""

    def __init__(self) -> None:
        self._messages = 0
        self._bytes = 0

    @property
    def full(self) -> bool:
        return self._messages >= MAX_MESSAGES or self._bytes >= MAX_BYTES

    def add(self, message: Message) -> None:
        self._messages += 1
        self._bytes += message.size

    def remove(self, message: Message) -> None:
        self._messages -= 1
        self._bytes -= message.size
