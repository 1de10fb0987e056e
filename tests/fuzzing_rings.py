"""Rings with any content: what a driver has made available is bent, and so are in-flight region and translations.

Nothing but the one error comes of it; a ring that is broken stays so; what is written is what may be: the used ring,
and writable buffers of requests that were taken. What a seed does is always the same.
"""

from __future__ import annotations

import random
import traceback
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from tests.fuzzing import Outcome
from tests.vhost_kit import USER, AnyDriver, AnyRing, Guest, PackedDriver, SplitDriver, inflight, inflight_region
from vhost_user.memory import Iotlb, IotlbMiss
from vhost_user.rings import BrokenRing, Chain, RingAddresses
from vhost_user.wire import VirtioFeature
from vhost_user.wire.payloads import IotlbMessage, IotlbType

SIZE = 8
MEMORY = 1 << 14
REGION = 0x2000
"""Bytes of the two regions that memory is given as."""
F = VirtioFeature
OPTIONAL = (F.INDIRECT_DESC, F.EVENT_IDX, F.IN_ORDER)
OPS = ("pop", "pop", "pop", "push", "push", "publish", "kicks", "silence", "unpop", "share", "bend", "translate")


@dataclass(frozen=True)
class Case:
    """What is tried: a kind of ring, requests that are right, bytes that are bent, and what is done with the ring."""

    packed: bool
    features: VirtioFeature
    has_inflight: bool
    has_iotlb: bool
    start: int
    requests: Sequence[tuple[int, bool]]
    """Bytes to be written, and whether by an indirect table, of each."""
    bends: Sequence[tuple[int, int]]
    """Place and value; places behind the memory's are the in-flight region's."""
    ops: Sequence[str]


class Wrong(Exception):
    """A ring has done what it must not."""


def try_case(case: Case, guest: Guest) -> bool:
    """Try one case; whether the ring was broken.

    Raises:
        Wrong: it wrote where it must not, or lived on when it was broken.
        Exception: anything else that is no BrokenRing is a defect, too.
    """
    guest.memory[:] = bytes(MEMORY)
    guest.share()
    driver: AnyDriver = (PackedDriver if case.packed else SplitDriver)(guest, SIZE, case.features, start=case.start)
    for size, indirect in case.requests:
        driver.request(writable=(size,), indirect=indirect and F.INDIRECT_DESC in case.features)
    attempt = _Attempt(case, guest, driver)
    try:
        attempt.run()
    except BrokenRing:
        attempt.check_broken()
        return True
    finally:
        attempt.check_memory()
    return False


