"""What split and packed rings have in common: where their memory is, what becomes of broken ones, the order of answers.

A ring has one user at a time. Its stores are seen by a driver that runs on another core in the order in which they are
made here: bytes of a memoryview are stored by one instruction each, which x86-64 keeps in order, and `fence` is where a
later look must not come before an earlier store. (`struct.pack_into` writes zeros first, which a driver would see.)

The order for requests that are done: data, dirty log, used ring, dirty log, used index.
"""

from __future__ import annotations

import struct
from abc import ABC, abstractmethod
from collections import deque
from contextlib import suppress
from threading import Lock
from typing import Final, NamedTuple, NoReturn

from userdev.errors import ProtocolError
from vhost_user.memory import DirtyLog, Iotlb, MemoryTable, Permission
from vhost_user.memory.table import NOWHERE, GuestRange, MappedRegion, Nowhere
from vhost_user.rings.chain import BrokenRing, Chain
from vhost_user.rings.inflight import QueueRegion
from vhost_user.wire.features import VirtioFeature

DESCRIPTOR: Final = struct.Struct("<QIHH")
"""addr, len, flags, next (split); addr, len, id, flags (packed)."""

NEXT: Final = 1
WRITE: Final = 2
INDIRECT: Final = 4
"""Flags of descriptors (virtio 1.3, "The Virtqueue Descriptor Table")."""

MAX_SIZE: Final = 32768

MAX_INDIRECT: Final = 1024
"""Descriptors of an indirect table, or the ring's size where that is more; as QEMU takes them (VIRTQUEUE_MAX_SIZE)."""

MAX_BYTES: Final = 1 << 32
"""Of a chain (virtio 1.3, "The Virtqueue Descriptor Table")."""

_READ: Final = Permission.READ
_WRITE: Final = Permission.WRITE | Permission.READ
_lock: Final = Lock()


def fence() -> None:
    """Have what was stored be seen before what is looked at next: a full barrier, as a lock is one on x86-64."""
    with _lock:
        pass


class RingAddresses(NamedTuple):
    """The addresses of a ring, as SET_VRING_ADDR says: the front-end's own, or I/O virtual ones with an IOTLB.

    In a packed ring, `available` is the event suppression area of the driver and `used` the device's.
    """

    descriptor: int
    used: int
    available: int


class WrongLength(ValueError):
    """A device says that it has written what a request has no room for."""


