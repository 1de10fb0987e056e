"""A message on its way through a session: what stages are given of it, and what they are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from userdev.relay.direction import Direction
from userdev.relay.pump import Relayed


class Passed(Relayed, Protocol):
    """A message, as far as those have to know it that keep it for a while."""

    @property
    def size(self) -> int:
        """Bytes, the header included."""

    @property
    def is_reply(self) -> bool:
        """Whether it answers a request."""


M = TypeVar("M", bound=Passed)


@dataclass(slots=True)
class Passing(Generic[M]):
    """One message on its way from one peer to the other."""

    direction: Direction
    message: M
    """As it goes on: what the stage before has made of it."""
    pair: int = 0
    """In a reply, the number of the request's record in the trace; 0 where nobody asked."""
    record: int = 0
    """Number of its own record, the latest where it has two; 0 until it has one, and without a trace."""
    since: float | None = None
    """When its sender sent it, where that is not now (monotonic seconds)."""
    actions: list[Callable[[], None]] = field(default_factory=list)
    answered: tuple[Callable[[M | None], None], ...] = ()
    """Of a request: told of its reply once that has come, before it goes on; of None once it is sent where none is
    wanted, or once nobody will know any more what answers it. A request that is sent twice is told of twice."""
    unsent: tuple[Callable[[], None], ...] = ()
    """Told where it is not sent after all, or not as what it was."""

    def afterwards(self, action: Callable[[], None]) -> None:
        """For a stage: do this once the message it has taken is recorded."""
        self.actions.append(action)

    def when_answered(self, told: Callable[[M | None], None]) -> None:
        """For a stage: call this with what answers the request, see `answered`."""
        self.answered = (*self.answered, told)

    def when_never_sent(self, told: Callable[[], None]) -> None:
        """For a stage: call this where one behind it has the message go nowhere."""
        self.unsent = (*self.unsent, told)

    def never_sent(self) -> None:
        """For a stage that has taken it: it goes nowhere, and nothing will answer it."""
        for told in self.unsent:
            told()


class Stage(Protocol[M]):
    """Sees every message of one direction, or of both, before it goes on."""

    def __call__(self, passing: Passing[M]) -> M | None:
        """The message to go on with: the very same object where nothing changes, None where the stage has taken it.

        What is to happen instead it asks for with `Passing.afterwards`.
        """

    def closed(self) -> None:
        """The session has ended: let go of what was kept."""
