"""A driver's side of a split virtqueue (virtio 1.3, "Split Virtqueues")."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from vhost_user.frontend.driver import Descriptor, Driver, pages
from vhost_user.frontend.errors import BrokenQueue
from vhost_user.frontend.memory import GuestMemory
from vhost_user.rings import RingAddresses
from vhost_user.rings.ring import DESCRIPTOR, NEXT, fence
from vhost_user.wire import VirtioFeature

_FLAGS, _INDEX, _HEADER = 0, 1, 2
"""Places in the available and used rings, in units of 16 bits; the entries are behind them."""

_SILENT = 1
_WRAP = 0xFFFF


class SplitDriver(Driver):
    """A split ring. `made` and `seen` are the indices of what was made available, and of what was taken back."""

    def __init__(self, memory: GuestMemory, at: int, size: int, features: VirtioFeature) -> None:
        """As `Driver`; `size` is a power of two."""
        super().__init__(memory, at, size, features)
        available = at + pages(16 * size)
        used = available + pages(6 + 2 * size)
        self.addresses = RingAddresses(at, used, available)
        self._available = self._part(available, 6 + 2 * size, "H")
        self._used = self._part(used, 4 + 8 * size + 2 + 2, "I")
        self._used_head = self._part(used, 4 + 8 * size + 2, "H")
        self.made = self.seen = 0
        self._kicked = 0
        self._free = list(range(size))
        self._places: dict[int, list[int]] = {}

    @staticmethod
    def room(size: int) -> int:  # noqa: D102 - Driver has it
        return pages(16 * size) + pages(6 + 2 * size) + pages(8 + 8 * size)

    @property
    def base(self) -> int:  # noqa: D102 - Driver has it
        return self.used_index

    @property
    def used_index(self) -> int:
        """How many requests were given back since the ring was made, in 16 bits."""
        index: int = self._used_head[_INDEX]
        return index

    def begin_at(self, index: int) -> None:
        """Be as a ring through which so many requests have gone, modulo 65536; before it has any."""
        self.made = self.seen = self._kicked = index
        self._available[_INDEX] = self._used_head[_INDEX] = index

    def put(self, chain: Sequence[Descriptor]) -> int:  # noqa: D102 - Driver has it
        self._check_room(chain)
        places = [self._free.pop(0) for _ in chain]
        for position, (place, descriptor) in enumerate(zip(places, chain, strict=True)):
            more = position + 1 < len(chain)
            self.describe(
                place,
                *descriptor._replace(flags=descriptor.flags | NEXT * more),
                places[position + 1] if more else 0,
            )
        self._places[places[0]] = places
        self.offer(places[0], len(places))
        return places[0]

    def describe(self, index: int, address: int, length: int, flags: int, next_: int) -> None:
        """Write one descriptor, right or wrong."""
        at = self.addresses.descriptor + 16 * index
        self._memory[at : at + 16] = DESCRIPTOR.pack(address, length, flags, next_)

    def offer(self, head: int, slots: int = 0) -> None:
        """Make a chain available that begins with this descriptor, whatever is there; `slots` of them are taken."""
        self._begun(head, slots)
        self._available[_HEADER + self.made % self.size] = head
        self.made = self.made + 1 & _WRAP
        self._available[_INDEX] = self.made

    def table(self, chain: Sequence[Descriptor]) -> bytes:  # noqa: D102 - Driver has it
        last = len(chain) - 1
        return b"".join(
            DESCRIPTOR.pack(at, length, flags | NEXT * (i < last), (i + 1) * (i < last))
            for i, (at, length, flags) in enumerate(chain)
        )

    def take_used(self) -> Iterator[tuple[int, int]]:  # noqa: D102 - Driver has it
        while self.seen != self.used_index:
            if (ahead := self.used_index - self.seen & _WRAP) > len(self.chains):
                raise BrokenQueue(f"the device gives back {ahead} requests, and has {len(self.chains)}")
            at = 1 + 2 * (self.seen % self.size)
            head, written = self._used[at], self._used[at + 1]
            for each in self._ended(head):
                self.free += self.chains.pop(each)
                self._free += self._places.pop(each, [])
                self.seen = self.seen + 1 & _WRAP
                yield each, written if each == head else 0

    def wants_kick(self) -> bool:  # noqa: D102 - Driver has it
        before, self._kicked = self._kicked, self.made
        fence()
        if self.has_events:
            event = self._used_head[_HEADER + 4 * self.size]
            return bool(self.made - event - 1 & _WRAP < self.made - before & _WRAP)
        return not self._used_head[_FLAGS] & _SILENT

    def ask_for_call(self) -> None:  # noqa: D102 - Driver has it
        if self.has_events:
            self._available[_HEADER + self.size] = self.seen
        else:
            self._available[_FLAGS] = 0
        fence()

    def ask_for_no_call(self) -> None:  # noqa: D102 - Driver has it
        if self.has_events:
            self._available[_HEADER + self.size] = self.seen - 1 & _WRAP  # which has come
        else:
            self._available[_FLAGS] = _SILENT
