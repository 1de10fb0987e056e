"""A back-end may die after any store: what was under way is submitted again, all of it and once, in order."""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.cases import for_each, for_each_row
from tests.vhost_kit import (
    AnyDriver,
    Guest,
    PackedDriver,
    SplitDriver,
    after_each_store,
    inflight,
    inflight_region,
)
from userdev.errors import ProtocolError
from vhost_user.rings import BrokenRing, Chain, PackedInflight, PackedRing, SplitInflight, region_size
from vhost_user.wire import VirtioFeature

SIZE = 1 << 14
DRIVERS = [
    pytest.param(SplitDriver, 0, id="split"),
    pytest.param(SplitDriver, 0xFFFD, id="split-index-wraps"),
    pytest.param(PackedDriver, 0, id="packed"),
    pytest.param(PackedDriver, 5, id="packed-wraps"),
    pytest.param(PackedDriver, 13, id="packed-wraps-back"),
]


def number_of(chain: Chain) -> int:
    return int(struct.unpack("<I", chain.read(4))[0])


class Moment:
    """What is left of a back-end that has died: the guest's memory, the region, and what its driver knows."""

    def __init__(self, driver: AnyDriver, region: bytearray, taken: list[int]) -> None:
        self.driver = driver.clone(driver.guest)
        self.memory = bytes(driver.guest.memory)
        self.region = bytes(region)
        self.taken = list(taken)
        """Requests that the back-end had taken, in order."""

    def revive(self, guest: Guest) -> tuple[AnyDriver, bytearray]:
        guest.memory[:] = self.memory
        return self.driver.clone(guest), bytearray(self.region)


def serve(driver: AnyDriver, region: bytearray, taken: list[int]) -> None:
    """Requests of one to three descriptors, taken and given back out of order and in batches, over the ring's end."""
    ring = driver.ring(inflight=inflight(memoryview(region), driver))

    def take() -> Chain:
        chain = ring.pop()
        assert chain is not None
        taken.append(number_of(chain))
        return chain

    driver.request(writable=(16,))
    driver.request(b"x", writable=(16,))
    driver.request(writable=(16,), indirect=True)
    first, second, third = take(), take(), take()
    ring.push(second, 1)
    ring.publish()
    driver.collect()
    driver.request(b"y", writable=(16,))
    fourth = take()
    ring.push(fourth, 0)
    ring.push(first, 16)
    ring.publish()
    driver.collect()
    driver.request(writable=(16, 16))
    driver.request(writable=(), indirect=True)
    left = ring.pop()
    assert left is not None
    ring.unpop(left)
    fifth, sixth = take(), take()
    for chain, written in ((sixth, 0), (third, 2), (fifth, 2)):
        ring.push(chain, written)
    ring.publish()


FEATURES = VirtioFeature.VERSION_1 | VirtioFeature.INDIRECT_DESC


def moments_of(driver: AnyDriver, region: bytearray, taken: list[int], work: Callable[[], Any]) -> list[Moment]:
    moments = [Moment(driver, region, taken)]
    with after_each_store([driver.guest.memory, region], lambda _: moments.append(Moment(driver, region, taken))):
        work()
    return [*moments, Moment(driver, region, taken)]


def moments_of_recovery(moment: Moment, guest: Guest) -> list[Moment]:
    """One may die again while one recovers."""
    driver, region = moment.revive(guest)
    return moments_of(driver, region, moment.taken, lambda: driver.ring(inflight=inflight(memoryview(region), driver)))


def check_recovery(moment: Moment, guest: Guest) -> None:
    driver, region = moment.revive(guest)
    ring = driver.ring(inflight=inflight(memoryview(region), driver))
    driver.collect()
    done = list(driver.seen)
    again = [number_of(chain) for chain in ring.resubmitted]
    served = 0
    while (chain := ring.pop()) is not None:
        served += 1
        ring.push(chain, 0)
    ring.publish()
    driver.collect()
    taken_and_lost = [number for number in moment.taken if number not in done]
    assert again[: len(taken_and_lost)] == taken_and_lost
    assert sorted(driver.seen) == driver.added, "each request came back, and once"
    assert served == len(driver.added) - len(done)
    assert ring.outstanding == 0
    for _ in range(driver.size):
        driver.request(writable=())
    chains = [chain for _ in range(driver.size) if (chain := ring.pop()) is not None]
    assert len(chains) == driver.size, "the region has room for as many as before"
    for chain in chains:
        ring.push(chain, 0)
    ring.publish()
    driver.collect()
    assert sorted(driver.seen) == driver.added


