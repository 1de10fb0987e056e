"""What the commands that every interposer has are answered with."""

from __future__ import annotations

from typing import TypedDict


class Done(TypedDict):
    """The result of commands that tell nothing."""


class ByDirection(TypedDict("ByDirection", {"to-server": int, "to-client": int})):
    """A count for each direction."""


class TraceStatus(TypedDict):
    """The trace that is being written."""

    file: str
    records: int
    bytes: int
    stopped: str
    """Why it has stopped; empty while it has not."""


class Released(TypedDict):
    """The result of `resume`."""

    released: int


class Rules(TypedDict):
    """The result of `faults`."""

    rules: int


class Signalled(TypedDict):
    """The result of `signal`."""

    pid: int
