"""The split virtqueue (virtio 1.3, "Split Virtqueues"): descriptor table, available ring, used ring.

available: flags, index, then the heads of requests, then used_event. used: flags, index, then (head, bytes written),
then avail_event. Indices count on over 16 bits and are taken modulo the size, which is a power of two.
"""

from __future__ import annotations

from typing import Final

from userdev.errors import ProtocolError
from vhost_user.memory import Iotlb, MemoryTable, Permission
from vhost_user.memory.table import GuestRange
from vhost_user.rings.chain import BrokenRing, Chain
from vhost_user.rings.inflight import SplitInflight
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

_FLAGS: Final = 0
_INDEX: Final = 1
_HEADER: Final = 2
"""Places in the available and used rings, in units of 16 bits; the entries are behind them."""

_SILENT: Final = 1
"""VIRTQ_AVAIL_F_NO_INTERRUPT, VIRTQ_USED_F_NO_NOTIFY: without EVENT_IDX, the other side need not be told."""

_WRAP: Final = 0xFFFF
_unpack: Final = DESCRIPTOR.unpack_from


class SplitRing(Ring):
    """A split virtqueue that is started."""

    def __init__(
        self,
        size: int,
        addresses: RingAddresses,
        table: MemoryTable,
        features: VirtioFeature = VirtioFeature.VERSION_1,
        *,
        base: int = 0,
        inflight: SplitInflight | None = None,
        iotlb: Iotlb | None = None,
        by_guest_address: bool = False,
    ) -> None:
        """Start at `base`, the available index of SET_VRING_BASE; or where an in-flight region leads to.

        Raises:
            BrokenRing: size, addresses, the in-flight region or a request in it are wrong.
            IotlbMiss: an address has to be asked for first; starting again then is right.
        """
        super().__init__(
            size, addresses, table, features, inflight=inflight, iotlb=iotlb, by_guest_address=by_guest_address
        )
        self.inflight = inflight
        self._used_index = self._used_head[_INDEX]
        self._next = self._seen = self._first(base & _WRAP)
        self._told = False
        """Whether the driver was told once: a back-end that died before may not have told it."""
        if inflight is not None:
            self._check_mappings()
            self._resubmit(inflight)

    @property
    def base(self) -> int:
        """The available index that the next request is taken at."""
        return self._next

    def _first(self, base: int) -> int:
        """Where to begin: at `base`, or behind what has come back already, which nobody can mean.

        DPDK's virtio_user says 0 whenever it is connected to a back-end again, and what its ring has is not anew.
        """
        used = self._used_index
        is_over = 0 < used - base & _WRAP <= _WRAP // 2
        return used if is_over and self._available[_INDEX] - used & _WRAP <= self.size else base

    def pop(self) -> Chain | None:  # noqa: D102 - Ring has it
        if self.resubmitted:
            self.refresh()
            return self.resubmitted.popleft()
        at = self._next
        if at == self._seen or self._generation != self.table.generation:
            self.refresh()
            seen = self._available[_INDEX]
            if seen == at:
                return None
            if seen - at & _WRAP > self.size:
                self._break(f"an available index of {seen}, where {at} is next in a ring of {self.size}")
            self._seen = seen
        elif self.broken:
            raise BrokenRing(self.broken)
        if self.outstanding >= self.size:
            self._break(f"more than {self.size} requests at a time")
        chain = self._gather(self._available[_HEADER + at % self.size])
        if self.inflight is not None:
            self._keep(chain.head)
        self._next = at + 1 & _WRAP
        self._taken(chain)
        return chain

    def _leave(self, chain: Chain) -> None:
        self._next = self._next - 1 & _WRAP
        if self.inflight is not None:
            self.inflight.leave(chain.head)

    def publish(self) -> bool:  # noqa: D102 - Ring has it
        chains = self._finished
        if not chains:
            return False
        if self.broken or self._generation != self.table.generation or self._is_watched:
            self._look_around()
        self._finished = []
        if self.log is not None:
            self._mark(chains)
        size, entries, inflight = self.size, self._used, self.inflight
        before = used = self._used_index
        for chain in chains:
            if inflight is not None:
                inflight.begin(chain.head)
            at = used % size
            entries[at] = chain.head | chain.length << 32
            if self.used_log is not None:
                self._mark_ring(self.used_log + 4 + 8 * at, 8)
            used += 1
        self._used_index = used = used & _WRAP
        self._used_head[_INDEX] = used
        if self.used_log is not None:
            self._mark_ring(self.used_log + 2, 2)
        if inflight is not None:
            inflight.finish([chain.head for chain in chains], used)
        self.outstanding -= len(chains)
        return self._is_wanted(before, used)

    def enable_kicks(self) -> bool:  # noqa: D102 - Ring has it
        self.refresh()
        if self.has_events:
            self._available_event[0] = self._next
            self._mark_event(4 + 8 * self.size)
        else:
            self._used_head[_FLAGS] = 0
            self._mark_event(0)
        fence()
        return bool(self.resubmitted) or self._has_next()

    def disable_kicks(self) -> None:  # noqa: D102 - Ring has it
        if not self.has_events and not self.broken:  # with events, the driver tells once and no more
            if self._generation != self.table.generation or self._is_watched:
                self.refresh()
            self._used_head[_FLAGS] = _SILENT
            self._mark_event(0)

    def _check_size(self) -> None:
        if not 0 < self.size <= MAX_SIZE or self.size & self.size - 1:
            raise BrokenRing(f"a split ring of {self.size} descriptors")

    def _has_next(self) -> bool:
        return self._available[_INDEX] != self._next

    def _map(self) -> None:
        size, event = self.size, 2 * self.has_events
        descriptor, used, available = self.addresses
        self._descriptors = self._part(descriptor, 16 * size, 16, written=False)
        self._available = self._part(available, 4 + 2 * size + event, 2, written=False).cast("H")
        whole = self._part(used, 4 + 8 * size + event, 4, written=True)
        self._used_head = whole[:4].cast("H")
        self._used = whole[4 : 4 + 8 * size].cast("Q")
        self._available_event = whole[4 + 8 * size :].cast("H")
        if self.iotlb is not None and self.used_log is not None:  # what SET_VRING_ADDR says is no guest address then
            self.used_log = self.iotlb.translate(used, 1, Permission.WRITE)[0][0]

    def _gather(self, head: int) -> Chain:
        """The chain that begins with this descriptor, whole and right."""
        readable: list[memoryview] = []
        writable: list[memoryview] = []
        ranges: list[GuestRange] = []
        slots, room = self._walk(self._descriptors, head, self.size, readable, writable, ranges)
        return Chain(head, slots, readable, writable, ranges, room)

    def _walk(
        self,
        descriptors: memoryview | bytes,
        index: int,
        count: int,
        readable: list[memoryview],
        writable: list[memoryview],
        ranges: list[GuestRange],
    ) -> tuple[int, int]:
        """Gather the buffers of `count` descriptors' chain from `index` on; return how many there are, and the bytes of
        those to write.
        """
        region = self.table.recent
        start, room, memory = region.guest, region.size if self.iotlb is None else -1, region.view
        walked = total = to_read = 0
        while True:
            if index >= count:
                self._break(f"descriptor {index} of {count}")
            if walked == count:
                self._break(f"a chain of more than the {count} descriptors that there are")
            address, length, flags, after = _unpack(descriptors, index << 4)
            walked += 1
            if flags & INDIRECT:
                if flags & NEXT or descriptors is not self._descriptors:
                    self._break(f"an indirect descriptor with flags {flags:#x}, or in an indirect table")
                table = self._indirect(address, length)
                _, room = self._walk(table, 0, len(table) >> 4, readable, writable, ranges)
                return walked, total - to_read + room
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
            if not flags & NEXT:
                if total > MAX_BYTES:
                    self._break("a chain of more than 4 GiB")
                return walked, total - to_read
            index = after

    def _keep(self, head: int) -> None:
        assert self.inflight is not None
        try:
            self.inflight.take(head)
        except ProtocolError as error:
            self._break(str(error))

    def _resubmit(self, inflight: SplitInflight) -> None:
        try:
            heads = inflight.recover(self._used_index, self.size)
        except ProtocolError as error:
            self._break(str(error))
        chains = [self._gather(head) for head in heads]
        self._next = self._seen = self._used_index + len(chains) & _WRAP
        for chain in chains:
            chain.again = True
            self._taken(chain)
        self.resubmitted.extend(chains)

    def _is_wanted(self, before: int, used: int) -> bool:
        """Whether the driver wants to be told that the used index has gone from `before` to `used`."""
        fence()
        if not self._told:
            self._told = True
            return True
        if self.has_events:
            event = self._available[_HEADER + self.size]
            return used - event - 1 & _WRAP < used - before & _WRAP
        return not self._available[_FLAGS] & _SILENT

    def _mark_event(self, offset: int) -> None:
        if self.used_log is not None:
            self._mark_ring(self.used_log + offset, 2)
