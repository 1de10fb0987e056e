"""What cannot be right in a virtqueue, and memory that goes from under it, breaks one ring and nothing else."""

from __future__ import annotations

import contextlib
import random
import struct
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cases import for_each
from tests.vhost.both import BOTH
from tests.vhost.test_left_requests import alone
from tests.vhost_kit import (
    ALL,
    DESCRIPTOR,
    INDIRECT,
    NEXT,
    USER,
    WRITE,
    AnyDriver,
    Guest,
    PackedDriver,
    SplitDriver,
    finish,
    inflight,
    inflight_region,
    take,
)
from vhost_user.backend.lifecycle import RingEvent, RingState
from vhost_user.rings import BrokenRing, Chain, RingAddresses, SplitRing
from vhost_user.wire.payloads import Region

ROOT = Path(__file__).parent.parent.parent


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
@for_each(BAD_CHAINS)
def test_a_bad_chain_breaks_its_ring_and_no_other(what: str, kind: type[AnyDriver]) -> None:
    with Guest() as guest:
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
def test_a_bad_chain_keeps_nothing_that_was_taken_before_it(kind: type[AnyDriver]) -> None:
    for what, bad in BAD_CHAINS.items():
        with Guest() as guest:
            driver = kind(guest, 8, ALL)
            region = inflight_region(driver)
            ring = driver.ring(inflight=inflight(memoryview(region), driver))
            driver.request(writable=(2,))
            driver.request(writable=(2,))
            done, later = take(ring), take(ring)
            ring.push(done, done.write(b"ab"))
            bad(driver)
            with pytest.raises(BrokenRing):
                ring.pop()
            assert ring.publish(), what
            finish(ring, later, b"cd")
            assert driver.collect() == [1, 2], what
            assert not ring.outstanding
            assert not driver.ring(inflight=inflight(memoryview(region), driver)).resubmitted, what
            with pytest.raises(BrokenRing):
                ring.pop()


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


@for_each([split_loop, split_beyond, split_table_loop, split_table_beyond, split_index_jumps, lambda d: d.offer(8)])
def test_what_a_split_ring_cannot_have_breaks_it(wrong: Any) -> None:
    with Guest() as guest:
        driver = SplitDriver(guest, 8, ALL)
        wrong(driver)
        with pytest.raises(BrokenRing):
            driver.ring().pop()


def test_an_available_index_is_ahead_of_the_ring_by_its_size_at_most(guest: Guest) -> None:
    size = 8
    for place in (0, 3, 0x7FFF, 0xFFFC, 0xFFFF):
        for ahead in (*range(size + 2), 0x7FFF, 0x8000, 0xFFFF - size, 0xFFFE, 0xFFFF):
            driver = SplitDriver(guest, size, ALL, start=place)
            driver._store(0x1002, place + ahead & 0xFFFF)
            ring = driver.ring()
            try:
                found = ring.pop() is not None
            except BrokenRing:
                assert ahead > size, (place, ahead)
            else:
                assert ahead <= size, (place, ahead)
                assert found == (ahead > 0), (place, ahead)


def test_a_packed_chain_without_an_end_breaks_the_ring(guest: Guest) -> None:
    driver = PackedDriver(guest, 4)
    driver.put(one_buffer(4))
    for index in range(4):
        driver._flags(index, 0x80 | NEXT)
    with pytest.raises(BrokenRing):
        driver.ring().pop()


@BOTH
@pytest.mark.parametrize("again", [False, True], ids=["", "submitted again"])
def test_more_requests_at_a_time_than_there_are_descriptors_break_the_ring(
    guest: Guest, kind: type[AnyDriver], again: bool
) -> None:
    driver = kind(guest, 2)
    region = inflight_region(driver)
    ring = driver.ring(inflight=inflight(memoryview(region), driver))
    for _ in range(2):
        driver.request(writable=())
        take(ring)
    if again:
        ring = driver.ring(inflight=inflight(memoryview(region), driver))
        for _ in range(2):
            take(ring)
        ring.inflight = None  # which would find out by itself
    if isinstance(driver, SplitDriver):
        driver.offer(0)
    else:
        driver._flags(0, 1 << 15)  # available again in the next lap, though it never came back
    with pytest.raises(BrokenRing):
        ring.pop()