class _Attempt:
    def __init__(self, case: Case, guest: Guest, driver: AnyDriver) -> None:
        self.guest = guest
        self.driver = driver
        self.case = case
        self.region = inflight_region(driver)
        self.bends = list(case.bends)
        self.taken: list[Chain] = []
        self.ring: AnyRing | None = None
        used = [(0, 16 * SIZE), (0x1804, 4)] if case.packed else [(0x1800, 4 + 8 * SIZE + 2)]
        self.writable = used
        self.iotlb = Iotlb(guest.table) if case.has_iotlb else None
        if self.iotlb is not None:
            driver.addresses = RingAddresses(*(address - USER for address in driver.addresses))
            self.translate(whole=True)
        self.bend(len(self.bends) // 2)
        self.before = bytes(guest.memory)

    def run(self) -> None:
        region = inflight(memoryview(self.region), self.driver) if self.case.has_inflight else None
        try:
            self.ring = self.driver.ring(inflight=region, iotlb=self.iotlb)
        except IotlbMiss:
            return  # of a request in the region, outside of all memory
        for op in self.case.ops:
            try:
                self.do(self.ring, op)
            except IotlbMiss:
                self.translate(whole=True)

    def do(self, ring: AnyRing, op: str) -> None:
        match op:
            case "pop":
                if (chain := ring.pop()) is not None:
                    self.taken.append(chain)
                    self.writable += chain.ranges
                    if ring.outstanding > SIZE:
                        raise Wrong(f"{ring.outstanding} requests of a ring of {SIZE}")
            case "push" if self.taken:
                chain = self.taken.pop(0)
                ring.push(chain, chain.write(b"\xa5" * 16))
            case "unpop" if self.taken:
                ring.unpop(self.taken.pop())
            case "publish":
                ring.publish()
            case "kicks":
                ring.enable_kicks()
            case "silence":
                ring.disable_kicks()
            case "share":
                self.guest.share()
            case "translate":
                self.translate(whole=False)
            case "bend":
                self.check_memory()
                self.bend(len(self.bends))
                self.before = bytes(self.guest.memory)

    def bend(self, count: int) -> None:
        """Have other bytes where a driver, or who keeps the in-flight region, may write."""
        for _ in range(count):
            at, value = self.bends.pop()
            if at < MEMORY:
                self.guest.memory[at] = value
            else:
                self.region[(at - MEMORY) % len(self.region)] = value

    def translate(self, *, whole: bool) -> None:
        """Have all addresses known, or one page of them forgotten."""
        if self.iotlb is not None:
            known = IotlbMessage(0, MEMORY, USER, 3, IotlbType.UPDATE)
            gone = IotlbMessage(0x1000, 0x1000, 0, 0, IotlbType.INVALIDATE)
            self.iotlb.handle(known if whole else gone)

    def check_broken(self) -> None:
        """What is broken takes nothing any more, and gives back once what was done before, where it can."""
        if not self.case.bends:
            raise Wrong("a ring that is right is broken")
        if (ring := self.ring) is None:
            return
        if not ring.is_lost:
            self.translate(whole=True)
            with suppress(BrokenRing):
                ring.publish()
        for work in (ring.pop, ring.publish, ring.enable_kicks):
            with suppress(BrokenRing):
                if work():
                    raise Wrong("a ring that is broken goes on")

    def check_memory(self) -> None:
        """Look for what was written where nothing may be."""
        before, now = bytearray(self.before), bytearray(self.guest.memory)
        for at, size in self.writable:
            before[at : at + size] = now[at : at + size] = bytes(min(size, max(0, MEMORY - at)))
        if before != now:
            at = next(at for at in range(MEMORY) if before[at] != now[at])
            raise Wrong(f"a byte at {at:#x} was written")


def drawn(chance: random.Random) -> Case:
    """A case by chance, nearly right as a rule."""
    features = F.VERSION_1
    for feature in OPTIONAL:
        features |= feature if chance.random() < 0.5 else F(0)
    places: tuple[int, ...] = (
        *(chance.randrange(16 * SIZE), chance.randrange(16 * SIZE)),
        *(0x1000 + chance.randrange(8 + 2 * SIZE), 0x1800 + chance.randrange(8 + 8 * SIZE)),
        *(0x2000 + chance.randrange(0x200), MEMORY + chance.randrange(512)),
    )
    used = 16 * chance.randrange(3)  # by the first requests
    places = (*places, used, used + 7, used + 8, used + 11, used + 12, used + 14, used + 15)
    values = (0, 1, 2, 4, 7, 8, 0x7F, 0x80, 0xFF, chance.randrange(256))
    return Case(
        packed=chance.random() < 0.5,
        features=features,
        has_inflight=chance.random() < 0.5,
        has_iotlb=chance.random() < 0.3,
        start=chance.choice((0, 0, 5, 13)),
        requests=[(chance.choice((1, 16, 64)), chance.random() < 0.3) for _ in range(chance.randrange(4))],
        bends=[(chance.choice(places), chance.choice(values)) for _ in range(chance.choice((0, 1, 2, 4, 8)))],
        ops=[chance.choice(OPS) for _ in range(chance.randrange(5, 25))],
    )


def campaign(inputs: int, seed: int) -> Outcome:
    """Try so many cases; always the same for a seed."""
    outcome, chance = Outcome(), random.Random(seed)
    with Guest(REGION, REGION) as guest:
        while outcome.messages < inputs and len(outcome.wrong) < 10:
            case = drawn(chance)
            outcome.messages += 1
            try:
                outcome.refused += try_case(case, guest)
            except Exception as error:
                last = traceback.extract_tb(error.__traceback__)[-1]
                outcome.wrong.append(f"{error!r} at {last.filename}:{last.lineno}: {case}")
    return outcome
