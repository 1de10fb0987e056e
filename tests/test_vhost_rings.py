"""Virtqueues: requests come whole and go back in the right order of stores; what cannot be right breaks one ring."""

from __future__ import annotations

import contextlib
import mmap
import os
import struct
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.vhost_kit import USER, AnyDriver, AnyRing, F, Guest, PackedDriver, SplitDriver, after_each_store
from vhost_user.memory import DirtyLog, Iotlb, IotlbMiss, Permission
from vhost_user.memory.iotlb import IotlbType
from vhost_user.rings import BrokenRing, Chain, RingAddresses
from vhost_user.wire.payloads import IotlbMessage, Log, Region

ROOT = Path(__file__).parent.parent
BOTH = pytest.mark.parametrize("kind", [SplitDriver, PackedDriver])
ALL = F.VERSION_1 | F.INDIRECT_DESC | F.EVENT_IDX
NEXT, WRITE, INDIRECT = 1, 2, 4


@pytest.fixture
def guest() -> Iterator[Guest]:
    with Guest() as made:
        yield made


def take(ring: AnyRing) -> Chain:
    chain = ring.pop()
    assert chain is not None
    return chain


def finish(ring: AnyRing, chain: Chain, data: bytes = b"") -> bool:
    ring.push(chain, chain.write(data))
    return ring.publish()


# a request's way


@BOTH
@pytest.mark.parametrize("indirect", [False, True])
def test_a_request_reaches_the_device_and_comes_back(guest: Guest, kind: type[AnyDriver], indirect: bool) -> None:
    driver = kind(guest, 8, ALL)
    ring = driver.ring()
    assert ring.pop() is None
    number = driver.request(b"read me", writable=(3, 10), indirect=indirect)
    chain = take(ring)
    assert (chain.readable, chain.writable) == (11, 13)
    assert chain.read(4) == struct.pack("<I", number)
    assert chain.read() == b"read me"
    assert finish(ring, chain, b"0123456789")
    assert driver.collect() == [number]
    assert (driver.lengths[number], driver.data[number]) == (10, b"0123456789\0\0\0")


@BOTH
@pytest.mark.parametrize("size", [1, 2, 8, 256])
@pytest.mark.parametrize("start", [0, 0xFFFE])
def test_a_ring_goes_round_and_round(guest: Guest, kind: type[AnyDriver], size: int, start: int) -> None:
    driver = kind(guest, size, ALL, start=start)
    ring = driver.ring()
    for _ in range(3 * size + 5):
        driver.request(writable=(), indirect=True)
        assert finish_last(ring, driver)
    assert driver.seen == driver.added


def finish_last(ring: AnyRing, driver: AnyDriver) -> bool:
    finish(ring, take(ring))
    return driver.collect() == driver.added[-1:]


def test_a_packed_ring_may_have_any_size(guest: Guest) -> None:
    driver = PackedDriver(guest, 7, ALL)
    ring = driver.ring()
    for _ in range(30):
        driver.request(b"x", writable=(1,))
        assert finish_last(ring, driver)


@BOTH
def test_requests_come_back_in_any_order(guest: Guest, kind: type[AnyDriver]) -> None:
    driver = kind(guest, 16, ALL)
    ring = driver.ring()
    for _ in range(4):
        driver.request(b"x")
    chains = [take(ring) for _ in range(4)]
    for index in (2, 0, 3, 1):
        ring.push(chains[index], 0)
    assert driver.collect() == []
    assert ring.outstanding == 4
    ring.publish()
    assert driver.collect() == [3, 1, 4, 2]
    assert ring.outstanding == 0


@BOTH
def test_where_rings_are_in_order_requests_wait_for_those_before(guest: Guest, kind: type[AnyDriver]) -> None:
    driver = kind(guest, 16, ALL | F.IN_ORDER)
    ring = driver.ring()
    for _ in range(3):
        driver.request()
    first, second, third = (take(ring) for _ in range(3))
    ring.push(third, 0)
    ring.push(second, 0)
    assert not ring.publish()
    assert driver.collect() == []
    ring.push(first, 0)
    ring.publish()
    assert driver.collect() == [1, 2, 3]