class Ring(ABC):
    """One virtqueue that is started: `pop` takes requests, `push` gives them back, `publish` lets the driver know.

    `log` and `used_log` may be set at any time: a migration begins while the ring runs.
    """

    def __init__(
        self,
        size: int,
        addresses: RingAddresses,
        table: MemoryTable,
        features: VirtioFeature,
        *,
        inflight: QueueRegion | None = None,
        iotlb: Iotlb | None = None,
        by_guest_address: bool = False,
    ) -> None:
        """Find the ring's memory.

        `by_guest_address`: its addresses are the guest's (GPA_ADDRESSES).

        Raises:
            BrokenRing: size or addresses are wrong.
            IotlbMiss: where it is has to be asked for first.
        """
        self.size = size
        self.addresses = addresses
        self.table = table
        self.iotlb = iotlb
        self.log: DirtyLog | None = None
        """Where writes are marked, as long as LOG_ALL is on."""
        self.used_log: int | None = None
        """The guest address that writes to the used ring are marked from, with VRING_F_LOG."""
        self._kept = inflight
        """What was taken and not given back, for a successor; each kind of ring writes its own into it."""
        self.broken = ""
        """Why it takes no requests any more; not the error, whose frames would keep the ring and its memory."""
        self.is_lost = False
        """Whether it cannot give back either what it has taken: its memory, its log or its account has gone."""
        self.resubmitted: deque[Chain] = deque()
        """What was under way when a back-end died: taken first."""
        self.outstanding = 0
        """Requests that were taken and not published yet: none once a ring is drained, unless it is broken."""
        self.has_events = VirtioFeature.EVENT_IDX in features
        self._by_guest_address = by_guest_address
        self._has_indirect = VirtioFeature.INDIRECT_DESC in features
        self._longest_table = max(MAX_INDIRECT, size) * DESCRIPTOR.size
        self._in_order: deque[Chain] | None = deque() if VirtioFeature.IN_ORDER in features else None
        self._finished: list[Chain] = []
        self._generation = -1
        self._check_size()
        if table.can_shrink:
            with suppress(ProtocolError):  # what has shrunk is in no region any more, and is not found
                table.check()
        self._look_up()

    @property
    @abstractmethod
    def base(self) -> int:
        """The place of the next request, as GET_VRING_BASE answers it."""

    @abstractmethod
    def pop(self) -> Chain | None:
        """Take the next request; None where there is none.

        Raises:
            BrokenRing: what is there cannot be right; the ring is broken from now on.
            IotlbMiss: an address has to be asked for; the request is there still.
        """

    def unpop(self, chain: Chain) -> None:
        """Leave the request that was taken last, and not pushed, in the ring: `pop` takes it again.

        Raises:
            BrokenRing: the in-flight region was changed by another, or has shrunk.
        """
        self._check_mappings()
        if chain.again:
            chain.rewind()  # others are made anew when they are taken again
            self.resubmitted.appendleft(chain)
            return
        if self._in_order is not None:
            self._in_order.pop()
        self.outstanding -= 1
        self._leave(chain)

    @abstractmethod
    def _leave(self, chain: Chain) -> None:
        """Go back to this request, which was taken last."""

    @abstractmethod
    def publish(self) -> bool:
        """Let the driver have what was pushed; whether it wants to be told (the call descriptor).

        A ring that an entry has broken gives back what was taken before that.

        Raises:
            BrokenRing: the ring's memory has gone, or the dirty log does not reach so far.
        """

    @abstractmethod
    def enable_kicks(self) -> bool:
        """Ask the driver to tell of new requests; True where some have come before it could know.

        Raises:
            BrokenRing: the ring's memory has gone, or its index is wrong.
        """

    def has_requests(self) -> bool:
        """Whether there is something to take, without asking the driver to tell of it.

        Raises:
            BrokenRing: the ring's memory has gone.
        """
        if self.broken or self._generation != self.table.generation or self._is_watched:
            self.refresh()
        return bool(self.resubmitted) or self._has_next()

    @abstractmethod
    def disable_kicks(self) -> None:
        """Tell the driver that it need not tell: requests are looked for anyway.

        Raises:
            BrokenRing: the ring's memory has gone.
            IotlbMiss: where it is has to be asked for first.
        """

    def push(self, chain: Chain, written: int) -> None:
        """Give a request back, with so many bytes written at the beginning of its writable buffers.

        The driver has it after `publish`; where rings are in order, after those that were taken before it.

        Raises:
            ValueError: it was given back before.
            WrongLength: it has not so much room (virtio 1.3, "The Virtqueue Used Ring": so many bytes at least are
                written), the count is negative, or none of 32 bits.
        """
        if chain.done:
            raise ValueError(f"a request given back again, with {written} bytes written")
        if not 0 <= written <= chain.room or written == MAX_BYTES:
            raise WrongLength(f"{written} bytes in a request that has room for {chain.room}")
        chain.length = written
        chain.done = True
        order = self._in_order
        if order is None:
            self._finished.append(chain)
            return
        while order and order[0].done:
            self._finished.append(order.popleft())

    def refresh(self) -> None:
        """Look where the ring's memory is, if any memory has come, gone or shrunk since.

        Raises:
            BrokenRing: it is not there any more.
            IotlbMiss: where it is has to be asked for first.
        """
        if self.broken:
            raise BrokenRing(self.broken)
        self._look_around()

    def _look_around(self) -> None:
        """`refresh`, also of a ring that an entry has broken."""
        if self.is_lost:
            raise BrokenRing(self.broken)
        if self.table.can_shrink:
            try:
                self.table.check()
            except ProtocolError as error:
                self._lost(error)
        if self.log is not None or self._kept is not None:
            self._check_mappings()
        if self._generation != self.table.generation:
            self._look_up()

    def log_used(self, address: int | None) -> None:
        """Have writes to the used ring be marked from this address on, as SET_VRING_ADDR says; None: not at all."""
        self.used_log = address
        self._generation = -1  # behind an IOMMU the address is to be looked up

    @abstractmethod
    def _check_size(self) -> None:
        """Raise BrokenRing where there can be no ring of this size or at these addresses."""

    @abstractmethod
    def _has_next(self) -> bool:
        """Whether the driver has made another request available."""

    @abstractmethod
    def _map(self) -> None:
        """Keep the views of the ring's memory."""

    def _look_up(self) -> None:
        try:
            self._map()
        except ProtocolError as error:
            self._lose(str(error))
        self._generation = self.table.generation

    @property
    def _is_watched(self) -> bool:
        """Whether any memory has to be looked at before it is written, as it could have shrunk."""
        return self.table.can_shrink or self.log is not None or self._kept is not None

    def _check_mappings(self) -> None:
        try:
            if self.log is not None:
                self.log.check()
            if self._kept is not None:
                self._kept.check()
        except ProtocolError as error:
            self._lose(str(error))

    def _lost(self, error: ProtocolError) -> None:
        """A memory file has shrunk: this ring is broken if it was in there, and finds out when it looks itself up."""
        try:
            self._map()
        except ProtocolError:
            self._lose(str(error))

    def _part(self, address: int, size: int, align: int, *, written: bool) -> memoryview:
        """A part of the ring, in one piece."""
        if address % align:
            raise ProtocolError(f"a part of a ring at {address:#x}, which is no multiple of {align}")
        if self.iotlb is not None:
            return self.iotlb.view(address, size, _WRITE if written else _READ)
        return self.table.view(address, size) if self._by_guest_address else self.table.user_view(address, size)

    def _elsewhere(
        self, address: int, length: int, flags: int, into: list[memoryview], ranges: list[GuestRange]
    ) -> MappedRegion | Nowhere:
        """Add a buffer that is not in the region at hand; the one to look into for the next."""
        if self.iotlb is None and (region := self.table.region_of(address, length)).size:
            at = address - region.guest
            into.append(region.view[at : at + length])
            if flags & WRITE:
                ranges.append((address, length))
            return region
        self._buffer(address, length, flags, into, ranges)
        return NOWHERE

    def _buffer(self, address: int, length: int, flags: int, into: list[memoryview], ranges: list[GuestRange]) -> None:
        """Add a buffer's views, and where the guest has it if it is to be written, however it is to be found."""
        try:
            if self.iotlb is None:
                places = [(address, length)]
            else:
                places = self.iotlb.translate(address, length, Permission.WRITE if flags & WRITE else Permission.READ)
            for guest, size in places:
                into += self.table.views(guest, size)
            if flags & WRITE:
                ranges += places
        except ProtocolError as error:
            self._break(f"a buffer of {length:#x} bytes: {error}")

    def _indirect(self, address: int, length: int) -> bytes:
        """The descriptors of an indirect table; copied, so that they stay as they are checked."""
        if not self._has_indirect:
            self._break("an indirect descriptor, which was not negotiated")
        if length % DESCRIPTOR.size or not 0 < length <= self._longest_table:
            self._break(f"an indirect table of {length:#x} bytes")
        region = self.table.recent
        at = address - region.guest
        if self.iotlb is None and 0 <= at <= region.size - length:
            return region.view[at : at + length].tobytes()
        pieces: list[memoryview] = []
        self._buffer(address, length, 0, pieces, [])
        return b"".join(pieces)

    def _break(self, what: str) -> NoReturn:
        """Break the ring.

        Raises:
            BrokenRing: always.
        """
        self.broken = what
        raise BrokenRing(what)

    def _lose(self, what: str) -> NoReturn:
        """Break the ring, with all that it has taken.

        Raises:
            BrokenRing: always.
        """
        self.is_lost = True
        self._break(what)

    def _taken(self, chain: Chain) -> None:
        if self._in_order is not None:
            self._in_order.append(chain)
        self.outstanding += 1

    def _mark(self, chains: list[Chain]) -> None:
        """Have what may have been written be sent again by a migration."""
        log = self.log
        if log is None:
            return
        try:
            for chain in chains:
                for address, length in chain.ranges:
                    log.mark(address, length)
        except ProtocolError as error:
            self._lose(str(error))

    def _mark_ring(self, address: int, length: int) -> None:
        """The same for a part of the ring itself, at a guest address."""
        if self.log is not None:
            try:
                self.log.mark(address, length)
            except ProtocolError as error:
                self._lose(str(error))
