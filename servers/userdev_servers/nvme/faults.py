"""A disk that fails where the host wants it to, so that guests can be seen with one: `break` on the control socket."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

from userdev_servers.block.backing import Backing

ByteRange = tuple[int, int]
"""Offset and size, in bytes."""

_ALL = (0, 1 << 64)

OPERATIONS: Mapping[str, Mapping[str, Callable[..., ByteRange]]] = {
    "read": {
        "try_read": lambda pieces, size, offset: (offset, size),
        "read": lambda pieces, offset: (offset, sum(map(len, pieces))),
        "read_bytes": lambda size, offset: (offset, size),
    },
    "write": {
        "write": lambda pieces, offset: (offset, sum(map(len, pieces))),
        "zero": lambda offset, size: (offset, size),
        "discard": lambda offset, size: (offset, size),
    },
    "sync": {"write_back": lambda: _ALL},
}
"""What can fail: methods of a `Backing`, and which bytes their arguments mean."""


def break_disk(backing: Backing, operation: str, error: int, place: ByteRange = _ALL) -> None:
    """Have every operation that touches `place` end with this errno. Nothing is slower that is not broken."""
    for name, place_of in OPERATIONS[operation].items():
        vars(backing)[name] = _failing(getattr(backing, name), place_of, error, place)


def mend_disk(backing: Backing) -> None:
    """All works again."""
    for methods in OPERATIONS.values():
        for name in methods:
            vars(backing).pop(name, None)


def _failing(
    method: Callable[..., None], place_of: Callable[..., ByteRange], error: int, bad: ByteRange
) -> Callable[..., None]:
    def call(*arguments: object) -> None:
        offset, size = place_of(*arguments)
        if offset < sum(bad) and bad[0] < offset + size:
            raise OSError(error, os.strerror(error))
        return method(*arguments)

    return call