@BOTH
def test_buffers_may_go_from_one_memory_region_into_the_next(kind: type[AnyDriver]) -> None:
    with Guest(0x3000, 0x1000, 0x8000) as guest:
        driver = kind(guest, 8, ALL)
        ring = driver.ring()
        driver.brk = 0x2FF0
        number = driver.request(bytes(range(100)), writable=(0x2000,))
        chain = take(ring)
        assert chain.read()[4:] == bytes(range(100))
        assert len(chain.writable_views) == 2
        finish(ring, chain, b"z" * 0x2000)
        driver.collect()
        assert driver.data[number] == b"z" * 0x2000


@BOTH
def test_an_indirect_table_may_go_into_the_next_region_too(kind: type[AnyDriver]) -> None:
    with Guest(0x3000, 0x4000) as guest:
        driver = kind(guest, 8, ALL)
        driver.brk = 0x2FFA - 8 - 5
        driver.request(b"hello", writable=(4,), indirect=True)
        assert take(driver.ring()).read()[4:] == b"hello"


@BOTH
def test_an_indirect_table_may_be_longer_than_the_ring(guest: Guest, kind: type[AnyDriver]) -> None:
    driver = kind(guest, 4, ALL)
    driver.request(writable=(1,) * 1000, indirect=True)
    assert take(driver.ring()).writable == 1000


@BOTH
def test_an_empty_buffer_is_no_mistake(guest: Guest, kind: type[AnyDriver]) -> None:
    driver = kind(guest, 8, ALL)
    driver.put([(1 << 50, 0, 0), (0x3000, 8, WRITE)])
    assert take(driver.ring()).writable == 8


@given(st.lists(st.integers(1, 9), max_size=5), st.lists(st.integers(0, 12), max_size=8), st.binary(max_size=40))
def test_a_chain_is_read_and_written_as_one(sizes: list[int], steps: list[int], data: bytes) -> None:
    source = bytes(range(sum(sizes)))
    views, into, at = [], [memoryview(bytearray(size)) for size in sizes], 0
    for size in sizes:
        views.append(memoryview(source)[at : at + size])
        at += size
    chain = Chain(0, 1, views, into, [])
    got = b"".join(chain.read(step) for step in steps)
    assert got == source[: sum(steps)]
    assert chain.readable == len(source) - len(got)
    assert got + chain.read() == source
    written = sum(chain.write(data[i : i + 7]) for i in range(0, len(data), 7))
    assert written == min(len(data), sum(sizes))
    assert b"".join(into)[:written] == data[:written]
    assert chain.writable == sum(sizes) - written


@BOTH
def test_a_request_is_given_back_once_and_with_a_count(guest: Guest, kind: type[AnyDriver]) -> None:
    driver = kind(guest)
    ring = driver.ring()
    driver.request()
    chain = take(ring)
    with pytest.raises(ValueError, match="given back"):
        ring.push(chain, -1)
    ring.push(chain, 0)
    with pytest.raises(ValueError, match="again"):
        ring.push(chain, 0)


# being told


@BOTH
def test_a_driver_that_wants_no_interrupts_is_told_once_at_the_start_at_most(
    guest: Guest, kind: type[AnyDriver]
) -> None:
    """The first time, as a back-end that died before may not have told it."""
    driver = kind(guest)
    ring = driver.ring()
    driver.wants_no_interrupts()
    told = []
    for _ in range(3):
        driver.request()
        told.append(finish(ring, take(ring)))
        driver.collect()
    assert told == [True, False, False]


@BOTH
@pytest.mark.parametrize("start", [0, 5, 0xFFFC, 0xFFFF])
@pytest.mark.parametrize("after", [1, 2, 3])
def test_with_event_idx_a_driver_is_told_when_it_wants(
    guest: Guest, kind: type[AnyDriver], start: int, after: int
) -> None:
    driver = kind(guest, 8, ALL, start=start)
    ring = driver.ring()
    driver.request(writable=())
    finish(ring, take(ring))
    driver.collect()
    driver.wants_interrupt_after(after)
    told = []
    for _ in range(4):
        driver.request(writable=())
        told.append(finish(ring, take(ring)))
    assert told.index(True) == after - 1
    assert told.count(True) == 1


