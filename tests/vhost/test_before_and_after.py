"""What a back-end has found in memory and kept is right before and behind each change of memory and translations."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from functools import partial

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from tests.test_vhost_memory import maps_of
from userdev.errors import ProtocolError
from vhost_user.memory import Iotlb, IotlbMiss, MemoryTable
from vhost_user.wire.payloads import IotlbMessage, IotlbType, Permission, Region

PAGE = 4096
USER = 0x7F0000000000
SHIFT = 1 << 40
"""Where the guest's devices have its memory, behind an IOMMU."""

WALK = settings(max_examples=15, stateful_step_count=25, deadline=None, phases=(Phase.explicit, Phase.generate))


class Regions(RuleBasedStateMachine):
    """Memory in regions of two pages that come, go and become others; after each change all of it is looked at.

    What is at an address is the number of the file that was shared there last.
    """

    PLACES = 4

    def __init__(self) -> None:
        super().__init__()
        self.table = MemoryTable()
        self.there: dict[int, int] = {}
        self.made = 0
        self.generation = 0

    places = st.integers(0, PLACES - 1)

    def region(self, place: int) -> Region:
        return Region(2 * PAGE * place, 2 * PAGE, USER + 2 * PAGE * (self.PLACES - place), 0)

    def share(self, places: list[int], tell: Callable[[list[int]], None]) -> None:
        """Give new files for these places."""
        fds = [os.memfd_create("region") for _ in places]
        try:
            for place, fd in zip(places, fds, strict=True):
                self.made += 1
                os.pwrite(fd, bytes((self.made % 251 + 1,)) * 2 * PAGE, 0)
                self.there[place] = self.made % 251 + 1
            tell(fds)
        finally:
            for fd in fds:
                os.close(fd)

    @rule(place=places)
    def add(self, place: int) -> None:
        """One that is there already is another file then."""
        self.share([place], lambda fds: self.table.add(self.region(place), fds[0]))

    @rule(places=st.sets(places))
    def set(self, places: set[int]) -> None:
        self.there.clear()
        named = sorted(places)
        self.share(named, lambda fds: self.table.set([self.region(place) for place in named], fds))

    @rule(place=places)
    def remove(self, place: int) -> None:
        if place in self.there:
            self.table.remove(self.region(place))
            del self.there[place]
        else:
            with pytest.raises(ProtocolError):
                self.table.remove(self.region(place))

    @rule(place=places)
    def remove_something_like_it(self, place: int) -> None:
        guest, size, user, offset = self.region(place)
        with pytest.raises(ProtocolError):
            self.table.remove(Region(guest, size - PAGE, user, offset))

    @rule(place=places)
    def share_what_is_refused(self, place: int) -> None:
        """One that is beyond its file, or over another; what was there stays, and nothing is mapped that was not."""
        generation, (guest, _, user, _) = self.table.generation, self.region(place)
        fd, long = os.memfd_create("short"), self.region(place)
        os.ftruncate(fd, PAGE)
        short, over = Region(guest, PAGE, user, 0), Region(guest + PAGE, PAGE, user, 0)
        ways = [partial(self.table.set, [short, short], [fd, fd]), partial(self.table.set, [short, long], [fd, fd])]
        ways += [
            partial(self.table.add, long, fd),
            *([partial(self.table.add, over, fd)] if place in self.there else []),
        ]
        for refused in ways:
            with pytest.raises(ProtocolError):
                refused()
        os.close(fd)
        assert self.table.generation == generation
        assert not maps_of("short")

    @rule(first=places, second=places)
    def look(self, first: int, second: int) -> None:
        """Two places one after the other are those that are remembered."""
        for place in (first, second, first):
            self.find(place)

    @invariant()
    def all_is_where_it_is(self) -> None:
        for place in range(self.PLACES):
            self.find(place)
        assert len(self.table) == len(self.there)

    def find(self, place: int) -> None:
        guest, size, user, _ = self.region(place)
        ways: list[Callable[[], bytes]] = [
            lambda: bytes(self.table.view(guest + 8, size - 8)),
            lambda: bytes(self.table.region_of(guest + 8, size - 8).view[8:]),
            lambda: bytes(self.table.user_view(user + 8, size - 8)),
            lambda: b"".join(bytes(piece) for piece in self.table.views(guest + 8, size - 8)),
        ]
        for way in ways:
            if place in self.there:
                assert way() == bytes((self.there[place],)) * (size - 8)
                continue
            with contextlib.suppress(ProtocolError):
                assert way() == b""

    def teardown(self) -> None:
        self.table.clear()


