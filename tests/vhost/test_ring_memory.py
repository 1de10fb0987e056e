"""Virtqueues under a dirty log, with stores in the order that is the promise, and behind an IOMMU."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest

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
    after_each_store,
    finish,
    inflight,
    inflight_region,
    take,
)
from userdev.errors import ProtocolError
from vhost_user.memory import DirtyLog, Iotlb, IotlbMiss, Permission
from vhost_user.rings import BrokenRing, Chain, RingAddresses
from vhost_user.wire.payloads import IotlbMessage, IotlbType, Log


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
    made.memory.close()
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


@BOTH
@pytest.mark.parametrize("features", [F.VERSION_1, ALL])
@pytest.mark.parametrize("asked", [True, False])
def test_a_ring_marks_each_of_its_parts_that_it_stores_into_and_only_where_that_is_asked_for(
    guest: Guest, kind: type[AnyDriver], features: F, asked: bool, logged: Logged
) -> None:
    driver = apart(kind, guest, features)
    ring = driver.ring()
    ring.log = logged.log
    if asked:
        ring.log_used(0x50000)
    ring.enable_kicks()
    marked = [logged.marked()]
    ring.disable_kicks()
    marked.append(logged.marked())
    driver.request(writable=())
    finish(ring, take(ring))
    marked.append(logged.marked())
    told_once = kind is SplitDriver and F.EVENT_IDX in features  # and need not be told to stop
    parts = [{10}, set() if told_once else {10}, {10}] if kind is SplitDriver else [{2}, {2}, {0}]
    assert marked == (parts if asked else [set(), set(), set()])


def test_each_part_of_a_split_ring_is_marked_from_its_first_byte_on(logged: Logged) -> None:
    """The ring lies so that a byte of the log begins where the part does."""
    for features, at, is_finished, marked in (
        (F.VERSION_1, 0, False, {10}),  # flags
        (F.VERSION_1, 2, True, {10}),  # index
        (F.VERSION_1, 4, True, {9, 10}),  # the index before it, and the entry
        (ALL, 4 + 8 * 8, False, {10}),  # avail_event
    ):
        with Guest() as guest:
            driver = SplitDriver(guest, 8, features)
            ring = driver.ring()
            ring.log = logged.log
            ring.log_used((10 << 15) - at)
            driver.request(writable=())
            if is_finished:
                finish(ring, take(ring))
            else:
                ring.enable_kicks()
            assert logged.marked() == marked, at


def apart(kind: type[AnyDriver], guest: Guest, features: F) -> AnyDriver:
    """A driver of a packed ring whose device area is in another byte of the log than its descriptors."""
    driver = kind(guest, 8, features)
    if kind is PackedDriver:
        driver.addresses = RingAddresses(USER, USER + 0x10000, USER + 0x1800)
    return driver


@BOTH
def test_a_log_that_does_not_reach_a_part_of_the_ring_breaks_it_and_is_said_to(
    guest: Guest, kind: type[AnyDriver], logged: Logged
) -> None:
    ring = apart(kind, guest, F.VERSION_1).ring()
    ring.log = DirtyLog(Log(1, 0), logged.fd)
    ring.log_used(0x10000)
    with pytest.raises(BrokenRing, match=r"0x10000.* beyond the dirty log"):
        ring.enable_kicks()
    with pytest.raises(BrokenRing, match=r"0x10000.* beyond the dirty log"):
        ring.pop()


USES: dict[str, Callable[[AnyRing, Chain], object]] = {
    "pop": lambda ring, _: ring.pop(),
    "unpop": lambda ring, chain: ring.unpop(chain),
    "publish": lambda ring, _: ring.publish(),
    "has_requests": lambda ring, _: ring.has_requests(),
    "enable_kicks": lambda ring, _: ring.enable_kicks(),
    "disable_kicks": lambda ring, _: ring.disable_kicks(),
}


@pytest.mark.pure
@BOTH
@pytest.mark.parametrize("what", ["the log", "the in-flight region"])
@pytest.mark.parametrize("use", USES)
def test_whatever_is_done_with_a_ring_whose_log_or_in_flight_region_has_shrunk_breaks_it(
    guest: Guest, kind: type[AnyDriver], what: str, use: str, logged: Logged, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = kind(guest)
    region = inflight(memoryview(inflight_region(driver)), driver)
    is_log = what == "the log"
    ring = driver.ring(inflight=None if is_log else region)
    ring.log = logged.log if is_log else None
    driver.request(writable=(8,))
    driver.request(writable=(8,))
    ring.push(take(ring), 0)
    left = take(ring)
    assert ring.pop() is None

    def shrunk() -> None:
        raise ProtocolError(f"{what} is cut off")

    monkeypatch.setattr(logged.log if is_log else region, "check", shrunk)
    monkeypatch.setattr(guest.table, "can_shrink", False)
    before = bytes(guest.memory)
    with pytest.raises(BrokenRing, match=f"{what} is cut off"):
        USES[use](ring, left)
    assert bytes(guest.memory) == before
    assert ring.broken == f"{what} is cut off"


@BOTH
def test_a_ring_that_an_entry_has_broken_says_why_whatever_is_asked_of_it(guest: Guest, kind: type[AnyDriver]) -> None:
    driver = kind(guest)
    driver.put([(1 << 50, 8, WRITE)])
    ring = driver.ring()
    with pytest.raises(BrokenRing) as first:
        ring.pop()
    for use in ("pop", "has_requests", "enable_kicks"):
        with pytest.raises(BrokenRing) as again:
            USES[use](ring, cast(Chain, None))
        assert str(again.value) == str(first.value) == ring.broken, use


@BOTH
def test_what_a_dead_back_end_left_is_not_taken_where_the_region_has_shrunk(
    guest: Guest, kind: type[AnyDriver], monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = kind(guest)
    memory = inflight_region(driver)
    driver.request(writable=(8,))
    take(driver.ring(inflight=inflight(memoryview(memory), driver)))
    region = inflight(memoryview(memory), driver)
    ring = driver.ring(inflight=region)
    assert len(ring.resubmitted) == 1

    def shrunk() -> None:
        raise ProtocolError("it is cut off")

    monkeypatch.setattr(region, "check", shrunk)
    with pytest.raises(BrokenRing, match="it is cut off"):
        ring.pop()
    assert len(ring.resubmitted) == 1


@pytest.mark.pure
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
    at = next(index for index, (old, new) in enumerate(zip(before, now, strict=True)) if old != new)
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
def test_of_each_part_of_a_ring_no_more_is_asked_for_than_is_done_with_it(guest: Guest, kind: type[AnyDriver]) -> None:
    made = Translated(guest, kind)
    made.driver.addresses = RingAddresses(*(made.SHIFT + at for at in (0, 0x2000, 0x1000)))
    allowed: dict[int, Permission] = {}

    def answer(miss: IotlbMiss) -> None:
        at = miss.iova - made.SHIFT
        allowed[at] = miss.permission
        made.iotlb.handle(IotlbMessage(miss.iova, 0x1000, USER + at, miss.permission, IotlbType.UPDATE))

    made.answer = answer  # type: ignore[method-assign]
    made.until_known(lambda: made.driver.ring(iotlb=made.iotlb).has_requests())
    both = Permission.READ | Permission.WRITE
    descriptors = Permission.READ if kind is SplitDriver else both
    assert allowed == {0: descriptors, 0x1000: Permission.READ, 0x2000: both}


FORGETTING: dict[str, Callable[[Iotlb], None]] = {
    "all but one address": lambda iotlb: iotlb.handle(IotlbMessage(0, 1 << 63, 0, 0, IotlbType.INVALIDATE)),
    "all": lambda iotlb: iotlb.handle(IotlbMessage(0, 0, 0, 0, IotlbType.INVALIDATE)),
    "another front-end": Iotlb.clear,
}


@BOTH
@pytest.mark.parametrize("what", FORGETTING)
def test_a_translation_that_is_taken_back_makes_a_ring_ask_again(
    guest: Guest, kind: type[AnyDriver], what: str
) -> None:
    made = Translated(guest, kind)
    ring: AnyRing = made.until_known(lambda: made.driver.ring(iotlb=made.iotlb))
    made.request()
    chain: Chain = made.until_known(ring.pop)
    FORGETTING[what](made.iotlb)
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


@BOTH
@pytest.mark.parametrize("said", [None, 0x100000])
def test_behind_an_iommu_the_used_ring_is_marked_where_the_guest_has_it(
    guest: Guest, kind: type[AnyDriver], said: int | None, logged: Logged
) -> None:
    """What SET_VRING_ADDR says of the log is an address of the IOMMU's then."""
    made = Translated(guest, kind)
    ring: AnyRing = made.until_known(lambda: made.driver.ring(iotlb=made.iotlb))
    ring.log = logged.log
    ring.log_used(said)
    made.until_known(ring.enable_kicks)
    assert logged.marked() == (set() if said is None else {0})


@BOTH
def test_a_ring_in_memory_that_has_shrunk_before_it_begins_is_broken_at_once(
    guest: Guest, kind: type[AnyDriver]
) -> None:
    driver = kind(guest)
    os.ftruncate(guest.fd, 0)
    with pytest.raises(BrokenRing):
        driver.ring()