@BOTH
def test_with_event_idx_a_batch_over_the_wanted_place_is_told(guest: Guest, kind: type[AnyDriver]) -> None:
    driver = kind(guest, 8, ALL, start=6)
    ring = driver.ring()
    driver.request(writable=())
    finish(ring, take(ring))
    driver.collect()
    driver.wants_interrupt_after(2)
    for _ in range(4):
        driver.request(writable=())
    for _ in range(4):
        ring.push(take(ring), 0)
    assert ring.publish()
    assert not ring.publish()


@BOTH
@pytest.mark.parametrize("features", [F.VERSION_1, ALL])
@pytest.mark.parametrize("start", [0, 7])
def test_kicks_are_asked_for_and_not(guest: Guest, kind: type[AnyDriver], features: F, start: int) -> None:
    driver = kind(guest, 8, features, start=start)
    ring = driver.ring()
    ring.disable_kicks()
    assert not ring.enable_kicks()
    driver.request(writable=())
    wanted = [driver.wants_kick]
    finish(ring, take(ring))
    ring.disable_kicks()
    driver.request(writable=())
    assert [*wanted, driver.wants_kick] == [True, False]
    assert ring.enable_kicks(), "it has come before the driver could know"


# the ring's life


@BOTH
def test_a_ring_goes_on_where_it_was_stopped(guest: Guest, kind: type[AnyDriver]) -> None:
    driver = kind(guest, 4, ALL, start=3)
    ring = driver.ring()
    for _ in range(6):
        driver.request(writable=())
        finish(ring, take(ring))
        driver.collect()
    driver.request(writable=())
    again = driver.ring(base=ring.base)
    assert finish(again, take(again))
    assert driver.collect() == [7]


def test_the_base_of_a_packed_ring_has_both_places_and_wrap_counters(guest: Guest) -> None:
    driver = PackedDriver(guest, 4)
    ring = driver.ring()
    assert ring.base == 1 << 15 | 1 << 31
    driver.request(writable=())
    take(ring)
    assert ring.base == 1 | 1 << 15 | 1 << 31
    for _ in range(3):
        driver.request(writable=())
        finish(ring, take(ring))
    assert ring.base == 0 | 0 << 15 | 3 << 16 | 1 << 31


@BOTH
def test_a_ring_may_be_given_by_the_guests_addresses(guest: Guest, kind: type[AnyDriver]) -> None:
    """With GPA_ADDRESSES."""
    driver = kind(guest)
    driver.request()
    addresses = RingAddresses(*(address - USER for address in kind.addresses))
    driver.addresses = addresses
    assert take(driver.ring(by_guest_address=True)).readable == 4


@BOTH
@pytest.mark.parametrize("size", [0, 32769, 65536, 1 << 31])
def test_no_ring_has_such_a_size(guest: Guest, kind: type[AnyDriver], size: int) -> None:
    driver = kind(guest)
    driver.size = size
    with pytest.raises(BrokenRing):
        driver.ring()


def test_a_split_ring_has_a_power_of_two(guest: Guest) -> None:
    driver = SplitDriver(guest)
    driver.size = 6
    with pytest.raises(BrokenRing):
        driver.ring()


@BOTH
@pytest.mark.parametrize("part", ["descriptor", "used", "available"])
@pytest.mark.parametrize("address", [USER + 1, 0, USER + (1 << 18), USER + (1 << 18) - 2, (1 << 64) - 16])
def test_a_ring_outside_of_memory_or_out_of_line_is_no_ring(
    guest: Guest, kind: type[AnyDriver], part: str, address: int
) -> None:
    driver = kind(guest, 8, ALL)
    driver.addresses = kind.addresses._replace(**{part: address})
    with pytest.raises(BrokenRing):
        driver.ring()


@pytest.mark.parametrize("base", [8, 7 | 8 << 16])
def test_a_packed_ring_does_not_begin_behind_its_end(guest: Guest, base: int) -> None:
    with pytest.raises(BrokenRing):
        PackedDriver(guest, 8).ring(base=base)


# chains that cannot be right


def one_buffer(count: int, flags: int = 0) -> list[tuple[int, int, int]]:
    return [(0x3000, 16, flags)] * count


def bad_indirect(driver: AnyDriver, chain: list[tuple[int, int, int]], flags: int = INDIRECT, extra: int = 0) -> None:
    address, length = driver.table(chain)
    driver.put([(address, length + extra, flags)])


