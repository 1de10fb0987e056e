"""The driver's side of rings, with what real devices write there."""

from __future__ import annotations

import random
import struct
import sys
from collections.abc import Callable, Iterator

import pytest

from tests.cases import for_each
from vhost_user.frontend import GuestMemory
from vhost_user.frontend.driver import Descriptor
from vhost_user.frontend.memory import PAGE
from vhost_user.frontend.packed import PackedDriver
from vhost_user.frontend.split import SplitDriver
from vhost_user.memory import MemoryTable
from vhost_user.rings import Chain, PackedRing, SplitRing
from vhost_user.rings.packed import BOTH
from vhost_user.rings.ring import DESCRIPTOR, WRITE
from vhost_user.wire import VirtioFeature as V

NOTHING = V(0)


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    memory = GuestMemory()
    yield memory
    memory.close()


@pytest.mark.parametrize(("flags", "written"), [(0, 0), (WRITE, 12)], ids=["read", "written"])
def test_a_packed_ring_says_how_much_was_written_only_of_what_was(
    memory: GuestMemory, flags: int, written: int
) -> None:
    """DPDK 24.11.8, net_vhost: the length of what was read stays; it is reserved (virtio 1.3, "Packed Virtqueues")."""
    at = memory.allocate(PackedDriver.room(8))
    driver = PackedDriver(memory, at, 8, V.VERSION_1 | V.RING_PACKED)
    known_by = driver.put([Descriptor(0x1000, 12, flags), Descriptor(0x2000, 60, flags)])
    memory[at : at + 16] = DESCRIPTOR.pack(0x1000, 12, known_by, BOTH | flags)
    assert list(driver.take_used()) == [(known_by, written)]
    driver.close()


@pytest.mark.parametrize("kind", [SplitDriver, PackedDriver])
@pytest.mark.parametrize("more", [V(0), V.IN_ORDER], ids=["", "in order"])
def test_several_requests_come_back_as_one_from_a_device_that_keeps_their_order_alone(
    memory: GuestMemory, kind: type[SplitDriver | PackedDriver], more: V
) -> None:
    """It names the last of them ("In-order use of descriptors"), and what was written is that one's."""
    at = memory.allocate(kind.room(8), align=PAGE)
    driver = kind(memory, at, 8, V.VERSION_1 | more | (V.RING_PACKED if kind is PackedDriver else V(0)))
    heads = [driver.put([Descriptor(0x10000, 8, WRITE), Descriptor(0x20000, 8, WRITE)]) for _ in range(3)]
    if kind is PackedDriver:
        memory[at : at + 16] = DESCRIPTOR.pack(0x10000, 7, heads[1], BOTH | WRITE)
    else:
        used = driver.addresses.used
        memory[used + 4 : used + 12] = struct.pack("<II", heads[1], 7)
        memory[used + 2 : used + 4] = struct.pack("<H", 2 if more else 1)
    assert list(driver.take_used()) == ([(heads[0], 0), (heads[1], 7)] if more else [(heads[1], 7)])
    assert driver.free == (6 if more else 4)
    driver.close()


class Pair:
    """A driver and a device over one ring, in one memory; what the device took is in `held`."""

    def __init__(
        self, memory: GuestMemory, kind: type[SplitDriver | PackedDriver], size: int, more: V = NOTHING
    ) -> None:
        features = V.VERSION_1 | more | (V.RING_PACKED if kind is PackedDriver else NOTHING)
        self.memory = memory
        self.at = memory.allocate(kind.room(size), align=PAGE)
        self.driver = kind(memory, self.at, size, features)
        self.table = MemoryTable()
        self.table.set(memory.regions, [memory.fd] * len(memory.regions))
        ring = PackedRing if kind is PackedDriver else SplitRing
        self.device = ring(size, self.driver.addresses, self.table, features, by_guest_address=True)
        self.held: list[tuple[int, Chain]] = []
        self.put: list[int] = []
        self.returned: list[tuple[int, int]] = []

    def request(self, *lengths: int) -> int:
        """Make a request available, of these buffers, the last of which is written."""
        places = [(0x20000 + 0x100 * number, length) for number, length in enumerate(lengths)]
        chain = [Descriptor(*place, WRITE if place == places[-1] else 0) for place in places]
        self.put.append(self.driver.put(chain))
        return self.put[-1]

    def take(self) -> bool:
        chain = self.device.pop()
        if chain is not None:
            self.held.append((chain.head, chain))
        return chain is not None

    def give_back(self, place: int, written: int) -> bool:
        """Give one back that is held; whether the driver is told."""
        known_by, chain = self.held.pop(place)
        self.device.push(chain, written)
        self.returned.append((known_by, written))
        return self.device.publish()

    def collect(self) -> None:
        """The driver takes just what it was given back."""
        assert list(self.driver.take_used()) == self.returned
        self.returned.clear()

    def ring(self) -> bytes:
        """All that driver and device see of each other."""
        return self.memory[self.at : self.at + self.driver.room(self.driver.size)]

    def close(self) -> None:
        self.driver.close()
        del self.device, self.held
        self.table.clear()


KINDS = [SplitDriver, PackedDriver]


@pytest.fixture(params=KINDS)
def pair(request: pytest.FixtureRequest, memory: GuestMemory) -> Iterator[Pair]:
    made = Pair(memory, request.param, 4)
    yield made
    made.close()