@pytest.mark.pure
@pytest.mark.parametrize(("kind", "start"), DRIVERS)
def test_after_any_store_all_that_was_lost_is_done_and_nothing_twice(kind: type[AnyDriver], start: int) -> None:
    with Guest(SIZE) as guest, Guest(SIZE) as other:
        driver = kind(guest, 8, FEATURES, start=start)
        region, taken = inflight_region(driver), list[int]()
        moments = moments_of(driver, region, taken, lambda: serve(driver, region, taken))
        assert len(moments) > 40
        assert driver.collect()
        for moment in moments:
            for again in moments_of_recovery(moment, other):
                check_recovery(again, other)


@pytest.mark.parametrize("kind", [SplitDriver, PackedDriver])
@pytest.mark.parametrize(("size", "under_way"), [(2, 0), (4, 1)])
def test_who_goes_on_may_die_after_any_store_too(kind: type[AnyDriver], size: int, under_way: int) -> None:
    """What one that died has left half said must not be taken for what the next has begun, which gives back others."""

    def batch(driver: AnyDriver, region: bytearray, taken: list[int], count: int) -> None:
        """Take what there is, and give back so many of them together."""
        ring = driver.ring(inflight=inflight(memoryview(region), driver))
        chains = []
        while (chain := ring.pop()) is not None:
            chains.append(chain)
            number = number_of(chain)
            taken.extend([number] if number not in taken else [])
        for chain in chains[:count]:
            ring.push(chain, 0)
        ring.publish()

    with Guest(SIZE) as first, Guest(SIZE) as second, Guest(SIZE) as third:
        driver = kind(first, size, FEATURES)
        region, taken = inflight_region(driver), list[int]()
        for _ in range(size):
            driver.request(writable=())
        for moment in moments_of(driver, region, taken, lambda: batch(driver, region, taken, size - under_way)):
            next_, kept = moment.revive(second)
            next_.collect()
            while len(next_.given) < size:
                next_.request(writable=())
            again = [number for number in moment.taken if number not in next_.seen]
            for later in moments_of(next_, kept, again, lambda: batch(next_, kept, again, 1)):  # noqa: B023
                check_recovery(later, third)


@pytest.mark.parametrize(("kind", "start"), DRIVERS)
def test_a_request_that_fills_the_ring_is_not_done_twice(kind: type[AnyDriver], start: int) -> None:
    """Afterwards a packed ring is at the same place as before, in the next lap."""
    with Guest(SIZE) as guest, Guest(SIZE) as other:
        driver = kind(guest, 4, FEATURES, start=start)
        region, taken = inflight_region(driver), list[int]()

        def serve_one() -> None:
            ring = driver.ring(inflight=inflight(memoryview(region), driver))
            driver.request(b"x", writable=(8, 8))
            chain = ring.pop()
            assert chain is not None
            taken.append(number_of(chain))
            ring.push(chain, 0)
            ring.publish()

        for moment in moments_of(driver, region, taken, serve_one):
            check_recovery(moment, other)


def test_requests_are_submitted_again_in_the_order_in_which_they_were_taken() -> None:
    with Guest(SIZE) as guest:
        driver = SplitDriver(guest, 8, FEATURES)
        driver.free.reverse()
        region = inflight_region(driver)
        ring = driver.ring(inflight=inflight(memoryview(region), driver))
        for _ in range(3):
            driver.request(writable=())
            ring.pop()
        again = driver.ring(inflight=inflight(memoryview(region), driver)).resubmitted
        assert [number_of(chain) for chain in again] == [1, 2, 3]


@for_each([SplitDriver, PackedDriver])
def test_a_request_that_was_lost_has_its_buffers_again(kind: type[AnyDriver]) -> None:
    with Guest(SIZE) as guest:
        driver = kind(guest, 8, FEATURES)
        region = inflight_region(driver)
        number = driver.request(b"payload", writable=(5, 6))
        ring = driver.ring(inflight=inflight(memoryview(region), driver))
        assert ring.pop() is not None
        ring = driver.ring(inflight=inflight(memoryview(region), driver))
        chain = ring.pop()
        assert chain is not None
        assert (number_of(chain), chain.read()) == (number, b"payload")
        assert chain.write(b"hello world") == 11
        ring.push(chain, 11)
        assert ring.publish()
        assert driver.collect() == [number]
        assert driver.data[number] == b"hello world"


