"""vfio-user's messages, for the relay."""

from __future__ import annotations

from userdev.relay import Codec
from vfio_user.wire import HEADER, HEADER_SIZE, Message

MAX_FRAME = (64 << 20) + (64 << 10)
"""Longest message that is taken for one: QEMU accepts up to 64 MiB of data from a server's VERSION."""

Header = tuple[int, int, int, int, int]
"""id, command, size, flags, errno."""


def _headers(view: memoryview, at: int, end: int) -> tuple[list[tuple[Header, int]], int]:
    """The headers of the complete messages between `at` and `end`, up to one that cannot be right; where they stop."""
    headers: list[tuple[Header, int]] = []
    while end - at >= HEADER_SIZE:
        header: Header = HEADER.unpack_from(view, at)
        size = header[2]
        if size > end - at or size < HEADER_SIZE:
            break
        at += size
        headers.append((header, at))
    return headers, at


CODEC = Codec(Message, _headers, MAX_FRAME)
