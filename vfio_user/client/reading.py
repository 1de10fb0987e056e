"""A structure out of a reply, or what its server did not say."""

from __future__ import annotations

from typing import Any, TypeVar

from userdev.layout import Layout
from vfio_user.client.errors import ShortReply

R = TypeVar("R", bound=tuple[Any, ...])


def read_as(layout: Layout[R], payload: bytes, command: str, at: int = 0) -> R:
    """The structure at `at` of the payload of the reply to `command`.

    Raises:
        ShortReply: the payload ends before it does.
    """
    if len(payload) < at + layout.size:
        raise ShortReply(command, len(payload), at + layout.size, layout.name)
    return layout.unpack(payload, at)
