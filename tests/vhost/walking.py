"""A ring and its driver, walked at random beside a model of both, with whatever was negotiated."""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any

from tests.vhost_kit import (
    AVAIL,
    USED,
    USER,
    AnyDriver,
    AnyRing,
    Driver,
    F,
    Guest,
    PackedDriver,
    inflight,
    inflight_region,
)
from vhost_user.memory import DirtyLog, Iotlb
from vhost_user.rings import Chain
from vhost_user.wire.payloads import IotlbMessage, IotlbType

SIZE = 1 << 16
PIECE = 1 << 9
"""Of memory that is looked at for changes, byte by byte where there are some."""
_FEW = 120
"""Steps of a walk: the guest's memory has room for so many requests."""
_REGIONS = (0x2025, *range(300, 3300, 300), SIZE - 0x2025 - sum(range(300, 3300, 300)))
"""Of memory: the ring is in the first, and buffers and tables go over the borders of the others."""
_HEIGHT = 15
"""Of them in which the ring becomes fuller, before as many in which it becomes emptier."""


class Marks(DirtyLog):
    """A log that keeps each mark as it was made, to the byte."""

    def __init__(self) -> None:
        self.marked = bytearray(SIZE)
        self.is_told: Callable[[], bool] = lambda: False
        """Whether the driver can see what is being given back."""

    def check(self) -> None:
        """There is no file."""

    def mark(self, address: int, length: int) -> None:
        """Keep it; what is behind the ring is marked before the driver can see that it is done."""
        assert address < Driver.BUFFERS or not self.is_told()
        self.marked[address : address + length] = b"\1" * length


@dataclass(eq=False)
class Request:
    """A request as the model has it."""

    number: int
    slots: int
    writable: int
    chain: Chain | None = None
    done: bool = False
    changed: set[int] = field(default_factory=set)
    """Places in its buffers that its device has written."""