RINGS = 2_000
"""Of either kind, drawn by their numbers: to have hypothesis draw each field took ten times as long as to go round."""


def any_number(drawn: random.Random) -> int:
    """A small one, one within the guest's memory or near, or any; and the ends more often than others."""
    most = drawn.choice([16, 1 << 14, (1 << 64) - 1])
    return drawn.choice([0, most, most - 1, *(drawn.randint(0, most) for _ in range(5))])


@BOTH
def test_whatever_is_in_a_ring_it_breaks_at_most(guest: Guest, kind: type[AnyDriver]) -> None:
    ends = set()
    for number in range(RINGS):
        drawn = random.Random(number)
        driver = kind(guest, 4, ALL)
        for index in range(4):
            low, high = drawn.randint(0, 7), drawn.randint(0, 0xFFFF)
            guest.memory[16 * index : 16 * index + 16] = struct.pack(
                "<QIHH",
                any_number(drawn),
                any_number(drawn) & 0xFFFFFFFF,
                *((low, high & 7) if not kind.packed else (high, low | 0x80)),
            )
        places = (drawn.choice([drawn.randint(0, 5), drawn.randint(0, 5), drawn.randint(0, 0xFFFF)]) for _ in range(8))
        guest.memory[0x1000:0x1010] = struct.pack("<8H", *places)
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
            assert ring.broken, number
        ends.add(bool(ring.broken))
    assert ends == {False, True}


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


@pytest.mark.pure
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


SHRINKING = """
import mmap, os
from tests.vhost_kit import Guest, PackedDriver, SplitDriver, take
from vhost_user.backend.inflight import InflightRegion
from vhost_user.rings import BrokenRing
from vhost_user.wire.payloads import Inflight

def attempt(kind, work):
    guest = Guest()
    driver = kind(guest)
    try:
        work(guest, driver)
    except BrokenRing:
        print("broken")

for kind in (SplitDriver, PackedDriver):
    attempt(kind, WORK)
"""
"""A program, as what is tried here ended the process once: with SIGBUS."""

TAKEN = """
def WORK(guest, driver):
    ring = driver.ring()
    driver.request()
    os.ftruncate(guest.fd, 0)
    ring.pop()
"""
STARTED = """
def WORK(guest, driver):
    os.ftruncate(guest.fd, 0)
    driver.ring()
"""
SILENCED = """
def WORK(guest, driver):
    ring = driver.ring()
    os.ftruncate(guest.fd, 0)
    ring.disable_kicks()
"""
REGION = """
    fd = os.memfd_create("inflight")
    os.ftruncate(fd, 4096)
    of_rings = InflightRegion(Inflight(4096, 0, 1, driver.size), fd, packed=driver.packed, queues=1)
    region = of_rings.packed(0) if driver.packed else of_rings.split(0)
"""
RECOVERED = f"""
def WORK(guest, driver):{REGION}
    os.ftruncate(fd, 0)
    driver.ring(inflight=region)
"""
LEFT = f"""
def WORK(guest, driver):{REGION}
    ring = driver.ring(inflight=region)
    driver.request()
    chain = take(ring)
    os.ftruncate(fd, 0)
    ring.unpop(chain)
"""


@for_each([TAKEN, STARTED, SILENCED, RECOVERED, LEFT], ids=["taken", "started", "silenced", "recovered", "left"])
def test_a_ring_whose_file_shrinks_breaks_and_the_process_lives(work: str) -> None:
    program = SHRINKING.replace("\nfor kind", f"{work}\nfor kind")
    done = subprocess.run([sys.executable, "-m", "tests.program", program], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout.split()) == (0, ["broken", "broken"]), done.stderr