@for_each([SplitDriver, PackedDriver])
def test_a_request_that_was_lost_and_is_left_after_it_was_read_is_given_whole_again(kind: type[AnyDriver]) -> None:
    with Guest(SIZE) as guest:
        driver = kind(guest, 8, FEATURES)
        region = inflight_region(driver)
        number = driver.request(b"payload", writable=(5, 6))
        for again in (False, True):
            ring = driver.ring(inflight=inflight(memoryview(region), driver))
            for _ in range(2):
                chain = ring.pop()
                assert chain is not None
                assert (chain.again, number_of(chain), chain.read(3), chain.write(b"hello")) == (
                    again,
                    number,
                    b"pay",
                    5,
                )
                ring.unpop(chain)
            assert ring.pop() is not None


def test_the_base_of_the_front_end_is_overruled_where_requests_were_in_flight() -> None:
    """QEMU gives the used index, since it does not know what was taken."""
    with Guest(SIZE) as guest:
        driver = SplitDriver(guest, 8, start=3)
        region = inflight_region(driver)
        ring = driver.ring(inflight=inflight(memoryview(region), driver))
        for _ in range(2):
            driver.request()
            ring.pop()
        assert driver.ring(base=3, inflight=inflight(memoryview(region), driver)).base == 5


@for_each_row([(False, 128, 2112), (False, 1, 64), (False, 256, 4160), (True, 128, 4160), (True, 2, 128)])
def test_a_rings_part_of_the_region_is_a_multiple_of_64_bytes(packed: bool, slots: int, size: int) -> None:
    """2112 bytes is what libvhost-user makes for 128 descriptors."""
    assert region_size(slots, packed=packed) == size


def test_a_split_region_is_laid_out_as_the_specification_has_it() -> None:
    with Guest(SIZE) as guest:
        driver = SplitDriver(guest, 4, start=7)
        region = inflight_region(driver)
        ring = driver.ring(inflight=inflight(memoryview(region), driver))
        for _ in range(2):
            driver.request(writable=())
            ring.pop()
        assert struct.unpack_from("<QHHHH", region) == (0, 1, 4, 0, 7)
        assert struct.unpack_from("<B5xHQ", region, 16) == (1, 0, 0)
        assert struct.unpack_from("<B5xHQ", region, 32) == (1, 0, 1)


def test_a_packed_region_is_laid_out_as_the_specification_has_it() -> None:
    with Guest(SIZE) as guest:
        driver = PackedDriver(guest, 4)
        region = inflight_region(driver)
        ring = driver.ring(inflight=inflight(memoryview(region), driver))
        driver.request(writable=(9,))
        first = ring.pop()
        assert first is not None
        assert struct.unpack_from("<QHHHHHHBB", region) == (0, 1, 4, 2, 2, 0, 0, 1, 1)
        entry = struct.unpack_from("<BxHHHQHHIQ", region, 32)
        assert entry == (1, 1, 1, 2, 0, 100, AVAIL_NEXT, 4, PackedDriver.BUFFERS)
        ring.push(first, 9)
        ring.publish()
        assert struct.unpack_from("<QHHHHHHBB", region) == (0, 1, 4, 0, 0, 2, 2, 1, 1)


AVAIL_NEXT = 1 << 7 | 1


def test_a_new_region_takes_the_used_index_as_it_is() -> None:
    """A guest that has come from another host has used its rings there."""
    region = bytearray(region_size(8, packed=False))
    assert SplitInflight(memoryview(region), 8).recover(12345, 8) == []
    assert SplitInflight(memoryview(region), 8).recover(12345, 8) == []


def test_a_new_region_of_a_packed_ring_is_begun_whatever_is_in_it() -> None:
    """A version of 0 says that nothing in it means anything yet."""
    region = bytearray(b"\xff" * region_size(8, packed=True))
    region[8:10] = bytes(2)
    for _ in range(2):  # and is found as it was begun
        begun = PackedInflight(memoryview(region), 8)
        assert begun.recover(3, 0, 8, memoryview(bytearray(16)).cast("H")) == (3, 0, [])
    assert begun.take([(0x1000, 8, 7, 0)]) == 0


def test_a_region_that_was_begun_elsewhere_with_nothing_in_flight_is_taken() -> None:
    """libvhost-user begins it with a used index of 0."""
    region = bytearray(region_size(8, packed=False))
    struct.pack_into("<QHHHH", region, 0, 0, 1, 8, 0, 0)
    assert SplitInflight(memoryview(region), 8).recover(12345, 8) == []


