"""Virtqueues: requests come whole and go back, the driver is told when it wants, a ring goes on where it was."""

from __future__ import annotations

import contextlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.cases import for_each, for_each_row
from tests.vhost.both import BOTH
from tests.vhost_kit import (
    ALL,
    USER,
    WRITE,
    AnyDriver,
    AnyRing,
    F,
    Guest,
    PackedDriver,
    SplitDriver,
    finish,
    take,
)
from vhost_user.rings import BrokenRing, Chain, RingAddresses, SplitRing, WrongLength


@BOTH
@pytest.mark.parametrize("indirect", [False, True])
def test_a_request_reaches_the_device_and_comes_back(guest: Guest, kind: type[AnyDriver], indirect: bool) -> None:
    driver = kind(guest, 8, ALL)
    ring = driver.ring()
    assert ring.pop() is None
    number = driver.request(b"read me", writable=(3, 10), indirect=indirect)
    chain = take(ring)
    assert (chain.readable, chain.writable, chain.room) == (11, 13, 13)
    assert chain.read(4) == struct.pack("<I", number)
    assert chain.read() == b"read me"
    assert finish(ring, chain, b"0123456789")
    assert driver.collect() == [number]
    assert (driver.lengths[number], driver.data[number]) == (10, b"0123456789\0\0\0")


@BOTH
@for_each([1, 2, 8, 256], [0, 0xFFFE])
def test_a_ring_goes_round_and_round(size: int, start: int, kind: type[AnyDriver]) -> None:
    with Guest() as guest:
        driver = kind(guest, size, ALL, start=start)
        ring = driver.ring()
        for _ in range(3 * size + 5):
            driver.request(writable=(), indirect=True)
            assert finish_last(ring, driver)
        assert driver.seen == driver.added


def test_a_split_ring_has_as_many_descriptors_as_virtio_allows_and_no_more() -> None:
    with Guest(0x200000) as guest:
        addresses = RingAddresses(USER, USER + 0x100000, USER + 0x180000)
        for size, is_allowed in ((32768, True), (65536, False)):
            with contextlib.nullcontext() if is_allowed else pytest.raises(BrokenRing):
                assert SplitRing(size, addresses, guest.table, ALL).pop() is None


def finish_last(ring: AnyRing, driver: AnyDriver) -> bool:
    finish(ring, take(ring))
    return driver.collect() == driver.added[-1:]


def test_a_packed_ring_may_have_any_size(guest: Guest) -> None:
    driver = PackedDriver(guest, 7, ALL)
    ring = driver.ring()
    for _ in range(30):
        driver.request(b"x", writable=(1,))
        assert finish_last(ring, driver)


@pytest.mark.parametrize("start", [0, 0xFFFE])
def test_a_ring_that_is_begun_before_what_has_come_back_goes_on_behind_it(guest: Guest, start: int) -> None:
    """DPDK's virtio_user 24.11.8 and 25.11.4 say 0 of a ring in which requests wait, to a back-end that is new."""
    driver = SplitDriver(guest, 8, ALL, start=start)
    ring = driver.ring()
    for _ in range(3):
        driver.request(writable=(), indirect=True)
        assert finish_last(ring, driver)
    waiting = [driver.request(writable=(), indirect=True) for _ in range(8)]
    for base in (start, start + 2 & 0xFFFF):
        again = driver.ring(base=base)
        assert again.base == driver.taken
    for number in waiting:
        finish(again, take(again))
        assert driver.collect() == [number]
    assert again.pop() is None


def test_a_packed_ring_may_be_begun_without_a_word_of_its_used_half(guest: Guest) -> None:
    """DPDK's virtio_user 24.11.8 and 25.11.4: the available index and its wrap counter are all that it says."""
    driver = PackedDriver(guest, 8, ALL)
    ring = driver.ring(base=1 << 15)
    for _ in range(20):
        driver.request(b"x", writable=(1,))
        assert finish_last(ring, driver)


@pytest.mark.parametrize(("available", "used"), [(9, 0), (300, 5), (20, 5)])
def test_where_nothing_can_be_right_it_is_not_mended(guest: Guest, available: int, used: int) -> None:
    driver = SplitDriver(guest, 8)
    driver._store(0x1002, available)
    driver._store(0x1802, used)
    with pytest.raises(BrokenRing):
        driver.ring(base=0).pop()


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
    chain = Chain(0, 1, views, into, [], sum(sizes))
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
    for wrong in (-1, chain.writable + 1, 1 << 32):
        with pytest.raises(WrongLength):
            ring.push(chain, wrong)
    with pytest.raises(WrongLength):
        ring.push(Chain(chain.head, 1, [], [], [], 1 << 32), 1 << 32)  # no number of 32 bits
    ring.push(chain, chain.writable)
    with pytest.raises(ValueError, match="again"):
        ring.push(chain, 0)
    for use in (chain.read, lambda: chain.write(b"late")):
        with pytest.raises(ValueError, match="given back when its handler returned"):
            use()


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
@for_each([0, 5, 0xFFFC, 0xFFFF], [1, 2, 3])
def test_with_event_idx_a_driver_is_told_when_it_wants(start: int, after: int, kind: type[AnyDriver]) -> None:
    with Guest() as guest:
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
@for_each([F.VERSION_1, ALL], [0, 7])
def test_kicks_are_asked_for_and_not(features: F, start: int, kind: type[AnyDriver]) -> None:
    with Guest() as guest:
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
@for_each([0, 32769, 65536, 1 << 31])
def test_no_ring_has_such_a_size(size: int, kind: type[AnyDriver]) -> None:
    with Guest() as guest:
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
@for_each(["descriptor", "used", "available"], [USER + 1, 0, USER + (1 << 18), USER + (1 << 18) - 2, (1 << 64) - 16])
def test_a_ring_outside_of_memory_or_out_of_line_is_no_ring(part: str, address: int, kind: type[AnyDriver]) -> None:
    with Guest() as guest:
        driver = kind(guest, 8, ALL)
        driver.addresses = kind.addresses._replace(**{part: address})
        with pytest.raises(BrokenRing):
            driver.ring()


@pytest.mark.parametrize("base", [8, 7 | 8 << 16])
def test_a_packed_ring_does_not_begin_behind_its_end(guest: Guest, base: int) -> None:
    with pytest.raises(BrokenRing):
        PackedDriver(guest, 8).ring(base=base)


@for_each_row([(0, 0), (1, 0), (0x7FFF, 0), (0x8000, 0x8000), (-1, -1)])
def test_a_split_ring_begins_no_earlier_than_what_has_come_back(behind: int, begins_behind: int) -> None:
    """Half of all indices are before it."""
    for start in (0x10, 0x9000):
        with Guest() as guest:
            ring = SplitDriver(guest, start=start).ring(base=start - behind & 0xFFFF)
            assert ring.base == start - begins_behind & 0xFFFF, start
            del ring


def test_bits_of_a_packed_rings_wish_that_mean_nothing_change_nothing(guest: Guest) -> None:
    for wish, is_told in ((0, True), (1, False)):
        driver = PackedDriver(guest)
        ring = driver.ring()
        guest.memory[0x1802:0x1804] = (wish | 0xFFFC).to_bytes(2, "little")
        for _ in range(2):  # the first is told anyway
            driver.request()
        finish(ring, take(ring))
        assert finish(ring, take(ring)) is is_told
        guest.memory[:0x2000] = bytes(0x2000)
