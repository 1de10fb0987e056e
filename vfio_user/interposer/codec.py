"""vfio-user's messages, for the relay."""

from __future__ import annotations

from userdev.relay import Codec
from vfio_user.wire import HEADER, HEADER_SIZE, Message

MAX_FRAME = (64 << 20) + (64 << 10)
"""Longest message that is taken for one: QEMU accepts up to 64 MiB of data from a server's VERSION."""

MessageHeader = tuple[int, int, int, int, int]
"""id, command, size, flags, errno."""


def _split(view: memoryview, at: int, end: int) -> tuple[list[tuple[MessageHeader, memoryview]], int]:
    """The complete messages between `at` and `end`, up to a header that cannot be right; where they stop."""
    messages: list[tuple[MessageHeader, memoryview]] = []
    while end - at >= HEADER_SIZE:
        header: MessageHeader = HEADER.unpack_from(view, at)
        size = header[2]
        after = at + size
        if after > end or size < HEADER_SIZE:
            break
        messages.append((header, view[at:after]))
        at = after
    return messages, at


CODEC = Codec(Message, _split, MAX_FRAME)