BAD_CHAINS: dict[str, Callable[[AnyDriver], object]] = {
    "outside of memory": lambda driver: driver.put([(1 << 18, 1, 0)]),
    "over the end of memory": lambda driver: driver.put([((1 << 18) - 8, 16, WRITE)]),
    "at the end of all addresses": lambda driver: driver.put([((1 << 64) - 8, 16, 0)]),
    "of 4 GiB where there is no memory": lambda driver: driver.put([(0, 0xFFFFFFFF, WRITE)]),
    "readable behind writable": lambda driver: driver.put([(0x3000, 4, WRITE), (0x3000, 4, 0)]),
    "an empty table": lambda driver: driver.put([(0x3000, 0, INDIRECT)]),
    "a table that is no number of descriptors": lambda driver: bad_indirect(driver, one_buffer(2), extra=-1),
    "a table outside of memory": lambda driver: driver.put([(1 << 18, 16, INDIRECT)]),
    "a table of too many": lambda driver: bad_indirect(driver, one_buffer(1025)),
    "a table within a table": lambda driver: bad_indirect(driver, [(0x3000, 16, INDIRECT)]),
    "a table with another behind it": lambda driver: driver.put([(0x3000, 16, INDIRECT), (0x3000, 16, 0)]),
    "readable behind writable in a table": lambda driver: bad_indirect(driver, [(0x3000, 4, WRITE), (0x3000, 4, 0)]),
}


@BOTH
@pytest.mark.parametrize("what", BAD_CHAINS)
def test_a_bad_chain_breaks_its_ring_and_no_other(guest: Guest, kind: type[AnyDriver], what: str) -> None:
    driver = kind(guest, 8, ALL)
    ring = driver.ring()
    BAD_CHAINS[what](driver)
    with pytest.raises(BrokenRing) as caught:
        ring.pop()
    driver.request()
    with pytest.raises(BrokenRing) as again:
        ring.pop()
    assert str(again.value) == str(caught.value) == ring.broken
    with pytest.raises(BrokenRing):
        ring.enable_kicks()
    with Guest() as elsewhere:
        other = kind(elsewhere, 8, ALL)
        other.request()
        take(other.ring())


@BOTH
def test_an_indirect_table_that_was_not_negotiated_breaks_the_ring(guest: Guest, kind: type[AnyDriver]) -> None:
    driver = kind(guest)
    driver.request(indirect=True)
    with pytest.raises(BrokenRing):
        driver.ring().pop()


def test_a_chain_of_more_than_4_gib_breaks_the_ring() -> None:
    """Of memory that is there, so that nothing else can be wrong with it."""
    size = 1 << 32
    with Guest(0x10000, size) as guest:
        for kind in (SplitDriver, PackedDriver):
            driver = kind(guest, 8, ALL)
            driver.put([(0x10000, 0xFFFFFFF0, WRITE), (0x10000, 0x10, WRITE)])
            ring = driver.ring()
            take(ring)
            driver.put([(0x10000, 0xFFFFFFF0, WRITE), (0x10000, 0x11, WRITE)])
            with pytest.raises(BrokenRing):
                ring.pop()


def split_loop(driver: SplitDriver) -> None:
    driver.descriptor(0, 0x3000, 1, NEXT, 1)
    driver.descriptor(1, 0x3000, 1, NEXT, 0)
    driver.offer(0)


def split_beyond(driver: SplitDriver) -> None:
    driver.descriptor(0, 0x3000, 1, NEXT, 8)
    driver.offer(0)


def split_table_loop(driver: SplitDriver) -> None:
    at, size = driver.buffer(struct.pack("<QIHH", 0x3000, 1, NEXT, 1) + struct.pack("<QIHH", 0x3000, 1, NEXT, 0))
    driver.put([(at, size, INDIRECT)])


def split_table_beyond(driver: SplitDriver) -> None:
    at, size = driver.buffer(struct.pack("<QIHH", 0x3000, 1, NEXT, 1))
    driver.put([(at, size, INDIRECT)])


def split_index_jumps(driver: SplitDriver) -> None:
    driver.available += 9
    driver.offer(0)