@pytest.mark.parametrize("kind", [SplitDriver, PackedDriver])
@given(data=st.data())
@settings(max_examples=200, deadline=None)
def test_a_region_with_anything_in_it_breaks_the_ring_at_most(kind: type[AnyDriver], data: st.DataObject) -> None:
    with Guest(SIZE) as guest:
        driver = kind(guest, 4, FEATURES)
        region = inflight_region(driver)
        region[:] = data.draw(st.binary(min_size=len(region), max_size=len(region)))
        region[8:12] = struct.pack("<HH", data.draw(st.sampled_from([0, 1, 2])), data.draw(st.sampled_from([4, 5])))
        driver.request()
        try:
            ring = driver.ring(inflight=inflight(memoryview(region), driver))
            for _ in range(8):
                if (chain := ring.pop()) is not None:
                    ring.push(chain, 0)
                    ring.publish()
        except BrokenRing:
            return


@for_each([SplitInflight, PackedInflight])
def test_a_region_that_is_too_small_is_refused(kind: type[SplitInflight] | type[PackedInflight]) -> None:
    with pytest.raises(ProtocolError):
        kind(memoryview(bytearray(64)), 8)


def test_a_region_for_fewer_descriptors_than_the_ring_has_breaks_it() -> None:
    with Guest(SIZE) as guest:
        driver = SplitDriver(guest, 8)
        with pytest.raises(BrokenRing):
            driver.ring(inflight=SplitInflight(memoryview(bytearray(4096)), 4))


def test_a_ring_that_is_smaller_than_its_region_is_right() -> None:
    with Guest(SIZE) as guest:
        driver = SplitDriver(guest, 8)
        region = bytearray(region_size(128, packed=False))
        driver.request()
        driver.ring(inflight=SplitInflight(memoryview(region), 128)).pop()
        assert len(driver.ring(inflight=SplitInflight(memoryview(region), 128)).resubmitted) == 1


def test_a_descriptor_that_is_available_while_it_is_in_flight_breaks_the_ring() -> None:
    with Guest(SIZE) as guest:
        driver = SplitDriver(guest, 8)
        region = inflight_region(driver)
        ring = driver.ring(inflight=inflight(memoryview(region), driver))
        driver.request()
        ring.pop()
        driver.offer(0)
        with pytest.raises(BrokenRing):
            ring.pop()


OLD_FREE_HEAD, LAST, NUM = 14, 32 + 4, 32 + 6
"""Where a packed ring's region has these; the latter two of its first entry."""


def successor(ring: PackedRing, _: Chain) -> None:
    PackedRing(8, ring.addresses, ring.table, VirtioFeature.VERSION_1, inflight=ring.inflight)


def give_back(ring: PackedRing, chain: Chain) -> None:
    ring.push(chain, 0)
    ring.publish()


@pytest.mark.parametrize(
    ("at", "value", "use"),
    [
        pytest.param(at, value, use, id=f"{what}-{value:#x}")
        for what, at, first, use in [
            ("take", OLD_FREE_HEAD, 8, lambda ring, _: ring.pop()),
            ("leave", LAST, 8, PackedRing.unpop),
            ("give back", LAST, 8, give_back),
            ("recover", NUM, 9, successor),
        ]
        for value in (first, 0xFFFF)
    ],
)
def test_a_place_that_the_region_of_a_packed_ring_does_not_have_breaks_the_ring_whenever_it_is_met(
    at: int, value: int, use: Callable[[PackedRing, Chain], object]
) -> None:
    with Guest(SIZE) as guest:
        driver = PackedDriver(guest, 8)
        region = inflight_region(driver)
        ring = driver.ring(inflight=inflight(memoryview(region), driver))
        driver.request()
        driver.request()
        chain = ring.pop()
        assert chain is not None
        struct.pack_into("<H", region, at, value)
        with pytest.raises(BrokenRing, match=str(value)):
            use(ring, chain)


def test_a_region_that_shrinks_breaks_the_ring() -> None:
    def shrunk() -> None:
        raise ProtocolError("shrunk")

    with Guest(SIZE) as guest:
        driver = SplitDriver(guest, 8)
        region = SplitInflight(memoryview(mmap.mmap(-1, 4096)), 8)
        ring = driver.ring(inflight=region)
        region.check = shrunk
        with pytest.raises(BrokenRing):
            ring.pop()