class Walk:
    """One walk. Each step is a method that checks what it can see."""

    def __init__(
        self, kind: type[AnyDriver], features: F, size: int, start: int, seed: int, *, tracked: bool, behind: bool
    ) -> None:
        self.chance = Random(seed)
        self.features = features
        self.guest = Guest(*_REGIONS)
        self.driver = kind(self.guest, size, features, start=start)
        self.packed = kind is PackedDriver
        self.region = inflight_region(self.driver) if tracked else None
        self.iotlb = Iotlb(self.guest.table) if behind else None
        if self.iotlb is not None:
            for iova in (0, USER):
                self.iotlb.handle(IotlbMessage(iova, SIZE, USER, 3, IotlbType.UPDATE))
        self.marks = Marks()
        self.marks.is_told = self._is_told
        self.waiting: deque[Request] = deque()
        """Available, in order."""
        self.taken: list[Request] = []
        """In order; some are done, and not published."""
        self.came: list[Request] = []
        """All that the ring gave, in order, but for those that were left."""
        self.finished: list[Request] = []
        """In the order in which the driver is to have them."""
        self.place = start
        """The used index; of a packed ring used descriptors, in two rounds."""
        self.wish: int | None = None
        """The place that the driver wants to be told of; None: of all."""
        self.silent = False
        self.told = False
        self.ring = self._ring({} if self.packed else {"base": start & 0xFFFF})

    @property
    def rounds(self) -> int:
        return 2 * self.driver.size if self.packed else 1 << 16

    def _ring(self, options: dict[str, Any]) -> AnyRing:
        if self.region is not None:
            options["inflight"] = inflight(memoryview(self.region), self.driver)
        ring = self.driver.ring(iotlb=self.iotlb, **options)
        ring.log_used(USER + 0x1800 if self.iotlb is not None else 0x1800)
        ring.log = self.marks
        self.told = False
        self.came = []
        return ring

    def go(self) -> None:
        """Take so many steps, and bring everything to its end."""
        filling = [
            self.put,
            self.put,
            self.take,
            self.take,
            self.leave,
            self.push,
            self.wants,
            self.kicks,
            self.publish,
        ]
        emptying = [self.take, self.push, self.push, self.publish, self.leave, self.wants, self.restart, self.die]
        with self.guest:
            for step in range(_FEW):
                self.chance.choice(emptying if step // _HEIGHT % 2 else filling)()
            while self.waiting or self.taken:
                self.take()
                self.push()
                self.publish()
            assert sorted(self.driver.seen) == self.driver.added
            assert self.ring.outstanding == 0

    # steps

    def put(self, most: int = 2) -> None:
        """The driver makes a request available where there is room, with so many buffers to be written at most."""
        under_way = sum(request.slots for request in (*self.waiting, *self.taken))
        indirect = F.INDIRECT_DESC in self.features and self.chance.random() < 0.5
        sizes = [self.chance.randint(1, 24) for _ in range(self.chance.randint(0, most))]
        direct = self.chance.randint(0, len(sizes)) if indirect else len(sizes)
        slots = 1 + direct
        if under_way + slots <= self.driver.size:
            number = self.driver.request(writable=sizes, indirect=indirect, direct=direct)
            self.waiting.append(Request(number, slots, sum(sizes)))

    def take(self) -> None:
        """The device takes the next."""
        chain = self._watched(self.ring.pop)
        assert (chain is None) == (not self.waiting)
        if chain is not None:
            request = self.waiting.popleft()
            request.chain = chain
            assert struct.unpack("<I", chain.read(4)) == (request.number,), "they come in their order"
            assert chain.room == request.writable
            self.taken.append(request)
            self.came.append(request)
            self._check_kept()

    def leave(self) -> None:
        """The device leaves the one that it took last."""
        if self.came and not self.came[-1].done:
            request = self.came.pop()
            self.taken.remove(request)
            assert request.chain is not None
            self._watched(lambda: self.ring.unpop(request.chain))
            self.waiting.appendleft(request)
            self._check_kept()

    def push(self) -> None:
        """The device has done one of those that it has."""
        open_ = [request for request in self.taken if not request.done]
        if open_:
            request = self.chance.choice(open_)
            chain = request.chain
            assert chain is not None
            before = self.guest.memory[:]
            written = chain.write(self.chance.randbytes(self.chance.randint(0, request.writable)))
            request.changed |= self._changed(before)
            self.ring.push(chain, written)
            request.done = True
            if F.IN_ORDER in self.features:
                while len(self.finished) < len(self.taken) and self.taken[len(self.finished)].done:
                    self.finished.append(self.taken[len(self.finished)])
            else:
                self.finished.append(request)

    def publish(self) -> None:
        """The driver has what was done, in order, and is told where it wants that; all of it is marked."""
        self.marks.marked[:] = bytes(SIZE)
        finished, self.finished = self.finished, []
        called = self._watched(self.ring.publish, marks=True)
        assert self.driver.collect() == [request.number for request in finished]
        for request in finished:
            assert request.chain is not None
            assert self.driver.lengths[request.number] == request.chain.length
            assert all(self.marks.marked[at] for at in request.changed), "data is marked"
        self.taken = [request for request in self.taken if request not in finished]
        amount = sum(request.slots for request in finished) if self.packed else len(finished)
        assert called == (bool(finished) and self._is_wanted(amount))
        if finished:
            self.told = True
            self.place = (self.place + amount) % self.rounds
        self._check_kept()

    def _is_told(self) -> bool:
        """Whether more has come back than the driver has taken."""
        if isinstance(self.driver, PackedDriver):
            (flags,) = struct.unpack_from("<H", self.guest.memory, 16 * self.driver.taken + 14)
            return bool(flags & (AVAIL | USED) == (AVAIL | USED) * self.driver.taken_wrap)
        return struct.unpack_from("<H", self.guest.memory, 0x1802) != (self.driver.taken,)

    def _is_wanted(self, amount: int) -> bool:
        if not self.told:
            return True
        return not self.silent if self.wish is None else (self.wish - self.place) % self.rounds < amount

    def wants(self) -> None:
        """The driver has another wish."""
        if F.EVENT_IDX in self.features:
            count = self.chance.randint(1, self.driver.size)
            self.driver.wants_interrupt_after(count)
            self.wish = (self.place + count - 1) % self.rounds
        elif not self.silent:
            self.driver.wants_no_interrupts()
            self.silent = True

    def kicks(self) -> None:
        """The device asks to be told, and is told of the next request; or does not want to be."""
        has_some = self._watched(self.ring.enable_kicks, marks=True)
        assert has_some == bool(self.waiting)
        if not self.waiting:
            self.put(most=0)  # one descriptor, of which the driver can see whether the device wants to be told
            assert self.driver.wants_kick or not self.waiting
        self._watched(self.ring.disable_kicks, marks=True)
        if self.packed or F.EVENT_IDX not in self.features:
            assert not self.driver.wants_kick
        assert self.ring.has_requests() == bool(self.waiting)

    def restart(self) -> None:
        """The ring is stopped, with nothing under way, and goes on where it was."""
        if not self.taken and not self.ring.resubmitted:
            self.ring = self._ring({"base": self.ring.base})

    def die(self) -> None:
        """The back-end dies, and what it had taken is there again for the next, in its order."""
        if self.region is None:
            return
        self.waiting.extendleft(reversed(self.taken))
        for request in self.taken:
            request.chain, request.done, request.changed = None, False, set()
        self.taken, self.finished = [], []
        options = {}
        if self.packed:  # the front-end's word, which the region overrules
            place = self.place % self.driver.size | (1 - self.place // self.driver.size % 2) << 15
            options["base"] = place | place << 16
        self.ring = self._ring(options)
        lost = [request.number for request in self.waiting][: len(self.ring.resubmitted)]
        assert [int(struct.unpack("<I", chain.read(4))[0]) for chain in self.ring.resubmitted] == lost
        for chain in self.ring.resubmitted:
            chain.rewind()

    # what is looked at in each

    def _watched(self, act: Any, *, marks: bool = False) -> Any:
        """Do it; what that changes in the guest's memory is to be marked, or is nothing."""
        if marks:
            self.marks.marked[:] = bytes(SIZE)
        before = self.guest.memory[:]
        result = act()
        changed = self._changed(before)
        assert all(self.marks.marked[at] for at in changed) if marks else not changed
        return result

    def _changed(self, before: bytes) -> set[int]:
        after = self.guest.memory[:]
        return {
            at
            for piece in range(0, SIZE, PIECE)
            if before[piece : piece + PIECE] != after[piece : piece + PIECE]
            for at in range(piece, piece + PIECE)
            if before[at] != after[at]
        }

    def _check_kept(self) -> None:
        """The in-flight region has what was taken and not given back, whoever has taken it."""
        if self.region is not None:
            header, entry = (32, 32) if self.packed else (16, 16)
            assert sum(self.region[header::entry][: self.driver.size]) == len(self.taken) + len(self.ring.resubmitted)