CUTS = """
import os, sys
from tests.vhost_frontend import PROTOCOL, FEATURES, FrontEnd, R, V
from tests.vhost_kit import Guest, PackedDriver, SplitDriver, USER
from vhost_user.backend import Server
from vhost_user.device import Queues, VhostDevice, queue
from vhost_user.wire.payloads import Region, VringAddress, VringState

class Cuts(VhostDevice):
    virtio_id = 42
    queues = Queues(1)

    @queue(0)
    def cut(self, chain):
        os.ftruncate(guest.fd, 0)
        written = chain.write(chain.read(1) + b"x")
        if grows_again:
            os.ftruncate(guest.fd, guest.size)
        return written

kind = {"split": SplitDriver, "packed": PackedDriver}[sys.argv[1]]
grows_again = sys.argv[2] == "grows again"
guest = Guest()
driver = kind(guest)
driver.request()
driver.request()
with Server(Cuts(), f"unix:{sys.argv[3]}/s") as server:
    for _ in range(2):
        with FrontEnd(str(server.listener.address)) as front_end:
            front_end.negotiate(FEATURES | V.RING_PACKED * kind.packed, PROTOCOL)
            front_end.do(R.ADD_MEM_REG, Region(0, guest.size, USER, 0), [guest.fd])
            ring = front_end.queue(0, 8)
            front_end.do(R.SET_VRING_ERR, 0, [ring.err_fd])
            front_end.do(R.SET_VRING_NUM, VringState(0, 8))
            descriptor, used, available = kind.addresses
            front_end.do(R.SET_VRING_ADDR, VringAddress(0, 0, descriptor, used, available, 0))
            front_end.do(R.SET_VRING_KICK, 0, [ring.kick_fd])
            front_end.do(R.SET_VRING_ENABLE, VringState(0, 1))
            print("told" if ring.wait_err() else "silent")
            front_end.settle()
        guest = Guest()
        driver = kind(guest)
        driver.request()
"""


@for_each(["split", "packed"], ["stays so", "grows again"])
def test_a_file_that_shrinks_in_the_middle_of_a_request_breaks_its_ring(kind: str, then: str, tmp_path: Path) -> None:
    """No SIGBUS, and no answer either: the front-end is told, and the back-end serves the next."""
    command = [sys.executable, "-m", "tests.program", CUTS, kind, then, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout.split()) == (0, ["told", "told"]), done.stderr


@for_each([(8, 1024), (2048, 2048)], (0, 1))
def test_an_indirect_table_has_at_most_1024_descriptors_or_as_many_as_its_ring(
    ring_and_table: tuple[int, int], more: int
) -> None:
    size, most = ring_and_table
    count, table, buffer = most + more, 0x30000, 0xF0000
    chain = [(buffer, 1, NEXT, number + 1) for number in range(count - 1)] + [(buffer, 1, 0, 0)]
    with Guest(1 << 20) as guest:
        guest.memory[table : table + 16 * count] = b"".join(DESCRIPTOR.pack(*descriptor) for descriptor in chain)
        guest.memory[:16] = DESCRIPTOR.pack(table, 16 * count, INDIRECT, 0)
        guest.memory[0x10000:0x10006] = struct.pack("<HHH", 0, 1, 0)
        ring = SplitRing(size, RingAddresses(USER, USER + 0x20000, USER + 0x10000), guest.table, ALL)
        if more:
            with pytest.raises(BrokenRing, match="indirect table"):
                ring.pop()
        else:
            assert take(ring).readable == most
        del ring


@BOTH
def test_a_ring_whose_memory_goes_while_something_is_done_is_broken_once(kind: type[AnyDriver]) -> None:
    """What was done cannot reach the driver any more; nor is that told as another error."""
    told: list[str] = []
    with Guest() as guest:
        driver = kind(guest)

        def handle(chain: Chain) -> int:
            guest.table.clear()
            return 0

        ring = alone(driver, handle, lambda: None)
        ring.happen(RingEvent.ENABLE)
        ring.happen(RingEvent.START)
        ring.err.signal = lambda: told.append("an error")
        for _ in range(2):
            driver.request()
        ring.serve()
        assert (ring.state, told) == (RingState.BROKEN, ["an error"])
        ring.let_go()
