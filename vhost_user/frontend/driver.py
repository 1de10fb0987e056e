"""A driver's side of a virtqueue, over guest memory: what split and packed rings have in common. No I/O."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

from vhost_user.frontend.errors import BrokenQueue
from vhost_user.frontend.memory import PAGE, GuestMemory
from vhost_user.rings import RingAddresses
from vhost_user.wire import VirtioFeature


class Descriptor(NamedTuple):
    """One buffer: the guest's address of it, its bytes, and flags such as WRITE."""

    address: int
    length: int
    flags: int


class Driver(ABC):
    """One ring. What the device writes and what the driver writes are on pages of their own, for a dirty log."""

    addresses: RingAddresses
    """The guest's addresses of its parts."""

    def __init__(self, memory: GuestMemory, at: int, size: int, features: VirtioFeature) -> None:
        """A ring of `size` descriptors that nobody has used, from address `at` on."""
        self.size = size
        self.has_events = VirtioFeature.EVENT_IDX in features
        self.chains: dict[int, int] = {}
        """Requests that have not come back: what the ring knows each by, and its descriptors; the oldest first."""
        self.free = size
        """Descriptors."""
        self._in_order = VirtioFeature.IN_ORDER in features
        self._views: list[memoryview] = []
        self._memory = memory
        memory[at : at + self.room(size)] = bytes(self.room(size))

    @staticmethod
    @abstractmethod
    def room(size: int) -> int:
        """The bytes that a ring of so many descriptors takes, in whole pages."""

    @property
    @abstractmethod
    def base(self) -> int:
        """Where a device goes on that has to do again all that did not come back, as SET_VRING_BASE says it."""

    @abstractmethod
    def put(self, chain: Sequence[Descriptor]) -> int:
        """Make a request available; what the ring knows it by.

        Raises:
            ValueError: the ring has not so many descriptors left.
        """

    @abstractmethod
    def table(self, chain: Sequence[Descriptor]) -> bytes:
        """What an indirect table has for this request."""

    @abstractmethod
    def take_used(self) -> Iterator[tuple[int, int]]:
        """What came back and was not taken yet: what the ring knows it by, and the bytes that were written.

        0 bytes also where a device that keeps to the order of requests has given back several as one.

        Raises:
            BrokenQueue: something came back that the device was not given.
        """

    @abstractmethod
    def wants_kick(self) -> bool:
        """Whether the device wants to be told of what was made available since this was last asked."""

    @abstractmethod
    def ask_for_call(self) -> None:
        """Have the device tell when it gives back the next request; look at `take_used` after that, before a wait."""

    @abstractmethod
    def ask_for_no_call(self) -> None:
        """Have the device tell of nothing, until `ask_for_call`: a wish that it need not keep to."""

    def close(self) -> None:
        """Let go of the memory; idempotent."""
        for view in self._views:
            view.release()
        self._views.clear()

    def _part(self, at: int, size: int, kind: Literal["H", "I"]) -> memoryview:
        """A part of the ring as numbers: each is stored by one instruction."""
        view = self._memory.view(at, size)
        numbers = view.cast(kind)
        self._views += [numbers, view]
        return numbers

    def _begun(self, known_by: int, slots: int) -> None:
        self.chains[known_by] = slots
        self.free -= slots

    def _check_room(self, chain: Sequence[Descriptor]) -> None:
        if not 0 < len(chain) <= self.free:
            raise ValueError(f"a request of {len(chain)} descriptors, and the ring has {self.free} of {self.size} left")

    def _ended(self, known_by: int) -> list[int]:
        """The requests that come back with this one, itself the last."""
        if known_by not in self.chains:
            raise BrokenQueue(f"the device gives back request {known_by}, which it does not have")
        if not self._in_order:
            return [known_by]
        everything = list(self.chains)
        return everything[: everything.index(known_by) + 1]


def pages(size: int) -> int:
    """The bytes of whole pages that have so many."""
    return -(-size // PAGE) * PAGE
