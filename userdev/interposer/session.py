"""A session between a client and a server, as faults and control socket see it, which know no protocol."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

from userdev.interposer.holding import Holding
from userdev.interposer.passing import M, Passing, Stage
from userdev.relay.backlog import Backlog
from userdev.relay.direction import Direction
from userdev.relay.loop import Loop


@dataclass
class Counters:
    """Counts of a session so far; `status` shows them."""

    messages: list[int] = field(default_factory=lambda: [0, 0])
    """By direction."""
    bytes: list[int] = field(default_factory=lambda: [0, 0])
    unframed: int = 0
    held: int = 0
    faults: int = 0


class InterposedSession(Protocol):
    """One client's session with one server."""

    @property
    def closed(self) -> bool:
        """Whether it has ended."""

    @property
    def holding(self) -> Holding[Any]:
        """The client's requests that are kept back."""

    def start(self) -> None:
        """Forward from now on."""

    def close(self) -> None:
        """End the session now: both peers see their connection closed."""

    def close_side(self, name: str, how: int) -> None:
        """Shut the client's or the server's connection down, as `socket.shutdown` has it."""

    def note(self, event: str, **details: object) -> None:
        """Record in the trace that something has happened."""


class StagedSession(Protocol[M]):
    """A session, or one connection of it, whose messages stages may see before they go on."""

    @property
    def loop(self) -> Loop:
        """The loop that it is served in."""

    @property
    def backlog(self) -> Backlog:
        """What is kept of either direction."""

    @property
    def counters(self) -> Counters:
        """What it counts."""

    @property
    def closed(self) -> bool:
        """Whether it has ended."""

    @property
    def state(self) -> str:
        """The session's, as scenarios say it."""

    def add_stage(self, stage: Stage[M], *directions: Direction) -> None:
        """Let `stage` see the messages of these directions before they go on."""

    def remove_stage(self, stage: Stage[M]) -> None:
        """Let it see no more."""

    def send(self, direction: Direction, message: M, *, pair: int = 0) -> int:
        """Send a message of ours; returns the number of its record."""

    def send_on(self, passing: Passing[M]) -> None:
        """Send a message that a stage had taken, as if it had come just now."""

    def send_bytes(self, direction: Direction, data: bytes, fds: list[int]) -> None:
        """Send bytes that need not be a message."""

    def expect_reply(self, passing: Passing[M]) -> None:
        """A request has been sent as bytes: its reply will come."""

    def close_side(self, name: str, how: int) -> None:
        """Shut the client's or the server's connection down, as `socket.shutdown` has it."""

    def note(self, event: str, **details: object) -> None:
        """Record in the trace that something has happened."""