@pytest.mark.parametrize(
    "wrong",
    [split_loop, split_beyond, split_table_loop, split_table_beyond, split_index_jumps, lambda d: d.offer(8)],
)
def test_what_a_split_ring_cannot_have_breaks_it(guest: Guest, wrong: Any) -> None:
    driver = SplitDriver(guest, 8, ALL)
    wrong(driver)
    with pytest.raises(BrokenRing):
        driver.ring().pop()


def test_a_packed_chain_without_an_end_breaks_the_ring(guest: Guest) -> None:
    driver = PackedDriver(guest, 4)
    driver.put(one_buffer(4))
    for index in range(4):
        driver._flags(index, 0x80 | NEXT)
    with pytest.raises(BrokenRing):
        driver.ring().pop()


@BOTH
def test_more_requests_at_a_time_than_there_are_descriptors_break_the_ring(guest: Guest, kind: type[AnyDriver]) -> None:
    driver = kind(guest, 2)
    ring = driver.ring()
    for _ in range(2):
        driver.request(writable=())
        take(ring)
    if isinstance(driver, SplitDriver):
        driver.offer(0)
    else:
        driver._flags(0, 1 << 15)  # available again in the next lap, though it never came back
    with pytest.raises(BrokenRing):
        ring.pop()


@BOTH
@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_whatever_is_in_a_ring_it_breaks_at_most(kind: type[AnyDriver], data: st.DataObject) -> None:
    with Guest(0x2000, 0x2000) as guest:
        driver = kind(guest, 4, ALL)
        number = st.one_of(st.integers(0, 16), st.integers(0, 1 << 14), st.integers(0, (1 << 64) - 1))
        for index in range(4):
            fields = data.draw(st.tuples(number, number, st.integers(0, 7), st.integers(0, 0xFFFF)))
            address, length, low, high = fields
            guest.memory[16 * index : 16 * index + 16] = struct.pack(
                "<QIHH", address, length & 0xFFFFFFFF, *((low, high & 7) if not kind.packed else (high, low | 0x80))
            )
        guest.memory[0x1000:0x1010] = data.draw(st.binary(min_size=16, max_size=16))
        ring = driver.ring()
        try:
            for _ in range(6):
                if (chain := ring.pop()) is None:
                    break
                chain.read()
                ring.push(chain, chain.write(b"x" * 100))
                ring.publish()
                ring.enable_kicks()
        except BrokenRing:
            assert ring.broken


# memory that comes and goes


@BOTH
def test_a_ring_whose_memory_goes_breaks_when_it_is_looked_at(guest: Guest, kind: type[AnyDriver]) -> None:
    driver = kind(guest)
    ring = driver.ring()
    driver.request()
    chain = take(ring)
    driver.request()
    guest.table.clear()
    chain.write(b"late, and no harm done")
    with pytest.raises(BrokenRing):
        ring.pop()
    ring.push(chain, 0)
    with pytest.raises(BrokenRing):
        ring.publish()


@BOTH
def test_a_ring_breaks_where_its_own_memory_goes_and_that_of_its_buffers_stays(kind: type[AnyDriver]) -> None:
    with Guest(0x2000, 0x10000) as guest:
        driver = kind(guest)
        ring = driver.ring()
        driver.request()
        driver.request()
        take(ring)
        guest.table.remove(Region(0, 0x2000, USER, 0))
        with pytest.raises(BrokenRing):
            ring.pop()


@BOTH
def test_a_ring_that_is_broken_and_forgotten_keeps_no_memory(guest: Guest, kind: type[AnyDriver]) -> None:
    driver = kind(guest)
    ring = driver.ring()
    kept = weakref.ref(ring)
    guest.table.clear()
    with contextlib.suppress(BrokenRing):
        ring.pop()
    assert ring.broken
    del ring
    assert kept() is None


@BOTH
def test_a_ring_runs_on_while_its_memory_is_shared_again(kind: type[AnyDriver]) -> None:
    """As QEMU does it where a DIMM is plugged: the whole table again, one region more."""
    with Guest(0x10000, 0x10000) as guest:
        guest.share([0x10000])
        driver = kind(guest)
        ring = driver.ring()
        driver.request()
        driver.request()
        first = take(ring)
        guest.share([0x10000, 0x10000])
        ring.push(first, 0)
        ring.push(take(ring), 0)
        ring.publish()
        driver.brk = 0x10000
        driver.request()
        finish(ring, take(ring))
        assert driver.collect() == [1, 2, 3]


