"""What an author's hooks raise at client memory: what is mapped then is what the client was told.

A map that is refused is none, of which the device would go on using memory that its client takes for free. Memory that
is taken back is gone, whatever the device says of it, and all of it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import pytest

from tests.cases import for_each
from tests.device_kit import open_fds
from userdev.errors import ProtocolError
from vfio_user.device import DRAFT_V6_POLICY, Dma, DmaRegion
from vfio_user.server.commands import _map_all
from vfio_user.testing import memory_file
from vfio_user.wire import layouts as at

RW, FILE_IO = 3, 8
PAGE = 4096
MAPPED = [0x0000, 0x4000, 0x8000]


class Author:
    """Raises for what begins at some addresses."""

    def __init__(self, error: type[BaseException]) -> None:
        self.error = error
        self.maps: set[int] = set()
        self.unmaps: set[int] = set()
        self.told: list[str] = []
        self.dma = Dma(self.mapped, self.unmapped)

    def mapped(self, region: DmaRegion) -> None:
        self.told.append(f"map {region.iova:#x}")
        if region.iova in self.maps:
            raise self.error(f"map {region.iova:#x}")

    def unmapped(self, region: DmaRegion) -> None:
        self.told.append(f"unmap {region.iova:#x}")
        if region.iova in self.unmaps:
            raise self.error(f"unmap {region.iova:#x}")

    def there(self) -> list[tuple[int, int]]:
        return [(region.iova, region.size) for region in self.dma.regions]


RAISED: list[type[BaseException]] = [ValueError, ProtocolError, SystemExit]


@contextmanager
def who_raises(error: type[BaseException]) -> Iterator[Author]:
    """An author's device with memory, of whom nothing is left open."""
    author = Author(error)
    before = open_fds()
    for iova in MAPPED:
        author.dma.map(iova, 2 * PAGE, RW, memory_file(2 * PAGE))
    yield author
    author.maps.clear()
    author.unmaps.clear()
    author.dma.unmap_all()
    assert open_fds() == before


THREE = [(iova, 2 * PAGE) for iova in MAPPED]
NEW = 0x10000


def a_file(author: Author) -> None:
    author.dma.map(NEW, PAGE, RW, memory_file(PAGE))


def a_file_to_read_and_write(author: Author) -> None:
    author.dma.map(NEW, PAGE, RW | FILE_IO, memory_file(PAGE))


def no_file(author: Author) -> None:
    author.dma.map(NEW, PAGE, RW)


def a_table(author: Author) -> None:
    entries = [at.DmaEntryV6(NEW + place, PAGE, place, RW, 1) for place in (0x2000, 0x1000, 0)]
    file = memory_file(16 * PAGE)
    fds = [os.dup(file) for _ in entries]
    os.close(file)
    _map_all(author.dma, entries, fds)
    assert fds == []


@for_each(RAISED, [a_file, a_file_to_read_and_write, no_file, a_table], ids=lambda each: each.__name__)
def test_a_map_that_the_device_refuses_is_none(error: type[BaseException], map: Callable[[Author], None]) -> None:
    with who_raises(error) as author:
        author.maps = {NEW}
        author.dma.start_log(PAGE)
        with pytest.raises(error, match="map 0x10000"):
            map(author)
        assert author.there() == THREE
        assert not author.dma.has_any(NEW, 0)
        author.maps.clear()
        map(author)
        assert author.dma.has_any(NEW, PAGE)


@for_each(RAISED)
def test_a_range_of_no_bytes_is_not_the_devices_to_refuse(error: type[BaseException]) -> None:
    """It is no memory, and its end is not told either."""
    with who_raises(error) as author:
        author.maps = {NEW}
        author.dma.map(NEW, 0, RW)
        assert author.dma.has_any(NEW, 0)
        assert author.there() == THREE


@for_each(RAISED)
def test_memory_that_is_mapped_already_stays_whatever_is_said_of_the_second_map(error: type[BaseException]) -> None:
    with who_raises(error) as author:
        author.dma.map(NEW, PAGE, RW)
        author.maps = {NEW}
        with pytest.raises(error):
            author.dma.map(NEW, PAGE, RW)
        assert author.there() == [*THREE, (NEW, PAGE)]


@for_each(RAISED)
def test_a_table_that_is_refused_is_undone_whatever_the_device_says_of_that(error: type[BaseException]) -> None:
    with who_raises(error) as author:
        author.maps, author.unmaps = {NEW}, {NEW + 0x1000, NEW + 0x2000}
        with pytest.raises(error):
            a_table(author)
        assert author.there() == THREE


REFUSED = [*({iova} for iova in MAPPED), {*MAPPED}]
UNMAPS = {
    "one": (0x4000, 2 * PAGE, [THREE[0], THREE[2]]),
    "all within a range": (0, 0x10000, []),
    "parts": (0x1000, 0x8000, [(0, PAGE), (0x9000, PAGE)]),
}


@for_each(RAISED, UNMAPS, REFUSED)
def test_memory_that_is_taken_back_is_gone_whatever_the_device_says(
    error: type[BaseException], how: str, refused: set[int]
) -> None:
    with who_raises(error) as author:
        author.unmaps = set(refused)
        iova, size, left = UNMAPS[how]
        if how == "parts":
            author.dma.policy = DRAFT_V6_POLICY
        with pytest.raises(error, match="unmap") if 0x4000 in refused or how != "one" else nullcontext():
            author.dma.unmap(iova, size)
        assert author.there() == left
        if how == "parts":
            assert author.told[-2:] == ["map 0x0", "map 0x9000"], "of what is left it is told"


@for_each(RAISED, REFUSED)
def test_all_memory_is_gone_at_the_end_whatever_the_device_says(error: type[BaseException], refused: set[int]) -> None:
    with who_raises(error) as author:
        author.unmaps = set(refused)
        with pytest.raises(error, match="unmap"):
            author.dma.unmap_all()
        assert author.there() == []


@for_each(RAISED)
def test_what_is_left_of_memory_that_is_cut_stays_whatever_the_device_says(error: type[BaseException]) -> None:
    with who_raises(error) as author:
        author.dma.policy = DRAFT_V6_POLICY
        author.maps = {0, 0x9000}
        with pytest.raises(error):
            author.dma.unmap(0x1000, 0x8000)
        assert author.there() == [(0, PAGE), (0x9000, PAGE)]
        assert author.told[-1] == "map 0x9000"
