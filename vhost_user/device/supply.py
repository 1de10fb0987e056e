"""Queues whose buffers wait until the device has something for its driver: received frames, events, what is typed."""

from __future__ import annotations

from typing import Any, Protocol, cast

from userdev.declare.declared import Declaration
from vhost_user.device.queues import MAX_QUEUES
from vhost_user.rings import Chain


class SupplyPort(Protocol):
    """The ring of a supply, while it runs."""

    def take(self) -> Chain | None:
        """The next buffers that the driver has given, if there are any."""

    def give(self, chain: Chain, written: int) -> None:
        """Give back the first of those that were taken, with so many bytes written."""

    def leave(self) -> None:
        """Leave those that were taken, and not given back, in the ring."""


class Supply:
    """What the driver has given a device to fill; used where handlers run.

    `on_supply` says when a queue runs, or has buffers again after it had none.
    """

    def __init__(self, index: int) -> None:
        self.index = index
        """Of its queue."""
        self.port: SupplyPort | None = None
        """None: the queue does not run."""

    def take(self) -> Chain | None:
        """The next buffers, one request of the driver's; None where there are none, or the queue does not run.

        What is taken is given back by `give`, in the order in which it was taken, or by `leave`.
        """
        return self.port.take() if self.port is not None else None

    def give(self, chain: Chain, written: int) -> None:
        """Let the driver have buffers back, with so many bytes written from their beginning on.

        Raises:
            ValueError: they are not the first of those that were taken, as after a stop.
        """
        if self.port is None:
            raise ValueError(f"queue {self.index} does not run, and has nothing to give back")
        self.port.give(chain, written)

    def leave(self) -> None:
        """Have buffers that were taken, and not given back, be there for the next `take`; all stops do so."""
        if self.port is not None:
            self.port.leave()


class SupplyQueue(Declaration):
    """A queue that no function takes the requests of; on an instance it is a `Supply`."""

    def __init__(self, index: int) -> None:
        super().__init__()
        self.index = index

    def mistake(self) -> str:  # noqa: D102 - Declaration has it
        if type(self.index) is not int or not 0 <= self.index < MAX_QUEUES:
            return f"a queue has a number from 0 to {MAX_QUEUES - 1}, not {self.index!r}"
        return ""


def supply(index: int) -> Supply:
    """Declare that the buffers of a queue wait for what the device has to say: `receive = supply(0)`."""
    declared: Any = SupplyQueue(index)
    return cast(Supply, declared)
