"""The packed virtqueue (virtio 1.3, "Packed Virtqueues"): one ring of descriptors, which both sides write.

A descriptor is available where its AVAIL flag is the driver's wrap counter and its USED flag is not; it is used where
both are the device's. The event suppression areas are 16 bits of place and wrap counter, and 16 bits of flags.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from userdev.errors import ProtocolError
from vhost_user.memory import Iotlb, MemoryTable, Permission
from vhost_user.memory.table import GuestRange
from vhost_user.rings.chain import BrokenRing, Chain
from vhost_user.rings.inflight import PackedInflight, SavedDescriptor
from vhost_user.rings.ring import (
    DESCRIPTOR,
    INDIRECT,
    MAX_BYTES,
    MAX_SIZE,
    NEXT,
    WRITE,
    Ring,
    RingAddresses,
    fence,
)
from vhost_user.wire.features import VirtioFeature

AVAIL: Final = 1 << 7
USED: Final = 1 << 15
BOTH: Final = AVAIL | USED

_PLACE: Final = 0
_EVENTS: Final = 1
"""The two numbers of an event suppression area."""

_ALL: Final = 0
_NONE: Final = 1
_AT_PLACE: Final = 2
"""RING_EVENT_FLAGS_ENABLE, _DISABLE and _DESC."""

_INDEX_MASK: Final = 0x7FFF

_HALF_SAID: Final = 1 << 15
"""The base of a new ring as DPDK's virtio_user says it: nothing of the used descriptors, which begin where the
available ones do. As the specification has it, the whole ring would be under way."""

_unpack: Final = DESCRIPTOR.unpack_from


class PackedRing(Ring):
    """A packed virtqueue that is started."""

    def __init__(
        self,
        size: int,
        addresses: RingAddresses,
        table: MemoryTable,
        features: VirtioFeature = VirtioFeature.VERSION_1,
        *,
        base: int = 1 << 15 | 1 << 31,
        inflight: PackedInflight | None = None,
        iotlb: Iotlb | None = None,
        by_guest_address: bool = False,
    ) -> None:
        """Start at `base`, both indices with their wrap counters as SET_VRING_BASE has them; or where the in-flight
        region leads to, if there is one ("Vring descriptor indices for packed virtqueues").

        Raises:
            BrokenRing: size, addresses, base, the in-flight region or a request in it are wrong.
            IotlbMiss: an address has to be asked for first; starting again then is right.
        """
        self._ring_guest = self._event_guest = 0
        super().__init__(
            size, addresses, table, features, inflight=inflight, iotlb=iotlb, by_guest_address=by_guest_address
        )
        self.inflight = inflight
        if base == _HALF_SAID:
            base |= base << 16
        self._next, self._wrap = base & _INDEX_MASK, base >> 15 & 1
        self._used, self._used_wrap = base >> 16 & _INDEX_MASK, base >> 31 & 1
        if self._next >= size or self._used >= size:
            self._break(f"a base of {self._next} and {self._used} in a ring of {size}")
        self._idle = True
        self._held = 0
        """Descriptors of the requests that are outstanding."""
        self._told = False
        """Whether the driver was told once: a back-end that died before may not have told it."""
        if inflight is not None:
            self._check_mappings()
            self._resubmit(inflight)

    @property
    def base(self) -> int:
        """The places of the next request and of the next used descriptor, with the wrap counters."""
        return self._next | self._wrap << 15 | self._used << 16 | self._used_wrap << 31

    def pop(self) -> Chain | None:  # noqa: D102 - Ring has it
        if self.resubmitted:
            self.refresh()
            return self.resubmitted.popleft()
        if self._idle or self._generation != self.table.generation:
            self.refresh()
        elif self.broken:
            raise BrokenRing(self.broken)
        index, wrap, size = self._next, self._wrap, self.size
        if self._shorts[8 * index + 7] & BOTH != (AVAIL if wrap else USED):
            self._idle = True
            return None
        self._idle = False
        chain, saved = self._gather()
        if self._held + chain.slots > size:
            self._break(f"more than {size} descriptors at a time")
        self._held += chain.slots
        if self.inflight is not None:
            try:
                chain.entry = self.inflight.take(saved)
            except ProtocolError as error:
                self._break(str(error))
        index += chain.slots
        if index >= size:
            index, self._wrap = index - size, wrap ^ 1
        self._next = index
        self._taken(chain)
        return chain

    def _leave(self, chain: Chain) -> None:
        self._held -= chain.slots
        index = self._next - chain.slots
        if index < 0:
            index, self._wrap = index + self.size, self._wrap ^ 1
        self._next = index
        if self.inflight is not None:
            try:
                self.inflight.leave(chain.entry)
            except ProtocolError as error:
                self._lose(str(error))

    def publish(self) -> bool:  # noqa: D102 - Ring has it
        chains = self._finished
        if not chains:
            return False
        if self.broken or self._generation != self.table.generation or self._is_watched:
            self._look_around()
        self._finished = []
        if self.log is not None:
            self._mark(chains)
        before, wrap_before = self._used, self._used_wrap
        used, wrap = before, wrap_before
        places = []
        for chain in chains:
            places.append((used, (BOTH if wrap else 0) | (WRITE if chain.length else 0)))
            used, wrap = self._after(used, wrap, chain.slots)
        inflight = self.inflight
        if inflight is not None:
            try:
                inflight.begin([chain.entry for chain in chains], used, wrap)
            except ProtocolError as error:
                self._lose(str(error))
        shorts, words = self._shorts, self._words
        for (at, _), chain in zip(places, chains, strict=True):
            words[4 * at + 2] = chain.length
            shorts[8 * at + 6] = chain.head
        for at, flags in reversed(places):  # the first last: with it the driver sees them all
            shorts[8 * at + 7] = flags
            if self.used_log is not None:
                self._mark_ring(self._ring_guest + 16 * at, 16)
        self._used, self._used_wrap = used, wrap
        self._held -= sum(chain.slots for chain in chains)
        if inflight is not None:
            inflight.finish([chain.entry for chain in chains])
        self.outstanding -= len(chains)
        return self._is_wanted(before)

    def enable_kicks(self) -> bool:  # noqa: D102 - Ring has it
        self.refresh()
        if self.has_events:
            self._device_events[_PLACE] = self._next | self._wrap << 15
            self._device_events[_EVENTS] = _AT_PLACE
        else:
            self._device_events[_EVENTS] = _ALL
        self._mark_events()
        fence()
        return bool(self.resubmitted) or self._has_next()

    def disable_kicks(self) -> None:  # noqa: D102 - Ring has it
        if not self.broken:
            if self._generation != self.table.generation or self._is_watched:
                self.refresh()
            self._device_events[_EVENTS] = _NONE
            self._mark_events()

    def _check_size(self) -> None:
        if not 0 < self.size <= MAX_SIZE:
            raise BrokenRing(f"a packed ring of {self.size} descriptors")

    def _map(self) -> None:
        descriptor, device, driver = self.addresses
        self._descriptors = self._part(descriptor, 16 * self.size, 16, written=True)
        self._shorts = self._descriptors.cast("H")
        self._words = self._descriptors.cast("I")
        self._device_events = self._part(device, 4, 4, written=True).cast("H")
        self._driver_events = self._part(driver, 4, 4, written=False).cast("H")
        # The log's address in SET_VRING_ADDR is that of the device's area for QEMU, and of the ring for DPDK.
        self._ring_guest, self._event_guest = self._guest(descriptor), self._guest(device)

    def _has_next(self) -> bool:
        """By the flags alone: the rest of a descriptor may be looked at only after them."""
        flags = self._shorts[8 * self._next + 7] & BOTH
        return flags == (AVAIL if self._wrap else USED)

    def _after(self, index: int, wrap: int, slots: int) -> tuple[int, int]:
        index += slots
        return (index - self.size, wrap ^ 1) if index >= self.size else (index, wrap)

    def _gather(self) -> tuple[Chain, list[SavedDescriptor]]:
        """The chain at `_next`, whole and right, and its descriptors in the ring."""
        saved: list[SavedDescriptor] = []
        descriptors, index, size = self._descriptors, self._next, self.size
        while True:
            if len(saved) == size:
                self._break(f"a chain of more than the {size} descriptors that there are")
            descriptor = _unpack(descriptors, index << 4)
            saved.append(descriptor)
            if not descriptor[3] & NEXT:
                return self._chain(saved), saved
            index += 1
            if index == size:
                index = 0

    def _chain(self, descriptors: list[SavedDescriptor]) -> Chain:
        readable: list[memoryview] = []
        writable: list[memoryview] = []
        ranges: list[GuestRange] = []
        if descriptors[-1][3] & INDIRECT:
            *direct, (address, length, _, _) = descriptors
            room = self._add(direct, readable, writable, ranges)
            table = self._indirect(address, length)
            room += self._add(DESCRIPTOR.iter_unpack(table), readable, writable, ranges)
        else:
            room = self._add(descriptors, readable, writable, ranges)
        return Chain(descriptors[-1][2], len(descriptors), readable, writable, ranges, room)

    def _add(
        self,
        descriptors: Iterable[SavedDescriptor],
        readable: list[memoryview],
        writable: list[memoryview],
        ranges: list[GuestRange],
    ) -> int:
        """Add the buffers of these descriptors; return the bytes of those to write."""
        region = self.table.recent
        start, room, memory = region.guest, region.size if self.iotlb is None else -1, region.view
        total = to_read = 0
        for address, length, _, flags in descriptors:
            if flags & INDIRECT:
                self._break(f"an indirect descriptor with flags {flags:#x}")
            total += length
            if flags & WRITE:
                into = writable
            elif writable:
                self._break("a buffer to read behind one to write")
            else:
                into = readable
                to_read = total
            at = address - start
            if 0 <= at <= room - length:  # as MemoryTable.view has it: a call for each would be most of the time
                into.append(memory[at : at + length])
                if flags & WRITE:
                    ranges.append((address, length))
            else:
                region = self._elsewhere(address, length, flags, into, ranges)
                start, room, memory = region.guest, region.size, region.view
        if total > MAX_BYTES:
            self._break("a chain of more than 4 GiB")
        return total - to_read

    def _resubmit(self, inflight: PackedInflight) -> None:
        try:
            self._used, self._used_wrap, requests = inflight.recover(
                self._used, self._used_wrap, self.size, self._shorts[7::8]
            )
        except ProtocolError as error:
            self._break(str(error))
        self._next, self._wrap = self._used, self._used_wrap
        chains = []
        for entry, descriptors in requests:
            chain = self._chain(descriptors)
            chain.entry, chain.again = entry, True
            chains.append(chain)
            self._next, self._wrap = self._after(self._next, self._wrap, chain.slots)
        for chain in chains:
            self._held += chain.slots
            self._taken(chain)
        self.resubmitted.extend(chains)

    def _is_wanted(self, before: int) -> bool:
        """Whether the driver wants to be told that used descriptors were put from `before` on."""
        fence()
        if not self._told:
            self._told = True
            return True
        events = self._driver_events[_EVENTS] & 3
        if events != _AT_PLACE or not self.has_events:
            return events != _NONE
        place = self._driver_events[_PLACE]
        event, wrap = place & _INDEX_MASK, place >> 15
        used = self._used
        if used <= before:
            before -= self.size
        if wrap != self._used_wrap:
            event -= self.size
        return used - event - 1 & 0xFFFF < used - before & 0xFFFF

    def _guest(self, address: int) -> int:
        """Where the guest has a part of the ring."""
        if self.iotlb is not None:
            return self.iotlb.translate(address, 1, Permission.WRITE)[0][0]
        return address if self._by_guest_address else self.table.user_ranges(address, 1)[0][0]

    def _mark_events(self) -> None:
        if self.used_log is not None:
            self._mark_ring(self._event_guest, 4)
