"""The in-flight region: what of each ring was under way, for whoever serves it after a back-end that died.

The region is shared memory, kept by the front-end ("Inflight I/O tracking" has the structures and each step). A ring's
part is a multiple of 64 bytes, as libvhost-user and DPDK have it. After any store here, what `recover` gives back is
what was taken and has not reached the driver, each once, in the order in which it was taken.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar, Final

from userdev.errors import ProtocolError

_ALIGN: Final = 64
_VERSION: Final = 1
_SPLIT_ENTRY: Final = 16
_SPLIT_HEADER: Final = 16
_PACKED_ENTRY: Final = 32
_PACKED_HEADER: Final = 32
_AVAIL: Final = 1 << 7
_USED: Final = 1 << 15
_BOTH: Final = _AVAIL | _USED

SavedDescriptor = tuple[int, int, int, int]
"""A descriptor of a packed ring: (addr, len, id, flags)."""


def _never_shrinks() -> None:
    """What is asked where the region's file is not looked at."""


def region_size(slots: int, *, packed: bool) -> int:
    """Bytes of one ring's part of the region, of so many descriptors."""
    size = _PACKED_HEADER + slots * _PACKED_ENTRY if packed else _SPLIT_HEADER + slots * _SPLIT_ENTRY
    return -(-size // _ALIGN) * _ALIGN


class QueueRegion:
    """The part of one ring."""

    header: ClassVar[int]
    """Bytes in front of the entries."""
    entry: ClassVar[int]

    def __init__(self, region: memoryview, slots: int, check: Callable[[], None] = _never_shrinks) -> None:
        """Take it for `slots` descriptors, the queue size of the message that came with the region.

        `check` is asked before the region is used, as `FileMapping.check` of the one that it is in.

        Raises:
            ProtocolError: it is too small for them.
        """
        size = self.header + slots * self.entry
        if len(region) < size:
            raise ProtocolError(f"an in-flight region of {len(region)} bytes for {slots} descriptors")
        self.slots = slots
        self.check = check
        self._bytes = region[:size]
        self._shorts = self._bytes.cast("H")
        self._words = self._bytes.cast("I")
        self._longs = self._bytes.cast("Q")
        self._counter = 0


class SplitInflight(QueueRegion):
    """The part of one split ring (QueueRegionSplit, DescStateSplit).

    Offsets of the header: features 0, version 8, desc_num 10, last_batch_head 12, used_idx 14; of an entry: inflight 0,
    next 6, counter 8. Entries have the numbers of head descriptors.
    """

    header = _SPLIT_HEADER
    entry = _SPLIT_ENTRY

    def recover(self, used_index: int, size: int) -> list[int]:
        """Begin, or go on where somebody has died: heads to be submitted again, in order.

        `used_index` is what the used ring of a ring of `size` descriptors says. To die in here changes nothing.

        Raises:
            ProtocolError: what the region says cannot be.
        """
        shorts, entries = self._shorts, self._bytes
        if size > self.slots:
            raise ProtocolError(f"an in-flight region of {self.slots} descriptors for a ring of {size}")
        if shorts[4] == 0:
            shorts[5] = self.slots
            shorts[7] = used_index
            shorts[4] = _VERSION
        if shorts[4] != _VERSION or shorts[5] != self.slots:
            raise ProtocolError(f"an in-flight region of version {shorts[4]} for {shorts[5]} descriptors")
        flags = entries[_SPLIT_HEADER::_SPLIT_ENTRY]
        if shorts[7] != used_index:
            if any(flags):
                self._clear_last_batch(used_index - shorts[7] & 0xFFFF)
            shorts[7] = used_index
        heads = [head for head, flag in enumerate(flags) if flag]
        if heads and heads[-1] >= size:
            raise ProtocolError(f"descriptor {heads[-1]} was in flight in a ring of {size}")
        counters = self._longs[3::2]
        heads.sort(key=counters.__getitem__)
        self._counter = max((counters[head] for head in heads), default=-1) + 1
        return heads

    def take(self, head: int) -> None:
        """A request was taken from the available ring.

        Raises:
            ProtocolError: it is in flight already.
        """
        at = _SPLIT_HEADER + _SPLIT_ENTRY * head
        if self._bytes[at]:
            raise ProtocolError(f"descriptor {head} is available again while it is in flight")
        self._longs[3 + 2 * head] = self._counter
        self._counter = self._counter + 1 & 0xFFFFFFFFFFFFFFFF
        self._bytes[at] = 1

    def leave(self, head: int) -> None:
        """The request that was taken last is left in the available ring."""
        self._bytes[_SPLIT_HEADER + _SPLIT_ENTRY * head] = 0

    def begin(self, head: int) -> None:
        """A request is about to be used: to be called for each, before the used index is stored."""
        shorts = self._shorts
        shorts[11 + 8 * head] = shorts[6]
        shorts[6] = head

    def finish(self, heads: Sequence[int], used_index: int) -> None:
        """These were used: the used index has been stored."""
        for head in heads:
            self._bytes[_SPLIT_HEADER + _SPLIT_ENTRY * head] = 0
        self._shorts[7] = used_index

    def _clear_last_batch(self, count: int) -> None:
        """The last batch has reached the driver, and not all of it was taken note of."""
        head = self._shorts[6]
        if count > self.slots:
            raise ProtocolError(f"{count} requests used since the in-flight region was told, of {self.slots}")
        for _ in range(count):
            if head >= self.slots:
                raise ProtocolError(f"descriptor {head} in the in-flight region of {self.slots}")
            self._bytes[_SPLIT_HEADER + _SPLIT_ENTRY * head] = 0
            head = self._shorts[11 + 8 * head]


class PackedInflight(QueueRegion):
    """The part of one packed ring (QueueRegionPacked, DescStatePacked).

    Offsets of the header: features 0, version 8, desc_num 10, free_head 12, old_free_head 14, used_idx 16, old_used_idx
    18, used_wrap_counter 20, old_used_wrap_counter 21, entries from 32; of an entry: inflight 0, next 2, last 4, num 6,
    counter 8, id 16, flags 18, len 20, addr 24. A request's entries are linked, its first stands for it.

    Both indices with both wrap counters are one store of 8 bytes: one of them without the other would be a lie.
    """

    header = _PACKED_HEADER
    entry = _PACKED_ENTRY

    def recover(
        self, used: int, wrap: int, size: int, flags: memoryview
    ) -> tuple[int, int, list[tuple[int, list[SavedDescriptor]]]]:
        """Begin at `used`, or go on where somebody has died: place and wrap counter of the next used descriptor, and
        entries with their descriptors to be submitted again, in order.

        `flags` are those of the descriptors in the ring. To die in here changes nothing.

        Raises:
            ProtocolError: what the region says cannot be.
        """
        if size > self.slots:
            raise ProtocolError(f"an in-flight region of {self.slots} descriptors for a ring of {size}")
        shorts = self._shorts
        if shorts[4] == 0:
            self._begin(used, wrap)
        if shorts[4] != _VERSION or shorts[5] != self.slots:
            raise ProtocolError(f"an in-flight region of version {shorts[4]} for {shorts[5]} descriptors")
        used, old_used, wrap, old_wrap = self._places()
        if max(used, old_used) >= size or max(wrap, old_wrap) > 1:
            raise ProtocolError(f"places {used} and {old_used} in an in-flight region for a ring of {size}")
        if (used, wrap) != (old_used, old_wrap):
            if flags[old_used] & _BOTH != _available(old_wrap):  # what was begun has reached the driver
                shorts[7] = shorts[6]
                old_used, old_wrap = used, wrap
            else:
                _take_back(flags, old_used, old_wrap, size, (used, wrap))
        self._put_places(old_used, old_used, old_wrap, old_wrap)
        shorts[6] = shorts[7]
        for entry in self._free_entries():
            self._bytes[_PACKED_HEADER + _PACKED_ENTRY * entry] = 0
        entries = [entry for entry, flag in enumerate(self._bytes[_PACKED_HEADER::_PACKED_ENTRY]) if flag]
        counters = self._longs[5::4]
        entries.sort(key=counters.__getitem__)
        self._counter = max((counters[entry] for entry in entries), default=-1) + 1
        requests = [(entry, self._descriptors(entry)) for entry in entries]
        if sum(len(descriptors) for _, descriptors in requests) > size:
            raise ProtocolError("more requests in flight than the ring has descriptors")
        return old_used, old_wrap, requests

    def take(self, descriptors: Sequence[SavedDescriptor]) -> int:
        """A request of these descriptors was taken; the entry that stands for it.

        Raises:
            ProtocolError: the region has no room for it: somebody else has changed it.
        """
        shorts, words, longs = self._shorts, self._words, self._longs
        entry = at = shorts[7]
        places = self._linked(at, len(descriptors))
        base = 16 + 16 * entry
        shorts[base + 3] = 0
        longs[5 + 4 * entry] = self._counter
        self._counter = self._counter + 1 & 0xFFFFFFFFFFFFFFFF
        self._bytes[_PACKED_HEADER + _PACKED_ENTRY * entry] = 1
        for at, (address, length, id_, flags) in zip(places, descriptors, strict=True):
            longs[7 + 4 * at] = address
            words[13 + 8 * at] = length
            shorts[25 + 16 * at] = flags
            shorts[24 + 16 * at] = id_
            shorts[base + 3] += 1
            shorts[6] = shorts[17 + 16 * at]
        shorts[base + 2] = at
        shorts[7] = shorts[6]
        return entry

    def leave(self, entry: int) -> None:
        """The request that was taken last is left in the ring: its entries, linked still, are the first free ones.

        Raises:
            ProtocolError: somebody else has changed the region.
        """
        shorts = self._shorts
        shorts[17 + 16 * self._last(entry)] = shorts[7]
        shorts[7] = entry  # recovery believes this one, and takes back what is said of an entry that is free
        shorts[6] = entry
        self._bytes[_PACKED_HEADER + _PACKED_ENTRY * entry] = 0

    def begin(self, entries: Sequence[int], used: int, wrap: int) -> None:
        """Requests are about to be used, after which `used` and `wrap` are next: before the ring is written."""
        shorts = self._shorts
        for entry in entries:
            shorts[17 + 16 * self._last(entry)] = shorts[6]
            shorts[6] = entry
        _, old_used, _, old_wrap = self._places()
        self._put_places(used, old_used, wrap, old_wrap)

    def finish(self, entries: Sequence[int]) -> None:
        """These were used: the ring has been written."""
        for entry in entries:
            self._bytes[_PACKED_HEADER + _PACKED_ENTRY * entry] = 0
        used, _, wrap, _ = self._places()
        self._shorts[7] = self._shorts[6]
        self._put_places(used, used, wrap, wrap)

    def _begin(self, used: int, wrap: int) -> None:
        shorts = self._shorts
        for entry in range(self.slots):
            shorts[17 + 16 * entry] = entry + 1
        shorts[5] = self.slots
        shorts[6] = shorts[7] = 0
        self._put_places(used, used, wrap, wrap)
        shorts[4] = _VERSION

    def _places(self) -> tuple[int, int, int, int]:
        """used_idx, old_used_idx, used_wrap_counter, old_used_wrap_counter."""
        places = self._longs[2]
        return places & 0xFFFF, places >> 16 & 0xFFFF, places >> 32 & 0xFF, places >> 40 & 0xFF

    def _put_places(self, used: int, old_used: int, wrap: int, old_wrap: int) -> None:
        self._longs[2] = used | old_used << 16 | wrap << 32 | old_wrap << 40

    def _free_entries(self) -> list[int]:
        """The list that begins at free_head; its end is an entry that there is not."""
        entries: list[int] = []
        entry = self._shorts[6]
        while entry < self.slots and len(entries) < self.slots:
            entries.append(entry)
            entry = self._shorts[17 + 16 * entry]
        return entries

    def _last(self, entry: int) -> int:
        """The last entry of the request that this one stands for."""
        last = self._shorts[18 + 16 * entry]
        if last >= self.slots:
            raise ProtocolError(f"entry {last} in the in-flight region of {self.slots}")
        return last

    def _linked(self, entry: int, count: int) -> list[int]:
        """So many entries, each linked from the one before."""
        entries: list[int] = []
        for _ in range(count):
            if entry >= self.slots:
                raise ProtocolError(f"entry {entry} in the in-flight region of {self.slots}")
            entries.append(entry)
            entry = self._shorts[17 + 16 * entry]
        return entries

    def _descriptors(self, entry: int) -> list[SavedDescriptor]:
        count = self._shorts[19 + 16 * entry]
        if not 0 < count <= self.slots:
            raise ProtocolError(f"a request of {count} descriptors in the in-flight region of {self.slots}")
        return [
            (
                self._longs[7 + 4 * at],
                self._words[13 + 8 * at],
                self._shorts[24 + 16 * at],
                self._shorts[25 + 16 * at],
            )
            for at in self._linked(entry, count)
        ]


def _available(wrap: int) -> int:
    """The flags of what the driver has made available in this round."""
    return _AVAIL if wrap else _USED


def _take_back(flags: memoryview, place: int, wrap: int, size: int, end: tuple[int, int]) -> None:
    """Of a batch whose first descriptor is not used none is: whoever uses the first alone would use the others too."""
    while (place, wrap) != end:
        if flags[place] & _BOTH == _BOTH * wrap:
            flags[place] = flags[place] & ~_BOTH | _available(wrap)
        place += 1
        if place == size:
            place, wrap = 0, wrap ^ 1