class Translations(RuleBasedStateMachine):
    """Translations of runs of pages that come, overlap others and go; all are asked for after each change."""

    PAGES = 12

    def __init__(self) -> None:
        super().__init__()
        self.table = MemoryTable()
        with open(os.memfd_create("guest"), "r+b") as file:
            file.truncate(2 * self.PAGES * PAGE)
            self.table.set([Region(0, 2 * self.PAGES * PAGE, USER, 0)], [file.fileno()])
        self.iotlb = Iotlb(self.table)
        self.entries: list[tuple[range, int, Permission]] = []
        """Pages of the device's, the guest's first, and what they may be used for."""

    pages = st.integers(0, PAGES - 1)
    counts = st.integers(1, 4)

    def tell(self, first: int, count: int, to: int, permission: int, kind: IotlbType) -> None:
        """What is said is said to forget something, exactly where something is forgotten."""
        message = IotlbMessage(SHIFT + first * PAGE, count * PAGE, USER + to * PAGE, permission, kind)
        left = [entry for entry in self.entries if not {*entry[0]} & {*range(first, first + count)}]
        if kind is IotlbType.UPDATE:
            assert self.iotlb.would_forget(message) == (left != self.entries)
        elif left != self.entries:
            assert self.iotlb.would_forget(message)
        generation = self.table.generation
        self.iotlb.handle(message)
        assert self.table.generation > generation, "rings look again"
        self.entries = left

    @rule(first=pages, count=counts, to=pages, permission=st.sampled_from([1, 2, 3]))
    def update(self, first: int, count: int, to: int, permission: int) -> None:
        self.tell(first, count, to, permission, IotlbType.UPDATE)
        self.entries.append((range(first, first + count), to, Permission(permission)))

    @rule(
        first=pages,
        wrong=st.sampled_from(
            [
                (0, 0, 3, IotlbType.UPDATE),
                (PAGE, 0, 0, IotlbType.UPDATE),
                (PAGE, 0, 4, IotlbType.UPDATE),
                (1 << 63, 0, 0, IotlbType.MISS),
            ]
        ),
    )
    def say_what_is_refused(self, first: int, wrong: tuple[int, int, int, IotlbType]) -> None:
        """What is known stays."""
        self.refused(first, *wrong)

    @precondition(lambda self: self.entries)
    @rule(data=st.data())
    def update_beyond_memory(self, data: st.DataObject) -> None:
        """Over a translation that there is, which stays."""
        pages, _, _ = data.draw(st.sampled_from(self.entries))
        self.refused(pages.start, 2 * PAGE, 2 * self.PAGES - 1, 3, IotlbType.UPDATE)

    def refused(self, first: int, size: int, to: int, permission: int, kind: IotlbType) -> None:
        generation = self.table.generation
        with pytest.raises(ProtocolError):
            self.iotlb.handle(IotlbMessage(SHIFT + first * PAGE, size, USER + to * PAGE, permission, kind))
        assert self.table.generation == generation

    @rule(first=pages, count=counts)
    def invalidate(self, first: int, count: int) -> None:
        self.tell(first, count, 0, 0, IotlbType.INVALIDATE)

    @precondition(lambda self: len(self.entries) > 3)
    @rule(first=pages)
    def invalidate_all_from(self, first: int) -> None:
        self.iotlb.handle(IotlbMessage(SHIFT + first * PAGE, 0, 0, 0, IotlbType.INVALIDATE))
        self.entries = [entry for entry in self.entries if entry[0].stop <= first]

    @precondition(lambda self: len(self.entries) > 5)
    @rule()
    def clear(self) -> None:
        generation = self.table.generation
        self.iotlb.clear()
        assert self.table.generation > generation
        self.entries.clear()

    def known(self, page: int, permission: Permission) -> int | None:
        """The guest's page behind one of the device's."""
        for pages, to, allowed in self.entries:
            if page in pages and not permission & ~allowed:
                return to + page - pages.start
        return None

    @invariant()
    def each_page_is_where_it_was_said_to_be(self) -> None:
        for permission in (Permission.READ, Permission.WRITE, Permission.READ | Permission.WRITE):
            for page in range(-1, self.PAGES + 4):
                self.ask(page, permission)

    def ask(self, page: int, permission: Permission) -> None:
        """From the middle of a page to the middle of the next one."""
        iova = SHIFT + page * PAGE + PAGE // 2
        here, there = self.known(page, permission), self.known(page + 1, permission)
        if here is not None and there is not None:
            found = self.iotlb.translate(iova, PAGE, permission)
            assert [at for first, count in found for at in (first, first + count - 1)][:1] == [here * PAGE + PAGE // 2]
            assert sum(count for _, count in found) == PAGE
            last, count = found[-1]
            assert last + count == there * PAGE + PAGE // 2
            return
        with pytest.raises(IotlbMiss) as missed:
            self.iotlb.translate(iova, PAGE, permission)
        assert missed.value.iova == (iova if here is None else SHIFT + (page + 1) * PAGE)

    def teardown(self) -> None:
        self.table.clear()


@pytest.mark.parametrize("walk", [Regions, Translations])
def test_memory_that_changes_is_what_it_is_now(walk: type[RuleBasedStateMachine]) -> None:
    run_state_machine_as_test(walk, settings=WALK)
