"""A message on its way through a session: what stages and watchers are given of it, and what they are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Protocol

from userdev.descriptors import duplicates
from userdev.relay.direction import Direction
from vfio_user.wire import Message


@dataclass(slots=True)
class Passing:
    """One message on its way from one peer to the other."""

    direction: Direction
    message: Message
    """As it goes on: what the stage before has made of it."""
    pair: int = 0
    """In a reply, the number of the request's record in the trace; 0 where nobody asked."""
    record: int = 0
    """Number of its own record, the latest where it has two; 0 until it has one, and without a trace."""
    since: float | None = None
    """When its sender sent it, where that is not now (monotonic seconds)."""
    actions: list[Callable[[], None]] = field(default_factory=list)

    def afterwards(self, action: Callable[[], None]) -> None:
        """For a stage: do this once the message it has taken is recorded."""
        self.actions.append(action)


class Stage(Protocol):
    """Sees every message of one direction, or of both, before it goes on."""

    def __call__(self, passing: Passing) -> Message | None:
        """The message to go on with: the very same object where nothing changes, None where the stage has taken it.

        What is to happen instead it asks for with `Passing.afterwards`.
        """

    def closed(self) -> None:
        """The session has ended: let go of what was kept."""


class SessionWatcher(Protocol):
    """Is shown what happens in a session. There may be several; each is told, in the order they began to watch."""

    def passed(self, passing: Passing) -> None:
        """A request has been sent on, or a reply has come."""

    def server_gone(self) -> bool:
        """The server is gone; True keeps the session, and the client, waiting for `Session.replace_server`."""

    def closed(self) -> None:
        """The session has ended."""


def copy_message(message: Message) -> Message:
    """The message with descriptors of its own."""
    return replace(message, fds=duplicates(message.fds))