def test_a_ring_whose_file_shrinks_breaks_and_the_process_lives() -> None:
    program = """
import os
from tests.vhost_kit import Guest, PackedDriver, SplitDriver
from vhost_user.rings import BrokenRing
for kind in (SplitDriver, PackedDriver):
    guest = Guest()
    driver = kind(guest)
    ring = driver.ring()
    driver.request()
    os.ftruncate(guest.fd, 0)
    try:
        ring.pop()
    except BrokenRing as error:
        print(ring.broken == str(error))
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout.split()) == (0, ["True", "True"]), done.stderr


# the dirty log


class Logged:
    """A log in bytes of its own, and what was marked."""

    def __init__(self) -> None:
        self.fd = os.memfd_create("log")
        os.ftruncate(self.fd, 4096)
        self.log = DirtyLog(Log(4096, 0), self.fd)
        self.memory = mmap.mmap(self.fd, 4096)

    def marked(self) -> set[int]:
        """Numbers of the pieces of 32 KiB that are marked; and none is from now on."""
        found = {index for index, byte in enumerate(self.memory[:]) if byte}
        self.memory[:] = bytes(4096)
        return found


@pytest.fixture
def logged() -> Iterator[Logged]:
    made = Logged()
    yield made
    made.log.close()
    os.close(made.fd)


@BOTH
@pytest.mark.parametrize("indirect", [False, True])
def test_all_that_may_have_been_written_is_marked_and_nothing_that_was_read(
    kind: type[AnyDriver], indirect: bool, logged: Logged
) -> None:
    with Guest(0x8000, 0x18000, 0x20000) as guest:
        driver = kind(guest, 8, ALL)
        ring = driver.ring()
        ring.log = logged.log
        driver.brk = 0x10000
        driver.request(b"x" * 0x10000, writable=(0x10000, 1), indirect=indirect)
        finish(ring, take(ring), b"x")
        assert logged.marked() == {4, 5, 6}


@BOTH
def test_a_log_may_come_and_go_while_requests_are_under_way(
    guest: Guest, kind: type[AnyDriver], logged: Logged
) -> None:
    driver = kind(guest)
    ring = driver.ring()
    driver.brk = 0x8000
    driver.request(writable=(8,))
    driver.request(writable=(8,))
    first, second = take(ring), take(ring)
    ring.log = logged.log
    finish(ring, first, b"x")
    assert logged.marked() == {1}
    ring.log = None
    finish(ring, second, b"x")
    assert logged.marked() == set()


@BOTH
def test_the_used_ring_is_marked_where_that_is_asked_for(guest: Guest, kind: type[AnyDriver], logged: Logged) -> None:
    driver = kind(guest, 8, ALL)
    ring = driver.ring()
    ring.log = logged.log
    ring.used_log = 0x50000 if kind is SplitDriver else 0
    driver.brk = 0x8000
    driver.request(writable=())
    finish(ring, take(ring))
    ring.enable_kicks()
    assert logged.marked() == ({10} if kind is SplitDriver else {0})


@BOTH
def test_a_log_that_does_not_reach_breaks_the_ring(guest: Guest, kind: type[AnyDriver], logged: Logged) -> None:
    driver = kind(guest)
    ring = driver.ring()
    ring.log = DirtyLog(Log(1, 0), logged.fd)
    driver.brk = 0x8000
    driver.request(writable=(8,))
    ring.push(take(ring), 0)
    with pytest.raises(BrokenRing):
        ring.publish()


@pytest.mark.parametrize("batch", [1, 3])
@BOTH
def test_data_is_stored_first_then_the_log_then_the_ring_and_what_shows_it_last(
    guest: Guest, kind: type[AnyDriver], batch: int, logged: Logged
) -> None:
    driver = kind(guest)
    ring = driver.ring()
    ring.log, ring.used_log = logged.log, 0x38000
    driver.brk = 0x8000
    for _ in range(batch):
        driver.request(writable=(8,))
    stored: list[str] = []
    before = bytes(guest.memory)

    def seen(index: int) -> None:
        nonlocal before
        now = bytes(guest.memory)
        stored.append("log" if index else what_is_stored(driver, before, now))
        before = now

    with after_each_store([guest.memory, logged.memory], seen):
        chains = [take(ring) for _ in range(batch)]
        for chain in chains:
            ring.push(chain, chain.write(b"12345678"))
        ring.publish()
    shown = stored.index("shown")
    assert stored[:batch] == ["data"] * batch
    assert stored[batch] == "log"
    assert set(stored[batch:shown]) == {"log", "ring"}
    assert set(stored[shown + 1 :]) <= {"log"}
    assert len(driver.collect()) == batch


def what_is_stored(driver: AnyDriver, before: bytes, now: bytes) -> str:
    """What was stored: "shown" is that by which the driver sees that something came back."""
    (at, *_) = (index for index, (old, new) in enumerate(zip(before, now, strict=True)) if old != new)
    if at >= driver.BUFFERS:
        return "data"
    if isinstance(driver, SplitDriver):
        return "shown" if at in (0x1802, 0x1803) else "ring"
    return "shown" if at in (14, 15) else "ring"


# an IOMMU


class Translated:
    """A ring whose addresses go through an IOTLB, in which each page has to be asked for."""

    SHIFT = 1 << 40

    def __init__(self, guest: Guest, kind: type[AnyDriver]) -> None:
        self.iotlb = Iotlb(guest.table)
        self.driver = kind(guest, 8, ALL)
        self.driver.addresses = RingAddresses(*(address - USER + self.SHIFT for address in kind.addresses))
        self.asked: list[int] = []

    def answer(self, miss: IotlbMiss) -> None:
        self.asked.append(miss.iova)
        page = miss.iova & ~0xFFF
        self.iotlb.handle(IotlbMessage(page, 0x1000, page - self.SHIFT + USER, 3, IotlbType.UPDATE))

    def until_known(self, call: Any) -> Any:
        for _ in range(50):
            try:
                return call()
            except IotlbMiss as miss:
                self.answer(miss)
        raise AssertionError("asked for ever")

    def request(self) -> None:
        at, size = self.driver.buffer(b"hello")
        into, room = self.driver.buffer(64)
        self.driver.given[self.driver.put([(at + self.SHIFT, size, 0), (into + self.SHIFT, room, WRITE)])] = (
            1,
            [(into, room)],
        )


@BOTH
def test_behind_an_iommu_what_is_missing_is_asked_for_and_the_request_is_there_still(
    guest: Guest, kind: type[AnyDriver]
) -> None:
    made = Translated(guest, kind)
    ring: AnyRing = made.until_known(lambda: made.driver.ring(iotlb=made.iotlb))
    made.driver.brk = 0x2FFE
    made.request()
    chain: Chain = made.until_known(ring.pop)
    assert chain.read() == b"hello"
    assert chain.ranges == [(0x3003, 64)]
    assert {iova - made.SHIFT & ~0xFFF for iova in made.asked} == {0, 0x1000, 0x2000, 0x3000}
    ring.push(chain, chain.write(b"there"))
    assert ring.publish()
    assert made.driver.collect() == [1]
    assert made.driver.data[1][:5] == b"there"


@BOTH
def test_an_invalidation_makes_a_ring_ask_again(guest: Guest, kind: type[AnyDriver]) -> None:
    made = Translated(guest, kind)
    ring: AnyRing = made.until_known(lambda: made.driver.ring(iotlb=made.iotlb))
    made.request()
    chain: Chain = made.until_known(ring.pop)
    made.iotlb.handle(IotlbMessage(0, 1 << 63, 0, 0, IotlbType.INVALIDATE))
    ring.push(chain, 0)
    with pytest.raises(IotlbMiss):
        ring.publish()
    made.asked.clear()
    made.until_known(ring.publish)
    assert made.asked
    assert made.driver.collect() == [1]
    assert not ring.broken


@BOTH
def test_a_buffer_that_may_only_be_read_is_not_written(guest: Guest, kind: type[AnyDriver]) -> None:
    made = Translated(guest, kind)
    ring: AnyRing = made.until_known(lambda: made.driver.ring(iotlb=made.iotlb))
    made.driver.brk = 0x4000
    made.request()
    made.iotlb.handle(IotlbMessage(made.SHIFT + 0x4000, 0x1000, USER + 0x4000, Permission.READ, IotlbType.UPDATE))
    with pytest.raises(IotlbMiss) as caught:
        ring.pop()
    assert caught.value.permission == Permission.WRITE