@pytest.mark.parametrize(("lengths", "left"), [((), 4), ((1,) * 5, 4), ((1, 1), 1), ((), 0), ((1,), 0)])
def test_a_request_without_a_descriptor_or_without_room_leaves_everything_as_it_was(
    pair: Pair, lengths: tuple[int, ...], left: int
) -> None:
    if left < 4:
        pair.request(*[1] * (4 - left))
    before = pair.ring(), pair.driver.free, dict(pair.driver.chains), pair.driver.base
    with pytest.raises(ValueError, match=f"{left} of 4 left"):
        pair.request(*lengths)
    assert (pair.ring(), pair.driver.free, pair.driver.chains, pair.driver.base) == before
    while pair.take():
        pair.give_back(0, 1)
    pair.collect()
    pair.request(1, 1, 1, 1)
    assert pair.driver.free == 0


@for_each(KINDS, (NOTHING, V.EVENT_IDX), range(3))
def test_a_driver_tells_just_when_the_device_has_asked_for_it(
    kind: type[SplitDriver | PackedDriver], more: V, seed: int
) -> None:
    """Of one request or of several at once, and once of each: what is told too often keeps a device awake."""
    choose, memory = random.Random(seed), GuestMemory()
    pair = Pair(memory, kind, 8, more)
    packed = kind is PackedDriver
    made = told_of = taken = 0
    asked: int | None = 0 if more and not packed else None  # where it wants to be told; None: of everything
    silent = False
    for _ in range(400):
        match choose.choice(["put", "put", "tell", "take", "ask", "be silent"]):
            case "put" if pair.driver.free > 1:
                slots = choose.randint(1, 2)
                pair.request(*[1] * slots)
                made += slots if packed else 1
            case "tell":
                wanted = not silent and (asked is None or told_of <= asked < made)
                assert pair.driver.wants_kick() is wanted, (made, told_of, asked, silent)
                told_of = made
            case "take" if pair.take():
                (_, chain) = pair.held[-1]
                taken += chain.slots if packed else 1
                pair.give_back(0, 0)
                pair.collect()
            case "ask":
                pair.device.enable_kicks()
                asked, silent = taken if more else None, False
            case "be silent":
                pair.device.disable_kicks()
                silent = packed or not more
    pair.close()
    memory.close()


@pytest.mark.pure
@for_each(KINDS, (NOTHING, V.EVENT_IDX))
def test_at_a_fence_each_side_has_what_the_other_stored_and_sees_behind_it_what_the_other_does_then(
    kind: type[SplitDriver | PackedDriver], more: V, memory: GuestMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without one, a processor may look before it has stored: both sides miss the other's, and wait for ever."""
    pair = Pair(memory, kind, 8, more)
    driver, device = pair.driver, pair.device
    seen: list[object] = []

    def at_fence_of(side: object, act: Callable[[], object]) -> None:
        def fence() -> None:
            monkeypatch.undo()
            seen.append(act())

        monkeypatch.setattr(sys.modules[type(side).__module__], "fence", fence)

    def is_told_of_request() -> bool:
        pair.request(1)
        return driver.wants_kick()

    def taken_by_device() -> bool:
        taken = pair.take()
        device.enable_kicks() if more else device.disable_kicks()
        return taken

    def collected_by_driver() -> bool:
        driver.ask_for_no_call()
        return bool(list(driver.take_used()))

    pair.request(1)
    device.disable_kicks()
    pair.take()
    assert pair.give_back(0, 1), "it may have been owed by a device before"
    pair.collect()
    at_fence_of(device, is_told_of_request)
    assert device.enable_kicks(), "a request that came as it asked to be told of them"
    assert pair.take()
    device.enable_kicks()
    pair.request(1)
    at_fence_of(driver, taken_by_device)
    assert not driver.wants_kick(), "the device has taken it, and wants to be told no more"
    driver.ask_for_no_call()
    at_fence_of(driver, lambda: pair.give_back(0, 1))
    driver.ask_for_call()
    pair.collect()
    driver.ask_for_call()
    at_fence_of(device, collected_by_driver)
    assert not pair.give_back(0, 1), "the driver has collected it, and wants to be told no more"
    assert seen == [True] * 4
    pair.close()


@pytest.mark.parametrize("more", [NOTHING, V.EVENT_IDX], ids=["", "events"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(4))
def test_a_driver_and_a_device_at_random_have_the_same_requests(
    memory: GuestMemory, kind: type[SplitDriver | PackedDriver], more: V, seed: int
) -> None:
    """In any order, over any number of turns of the ring; whoever has to be told is told."""
    choose, pair = random.Random(seed), Pair(memory, kind, 8, more)
    asleep = waits = False
    for _ in range(300):
        match choose.choice(["put", "put", "take", "take", "give back", "collect", "sleep", "wait"]):
            case "put" if pair.driver.free:
                pair.request(*(choose.randint(1, 200) for _ in range(choose.randint(1, min(3, pair.driver.free)))))
                assert pair.driver.wants_kick() or not asleep
                asleep = False
            case "take" if not asleep:
                pair.device.disable_kicks()
                if pair.take():
                    assert pair.held[-1][0] == pair.put.pop(0)
            case "sleep":
                asleep = not pair.device.enable_kicks()
                assert asleep is not bool(pair.put)
            case "give back" if pair.held:
                place = choose.randrange(len(pair.held))
                is_told = pair.give_back(place, choose.randint(0, pair.held[place][1].writable))
                assert is_told or not waits
                waits = False
            case "collect":
                pair.collect()
            case "wait":
                pair.driver.ask_for_call()
                waits = not pair.returned  # else it is no longer the next one that it asked for
                pair.collect()
    while pair.take():
        pass
    while pair.held:
        pair.give_back(0, 0)
    pair.collect()
    assert (pair.driver.free, pair.driver.chains) == (8, {})
    pair.close()
