"""A driver's side of a packed virtqueue (virtio 1.3, "Packed Virtqueues")."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from vhost_user.frontend.driver import Descriptor, Driver, pages
from vhost_user.frontend.memory import GuestMemory
from vhost_user.rings import RingAddresses
from vhost_user.rings.packed import AVAIL, BOTH, USED
from vhost_user.rings.ring import DESCRIPTOR, NEXT, WRITE, fence
from vhost_user.wire import VirtioFeature

_PLACE, _EVENTS = 0, 1
_ALL, _NONE, _AT_PLACE = 0, 1, 2
_WRAP = 1 << 15


class _Place:
    """A place in the ring, with its wrap counter."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.index, self.wrap = 0, 1

    def go_on(self, slots: int) -> None:
        self.index += slots
        if self.index >= self.size:
            self.index, self.wrap = self.index - self.size, self.wrap ^ 1

    @property
    def number(self) -> int:
        return self.index | self.wrap << 15


class PackedDriver(Driver):
    """A packed ring."""

    def __init__(self, memory: GuestMemory, at: int, size: int, features: VirtioFeature) -> None:
        """As `Driver`; `size` may be any number."""
        super().__init__(memory, at, size, features)
        driver = at + pages(16 * size)
        device = driver + pages(4)
        self.addresses = RingAddresses(at, device, driver)
        self._shorts = self._part(at, 16 * size, "H")
        self._words = self._part(at, 16 * size, "I")
        self._driver_events = self._part(driver, 4, "H")
        self._device_events = self._part(device, 4, "H")
        self._next = _Place(size)
        self._taken = _Place(size)
        self._ids = list(range(size))
        self._fresh = 0
        """Descriptors that were made available since the device's wish was last looked at."""

    @staticmethod
    def room(size: int) -> int:  # noqa: D102 - Driver has it
        return pages(16 * size) + 2 * pages(4)

    @property
    def base(self) -> int:  # noqa: D102 - Driver has it
        return self._taken.number | self._taken.number << 16

    def put(self, chain: Sequence[Descriptor]) -> int:  # noqa: D102 - Driver has it
        self._check_room(chain)
        known_by = self._ids.pop(0)
        first = self._next.index
        first_flags = 0
        for position, (address, length, own) in enumerate(chain):
            flags = own | NEXT * (position + 1 < len(chain)) | (AVAIL if self._next.wrap else USED)
            if position == 0:  # the first last: with it the device sees them all
                first_flags, flags = flags, self._shorts[8 * first + 7]
            at = self.addresses.descriptor + 16 * self._next.index
            self._memory[at : at + 16] = DESCRIPTOR.pack(address, length, known_by, flags)
            self._next.go_on(1)
        self._begun(known_by, len(chain))
        self._shorts[8 * first + 7] = first_flags
        self._fresh += len(chain)
        return known_by

    def table(self, chain: Sequence[Descriptor]) -> bytes:  # noqa: D102 - Driver has it
        return b"".join(DESCRIPTOR.pack(at, length, 0, flags) for at, length, flags in chain)

    def take_used(self) -> Iterator[tuple[int, int]]:  # noqa: D102 - Driver has it
        while True:
            at = self._taken.index
            flags = self._shorts[8 * at + 7]
            if flags & BOTH != BOTH * self._taken.wrap or not self.chains:
                return
            known_by, written = self._shorts[8 * at + 6], self._words[4 * at + 2] if flags & WRITE else 0
            for each in self._ended(known_by):
                slots = self.chains.pop(each)
                self.free += slots
                self._taken.go_on(slots)
                self._ids.append(each)
                yield each, written if each == known_by else 0

    def wants_kick(self) -> bool:  # noqa: D102 - Driver has it
        fresh, self._fresh = self._fresh, 0
        fence()
        events = self._device_events[_EVENTS] & 3
        if events != _AT_PLACE or not self.has_events:
            return bool(events != _NONE)
        place = self._device_events[_PLACE]
        event = place & ~_WRAP
        if place >> 15 != self._next.wrap:
            event -= self.size
        return self._next.index - fresh <= event < self._next.index

    def ask_for_call(self) -> None:  # noqa: D102 - Driver has it
        if self.has_events:
            self._driver_events[_PLACE] = self._taken.number
            self._driver_events[_EVENTS] = _AT_PLACE
        else:
            self._driver_events[_EVENTS] = _ALL
        fence()

    def ask_for_no_call(self) -> None:  # noqa: D102 - Driver has it
        self._driver_events[_EVENTS] = _NONE
