"""vhost-user's messages, for the relay."""

from __future__ import annotations

from userdev.relay import Codec
from vhost_user.wire import HEADER, HEADER_SIZE, Message

MAX_FRAME = 1 << 20
"""Longest message that is taken for one: any that a peer under study may send, far above what the protocol has."""

MessageHeader = tuple[int, int, int]
"""request, flags, bytes of the payload."""


def _split(view: memoryview, at: int, end: int) -> tuple[list[tuple[MessageHeader, memoryview]], int]:
    """The complete messages between `at` and `end`; where they stop."""
    messages: list[tuple[MessageHeader, memoryview]] = []
    while end - at >= HEADER_SIZE:
        header: MessageHeader = HEADER.unpack_from(view, at)
        after = at + HEADER_SIZE + header[2]
        if after > end:
            break
        messages.append((header, view[at:after]))
        at = after
    return messages, at


CODEC = Codec(Message, _split, MAX_FRAME)
