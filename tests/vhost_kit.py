"""A guest for virtqueues: memory, drivers of both kinds of ring, and a spy that sees every store."""

from __future__ import annotations

import copy
import dis
import functools
import mmap
import os
import struct
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import CodeType, FrameType
from typing import Any, Self

from vhost_user.memory import MemoryTable
from vhost_user.rings import Chain, PackedInflight, PackedRing, RingAddresses, SplitInflight, SplitRing, region_size
from vhost_user.wire import VirtioFeature
from vhost_user.wire.payloads import Region

USER = 0x7F0000000000
"""Where the front-end has the guest's memory, which begins at 0 for the guest."""

F = VirtioFeature
DESCRIPTOR = struct.Struct("<QIHH")
AVAIL, USED = 1 << 7, 1 << 15


class Guest:
    """Memory of a guest in one memfd, as regions of these sizes one behind the other, and a table that has it."""

    def __init__(self, *sizes: int) -> None:
        self.sizes = sizes or (1 << 18,)
        self.size = sum(self.sizes)
        self.fd = os.memfd_create("guest")
        os.ftruncate(self.fd, self.size)
        self.memory = mmap.mmap(self.fd, self.size)
        self.table = MemoryTable()
        self.share()

    def share(self, sizes: Sequence[int] | None = None) -> None:
        """Give these regions to the table, instead of what it had."""
        regions, at = [], 0
        for size in self.sizes if sizes is None else sizes:
            regions.append(Region(at, size, USER + at, at))
            at += size
        self.table.set(regions, [self.fd] * len(regions))

    def close(self) -> None:
        self.table.clear()
        self.memory.close()
        os.close(self.fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Driver:
    """A driver's side of one ring: its ring from address 0 on, its buffers behind."""

    BUFFERS = 0x2000

    def __init__(self, guest: Guest, size: int = 8, features: VirtioFeature = F.VERSION_1) -> None:
        self.guest = guest
        self.size = size
        self.features = features
        self.brk = self.BUFFERS
        self.added: list[int] = []
        """Requests, by the content of their first 4 bytes, in order."""
        self.seen: list[int] = []
        """Requests that came back, in order."""
        self.given: dict[int, tuple[int, list[tuple[int, int]]]] = {}
        """Number that the ring knows a request by: (request, its writable buffers)."""
        self.lengths: dict[int, int] = {}
        self.data: dict[int, bytes] = {}

    addresses: RingAddresses

    def clone(self, guest: Guest) -> Self:
        """The same driver over another memory with the same content."""
        other = copy.copy(self)
        other.guest = guest
        for name, value in vars(self).items():
            if isinstance(value, list | dict):
                setattr(other, name, copy.copy(value))
        return other

    def buffer(self, data: bytes | int) -> tuple[int, int]:
        """(address, bytes) of a new buffer, filled."""
        data = bytes(data)
        at, self.brk = self.brk, self.brk + len(data)
        self.guest.memory[at : at + len(data)] = data
        return at, len(data)

    def request(
        self, payload: bytes = b"", writable: Sequence[int] = (64,), *, indirect: bool = False, direct: int = 0
    ) -> int:
        """Make a request available: 4 bytes that number it, a payload and buffers to be written; return its number.

        Where it is `indirect`, so many of its buffers are `direct` all the same, before the table of the others.
        """
        number = len(self.added) + 1
        readable = [self.buffer(struct.pack("<I", number)), *([self.buffer(payload)] if payload else [])]
        into = [self.buffer(size) for size in writable]
        chain = [(at, size, 0) for at, size in readable] + [(at, size, 2) for at, size in into]
        if indirect:
            chain = [*chain[:direct], (*self.table(chain[direct:]), 4)]
        self.given[self.put(chain)] = number, into
        self.added.append(number)
        return number

    def table(self, chain: Sequence[tuple[int, int, int]]) -> tuple[int, int]:
        raise NotImplementedError

    def put(self, chain: Sequence[tuple[int, int, int]]) -> int:
        """Make (address, bytes, flags) available; what the ring knows it by."""
        raise NotImplementedError

    def used(self) -> Iterator[tuple[int, int]]:
        """Take what came back: (what the ring knows it by, bytes written)."""
        raise NotImplementedError

    def collect(self) -> list[int]:
        """Requests that have come back since."""
        new = []
        for known_by, length in self.used():
            number, into = self.given.pop(known_by)
            self.lengths[number] = length
            self.data[number] = b"".join(self.guest.memory[at : at + size] for at, size in into)
            new.append(number)
        self.seen += new
        return new


class SplitDriver(Driver):
    addresses = RingAddresses(USER, USER + 0x1800, USER + 0x1000)
    packed = False

    def __init__(self, guest: Guest, size: int = 8, features: VirtioFeature = F.VERSION_1, start: int = 0) -> None:
        super().__init__(guest, size, features)
        self.available = self.taken = start
        self.free = list(range(size))
        self.chains: dict[int, list[int]] = {}
        self._store(0x1002, start)
        self._store(0x1802, start)

    def ring(self, **options: Any) -> SplitRing:
        options = {"base": self.taken, **options}
        return SplitRing(self.size, self.addresses, self.guest.table, self.features, **options)

    def descriptor(self, index: int, address: int, length: int, flags: int, after: int = 0) -> None:
        self.guest.memory[16 * index : 16 * index + 16] = DESCRIPTOR.pack(address, length, flags, after)

    def table(self, chain: Sequence[tuple[int, int, int]]) -> tuple[int, int]:
        last = len(chain) - 1
        entries = [
            DESCRIPTOR.pack(at, size, flags | (i < last), (i + 1) * (i < last))
            for i, (at, size, flags) in enumerate(chain)
        ]
        return self.buffer(b"".join(entries))

    def put(self, chain: Sequence[tuple[int, int, int]]) -> int:
        places = [self.free.pop(0) for _ in chain]
        for i, (at, size, flags) in enumerate(chain):
            more = i + 1 < len(chain)
            self.descriptor(places[i], at, size, flags | more, places[i + 1] if more else 0)
        self.chains[places[0]] = places
        self.offer(places[0])
        return places[0]

    def offer(self, head: int) -> None:
        """Make a head available, whatever is there."""
        self._store(0x1004 + 2 * (self.available % self.size), head)
        self.available = self.available + 1 & 0xFFFF
        self._store(0x1002, self.available)

    def used(self) -> Iterator[tuple[int, int]]:
        (end,) = struct.unpack_from("<H", self.guest.memory, 0x1802)
        while self.taken != end:
            head, length = struct.unpack_from("<II", self.guest.memory, 0x1804 + 8 * (self.taken % self.size))
            self.taken = self.taken + 1 & 0xFFFF
            self.free += self.chains.pop(head)
            yield head, length

    def wants_no_interrupts(self) -> None:
        self._store(0x1000, 1)

    def wants_interrupt_after(self, count: int) -> None:
        """Be told once so many more requests than now have come back."""
        self._store(0x1004 + 2 * self.size, self.taken + count - 1 & 0xFFFF)

    @property
    def wants_kick(self) -> bool:
        """Whether the device wants to be told of what was made available last."""
        if F.EVENT_IDX in self.features:
            (event,) = struct.unpack_from("<H", self.guest.memory, 0x1804 + 8 * self.size)
            return bool(event == self.available - 1 & 0xFFFF)
        return not self.guest.memory[0x1800] & 1

    def _store(self, at: int, value: int) -> None:
        self.guest.memory[at : at + 2] = struct.pack("<H", value)


class PackedDriver(Driver):
    addresses = RingAddresses(USER, USER + 0x1804, USER + 0x1800)
    packed = True

    def __init__(self, guest: Guest, size: int = 8, features: VirtioFeature = F.VERSION_1, start: int = 0) -> None:
        """`start`: how many descriptors both sides have gone through."""
        super().__init__(guest, size, features)
        self.at = self.taken = start % size
        self.wrap = self.taken_wrap = 1 - start // size % 2
        for i in range(size):  # those of this lap are used, those before them of the lap before
            wrap = self.wrap if i < self.at else 1 - self.wrap
            if start:
                self._flags(i, (AVAIL | USED) * wrap)
        self.start_base = self.at | self.wrap << 15 | self.at << 16 | self.wrap << 31
        self.ids = list(range(100, 100 + size))
        self.slots: dict[int, int] = {}

    def ring(self, **options: Any) -> PackedRing:
        options = {"base": self.start_base, **options}
        return PackedRing(self.size, self.addresses, self.guest.table, self.features, **options)

    def descriptor(self, index: int, address: int, length: int, id_: int, flags: int) -> None:
        self.guest.memory[16 * index : 16 * index + 16] = DESCRIPTOR.pack(address, length, id_, flags)

    def table(self, chain: Sequence[tuple[int, int, int]]) -> tuple[int, int]:
        return self.buffer(b"".join(DESCRIPTOR.pack(at, size, 0, flags) for at, size, flags in chain))

    def put(self, chain: Sequence[tuple[int, int, int]]) -> int:
        known_by = self.ids.pop(0)
        first, first_flags = self.at, 0
        for i, (at, size, flags) in enumerate(chain):
            flags |= (i + 1 < len(chain)) | (AVAIL if self.wrap else USED)
            if i == 0:
                first_flags = flags
                (flags,) = struct.unpack_from("<H", self.guest.memory, 16 * self.at + 14)
            self.descriptor(self.at, at, size, known_by, flags)
            self.at += 1
            if self.at == self.size:
                self.at, self.wrap = 0, 1 - self.wrap
        self._flags(first, first_flags)
        self.slots[known_by] = len(chain)
        return known_by

    def used(self) -> Iterator[tuple[int, int]]:
        while True:
            _, length, known_by, flags = DESCRIPTOR.unpack_from(self.guest.memory, 16 * self.taken)
            if flags & (AVAIL | USED) != (AVAIL | USED) * self.taken_wrap:
                return
            assert bool(flags & WRITE) == bool(length), "a used descriptor says whether anything was written"
            self.taken += self.slots.pop(known_by)
            if self.taken >= self.size:
                self.taken, self.taken_wrap = self.taken - self.size, 1 - self.taken_wrap
            self.ids.append(known_by)
            yield known_by, length

    def wants_no_interrupts(self) -> None:
        self.guest.memory[0x1802:0x1804] = b"\1\0"

    def wants_interrupt_after(self, count: int) -> None:
        """Be told once the descriptors of so many more one-descriptor requests than now have come back."""
        at, wrap = self.taken + count - 1, self.taken_wrap
        if at >= self.size:
            at, wrap = at - self.size, 1 - wrap
        self.guest.memory[0x1800:0x1804] = struct.pack("<HH", at | wrap << 15, 2)

    @property
    def wants_kick(self) -> bool:
        """Whether the device wants to be told of the last descriptor that was made available."""
        place, events = struct.unpack_from("<HH", self.guest.memory, 0x1804)
        if events == 2:
            last, wrap = (self.at - 1, self.wrap) if self.at else (self.size - 1, 1 - self.wrap)
            return bool(place == last | wrap << 15)
        return bool(events == 0)

    def _flags(self, index: int, flags: int) -> None:
        self.guest.memory[16 * index + 14 : 16 * index + 16] = struct.pack("<H", flags)


AnyDriver = SplitDriver | PackedDriver
AnyRing = SplitRing | PackedRing


def inflight(region: memoryview, driver: AnyDriver) -> Any:
    kind = PackedInflight if driver.packed else SplitInflight
    return kind(region, driver.size)


def inflight_region(driver: AnyDriver) -> bytearray:
    return bytearray(region_size(driver.size, packed=driver.packed))


STORE_NOTHING = (
    *("LOAD_FAST", "LOAD_CONST", "LOAD_GLOBAL", "LOAD_DEREF", "LOAD_ATTR", "LOAD_METHOD", "STORE_FAST"),
    *("BINARY_", "COMPARE_OP", "CONTAINS_OP", "IS_OP", "UNARY_", "BUILD_TUPLE", "BUILD_SLICE", "UNPACK_SEQUENCE"),
    *("COPY", "KW_NAMES", "NOP", "POP_TOP", "PRECALL", "PUSH_NULL", "RESUME", "SWAP", "JUMP_", "POP_JUMP_"),
)
"""How instructions begin behind which memory is what it was: most of them."""


@functools.cache
def _behind_what_stores(code: CodeType) -> frozenset[int]:
    """The places of instructions that may be reached from one that stores."""
    places, stores = [], True
    for instruction in dis.get_instructions(code):
        if stores or instruction.is_jump_target:
            places.append(instruction.offset)
        if instruction.opname != "EXTENDED_ARG":
            stores = not instruction.opname.startswith(STORE_NOTHING)
    return frozenset(places)


@contextmanager
def after_each_store(memories: Sequence[mmap.mmap | bytearray], seen: Callable[[int], None]) -> Iterator[None]:
    """Within the block, call `seen` whenever something in vhost_user/ has changed one of these memories: which one.

    Each instruction of the interpreter that may store is looked behind, so that nothing is stored unseen.
    """
    copies = [bytes(memory) for memory in memories]

    def look() -> None:
        for index, memory in enumerate(memories):
            if memory[:] != copies[index]:
                copies[index] = bytes(memory)
                seen(index)

    def called(frame: FrameType, _event: str, _argument: object) -> Any:
        if "/vhost_user/" not in frame.f_code.co_filename:
            return None
        frame.f_trace_opcodes = True
        places = _behind_what_stores(frame.f_code)

        def goes_on(frame: FrameType, event: str, _argument: object) -> Any:
            if event != "opcode" or frame.f_lasti in places:
                look()
            return goes_on

        look()
        return goes_on

    before = sys.gettrace()
    sys.settrace(called)
    try:
        yield
    finally:
        sys.settrace(before)


ALL = F.VERSION_1 | F.INDIRECT_DESC | F.EVENT_IDX
NEXT, WRITE, INDIRECT = 1, 2, 4


def take(ring: AnyRing) -> Chain:
    chain = ring.pop()
    assert chain is not None
    return chain


def finish(ring: AnyRing, chain: Chain, data: bytes = b"") -> bool:
    ring.push(chain, chain.write(data))
    return ring.publish()
