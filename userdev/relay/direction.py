"""The two directions of a session, in the words that commands, scenarios and traces use."""

from __future__ import annotations

from enum import IntEnum


class Direction(IntEnum):
    """The direction of a message; the value is the trace file's."""

    TO_SERVER = 0
    TO_CLIENT = 1

    @property
    def label(self) -> str:
        """The word for it in commands, scenarios and traces."""
        return _LABELS[self]

    @property
    def opposite(self) -> Direction:
        """The way that a reply travels."""
        return _OPPOSITES[self]


_LABELS = {Direction.TO_SERVER: "to-server", Direction.TO_CLIENT: "to-client"}
_OPPOSITES = {Direction.TO_SERVER: Direction.TO_CLIENT, Direction.TO_CLIENT: Direction.TO_SERVER}
DIRECTIONS = {label: direction for direction, label in _LABELS.items()}
