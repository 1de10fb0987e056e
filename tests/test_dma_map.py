"""DMA_MAP and DMA_UNMAP: what is refused with which errno, and what 65,535 maps cost (docs/protocol.md 5 and 6)."""

from __future__ import annotations

import errno
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.cases import for_each_row
from tests.device_kit import open_fds
from userdev.transport import close_all
from vfio_user import ProtocolError
from vfio_user.device import DRAFT_V6_POLICY, Dma, DmaRegion, MapPolicy
from vfio_user.testing import RecordingLink, memory_file

READ, WRITE, MMAP, FILE_IO = 1, 2, 4, 8
RW = READ | WRITE
PAGE = 4096
TIB = 1 << 40


@pytest.fixture
def dma() -> Iterator[Dma]:
    before = open_fds()
    dma = Dma()
    yield dma
    dma.unmap_all()
    assert open_fds() == before


@pytest.fixture
def ram() -> Iterator[int]:
    fd = memory_file(64 * PAGE)
    yield fd
    os.close(fd)


def refused(dma: Dma, *arguments: object, **named: object) -> int:
    """The errno of a refused map; nothing may have changed."""
    regions = [repr(region) for region in dma.regions]
    fds = open_fds()
    fd = named.get("fd")
    with pytest.raises(ProtocolError) as refusal:
        dma.map(*arguments, **named)  # type: ignore[arg-type]
    assert [repr(region) for region in dma.regions] == regions
    assert open_fds() == fds - {str(fd)}
    return refusal.value.errno


@for_each_row(
    [
        (0, PAGE, RW | MMAP, False, 0, errno.EINVAL),
        (0, PAGE, RW | FILE_IO, False, 0, errno.EINVAL),
        (0, PAGE, RW | MMAP | FILE_IO, True, 0, errno.EINVAL),
        (0, PAGE, RW | 16, False, 0, errno.EINVAL),
        (0, 8 * TIB + 1, RW, False, 0, errno.ENOSPC),
        ((1 << 64) - PAGE, 2 * PAGE, RW, False, 0, errno.EINVAL),
        (0, 0, RW, True, 0, errno.EINVAL),
        (0, PAGE, RW, True, 64 * PAGE, errno.EINVAL),
        (0, 65 * PAGE, RW, True, 0, errno.EINVAL),
        (0, PAGE, RW, True, (1 << 64) - PAGE, errno.EINVAL),
        (0x10000 - PAGE, 2 * PAGE, RW, False, 0, errno.EINVAL),
        (0x10000, PAGE, RW, False, 0, errno.EINVAL),
        (0x10800, 0x100, RW, False, 0, errno.EINVAL),
        (0, 0x40000, RW, False, 0, errno.EINVAL),
    ]
)
def test_a_wrong_map_is_refused_and_changes_nothing(
    iova: int, size: int, flags: int, with_fd: bool, offset: int, expected: int, dma: Dma, ram: int
) -> None:
    dma.map(0x10000, 2 * PAGE, RW, os.dup(ram), 0)
    assert refused(dma, iova, size, flags, fd=os.dup(ram) if with_fd else None, offset=offset) == expected


def test_largest_and_last_regions_are_taken(dma: Dma) -> None:
    dma.map(0, 8 * TIB, RW)
    dma.map((1 << 64) - PAGE, PAGE, READ)
    assert len(dma) == 2


def test_neighbours_do_not_overlap(dma: Dma) -> None:
    for iova in (0x3000, 0x1000, 0x2000):
        dma.map(iova, 0x1000, RW)
    assert [region.iova for region in dma.regions] == [0x1000, 0x2000, 0x3000]


def test_of_a_range_of_no_bytes_nobody_is_told_neither_that_it_comes_nor_that_it_goes() -> None:
    told: list[DmaRegion] = []
    dma = Dma(mapped=told.append, unmapped=told.append)
    dma.map(0x1000, 0, RW)
    dma.unmap(0x1000, 0)
    dma.map(0x1000, 0, RW)
    dma.unmap_all()
    assert not told


def test_the_same_map_again_is_fine_and_told_again(ram: int) -> None:
    told: list[DmaRegion] = []
    dma = Dma(mapped=told.append)
    for _ in range(2):
        dma.map(0x1000, PAGE, RW, os.dup(ram), PAGE)
    assert len(dma) == 1
    assert len(told) == 2
    for offset in (0, PAGE):  # which is nothing without a file
        dma.map(0x4000, PAGE, RW, None, offset)
    assert len(dma) == 2
    dma.unmap_all()


@pytest.mark.parametrize(
    ("flags", "offset", "own_file"), [(READ, PAGE, False), (RW, 0, False), (RW, PAGE, True), (RW, PAGE, None)]
)
def test_the_same_range_with_other_rights_offset_or_file_is_refused(
    dma: Dma, ram: int, flags: int, offset: int, own_file: bool | None
) -> None:
    dma.map(0x1000, PAGE, RW, os.dup(ram), PAGE)
    fd = None if own_file is None else memory_file(64 * PAGE) if own_file else os.dup(ram)
    assert refused(dma, 0x1000, PAGE, flags, fd=fd, offset=offset) == errno.EINVAL


def test_the_draft_answers_every_overlap_with_eexist(dma: Dma) -> None:
    dma.policy = DRAFT_V6_POLICY
    dma.map(0x1000, PAGE, RW)
    assert refused(dma, 0x1000, PAGE, RW) == errno.EEXIST
    assert refused(dma, 0x1800, PAGE, RW) == errno.EEXIST


def test_there_is_a_limit_of_regions(dma: Dma) -> None:
    dma.policy = MapPolicy(max_regions=3)
    for iova in range(3):
        dma.map(iova * PAGE, PAGE, RW)
    assert refused(dma, 3 * PAGE, PAGE, RW) == errno.EINVAL
    dma.unmap(0, PAGE)
    dma.map(3 * PAGE, PAGE, RW)


def test_regions_of_no_bytes_count_as_any_other(dma: Dma) -> None:
    dma.policy = MapPolicy(max_regions=3)
    for iova in (0, 1, 1, 2):
        dma.map(iova, 0, RW)
    assert refused(dma, 3, 0, RW) == errno.EINVAL
    assert refused(dma, PAGE, PAGE, RW) == errno.EINVAL
    dma.unmap(1, 0)
    dma.map(PAGE, PAGE, RW)


def test_no_more_regions_are_made_by_unmapping_parts_than_by_mapping(dma: Dma) -> None:
    dma.policy = replace(DRAFT_V6_POLICY, max_regions=2)
    dma.map(0, 8 * PAGE, RW)
    dma.unmap(2 * PAGE, PAGE)
    for iova, size in ((4 * PAGE, PAGE), (PAGE, 0)):
        with pytest.raises(ProtocolError):
            dma.unmap(iova, size)
        assert [(region.iova, region.size) for region in dma.regions] == [(0, 2 * PAGE), (3 * PAGE, 5 * PAGE)]
    dma.unmap(PAGE, 6 * PAGE)  # two are cut, and two are left
    assert [(region.iova, region.size) for region in dma.regions] == [(0, PAGE), (7 * PAGE, PAGE)]


def test_a_read_only_file_cannot_be_mapped_for_writing(dma: Dma, ram: int) -> None:
    read_only = os.open(f"/proc/self/fd/{ram}", os.O_RDONLY)
    assert refused(dma, 0, PAGE, RW, fd=os.dup(read_only)) == errno.EACCES
    dma.map(0, PAGE, READ, read_only)
    assert dma.regions[0].mode == "mapped"


def test_a_pipe_is_no_memory(dma: Dma) -> None:
    end, other = os.pipe()
    assert refused(dma, 0, PAGE, READ, fd=end) == errno.ENODEV
    os.close(other)


@pytest.mark.parametrize("kind", ["socket", "pipe", "eventfd", "folder"])
def test_what_has_no_offsets_is_no_file_to_read_and_write(dma: Dma, kind: str) -> None:
    here, there = socket.socketpair()
    reading, writing = os.pipe()
    descriptor = {
        "socket": here.detach(),
        "pipe": reading,
        "eventfd": os.eventfd(0),
        "folder": os.open("/", os.O_RDONLY),
    }
    given = descriptor.pop(kind)
    assert refused(dma, 0, PAGE, RW | FILE_IO, fd=given) == errno.EINVAL
    close_all([*descriptor.values(), writing])
    there.close()


@pytest.mark.parametrize(("way", "flags"), [(os.O_RDONLY, READ), (os.O_WRONLY, WRITE), (os.O_RDWR, RW)])
def test_a_file_to_read_and_write_may_be_open_for_one_of_them(dma: Dma, ram: int, way: int, flags: int) -> None:
    dma.map(0, PAGE, flags | FILE_IO, os.open(f"/proc/self/fd/{ram}", way))
    assert dma.regions[0].mode == "file"


@pytest.mark.parametrize(
    ("flags", "with_fd", "mode"),
    [(RW, True, "mapped"), (RW | MMAP, True, "mapped"), (RW | FILE_IO, True, "file"), (RW, False, "message")],
)
def test_the_mode_follows_from_what_the_client_gave(dma: Dma, ram: int, flags: int, with_fd: bool, mode: str) -> None:
    dma.map(0, PAGE, flags, os.dup(ram) if with_fd else None)
    assert dma.regions[0].mode == mode


def test_offsets_and_sizes_need_not_be_pages(dma: Dma) -> None:
    fd = memory_file(5000, b"0123456789")
    dma.map(0x1234, 6, READ, fd, 3)
    assert dma.read(0x1234, 6) == b"345678"


def test_unmapping_cuts_no_region(dma: Dma) -> None:
    dma.map(0x1000, 2 * PAGE, RW)
    for iova, size in ((0x1000, PAGE), (0x2000, PAGE), (0x2000, 3 * PAGE), (0, 2 * PAGE), (0x9000, PAGE), (0x1000, 0)):
        with pytest.raises(ProtocolError) as refusal:
            dma.unmap(iova, size)
        assert refusal.value.errno == errno.ENOENT
    dma.unmap(0x1000, 2 * PAGE)
    assert len(dma) == 0


def test_unmapping_takes_all_that_lies_in_the_range(dma: Dma) -> None:
    for page in (0, 1, 2, 5, 8):
        dma.map(page * PAGE, PAGE, RW)
    dma.unmap(PAGE, 7 * PAGE)
    assert [region.iova for region in dma.regions] == [0, 8 * PAGE]
    dma.unmap(0, 1 << 48)  # QEMU, when a guest behind an IOMMU changes a device's domain
    assert len(dma) == 0


def test_a_range_has_something_mapped_up_to_its_own_borders_and_not_beyond(dma: Dma) -> None:
    dma.map(0x2000, PAGE, RW)
    dma.map(0x5000, 0, RW)
    assert [dma.has_any(iova, PAGE) for iova in (0x1000, 0x1001, 0x2000, 0x2FFF, 0x3000)] == [False, *[True] * 3, False]
    assert [dma.has_any(iova, 0) for iova in (0x5000, 0x5001)] == [True, False]


def test_nothing_is_left_of_empty_regions_either(dma: Dma) -> None:
    dma.map(0x1000, 0, RW)
    dma.map(0x2000, PAGE, RW)
    dma.unmap_all()
    assert not dma.has_any(0x1000, 0)
    with pytest.raises(ProtocolError):
        dma.unmap(0x1000, 0)


def test_an_empty_region_without_file_can_be_mapped_and_unmapped(dma: Dma) -> None:
    dma.map(0x1000, 0, RW)
    dma.map(0x1000, PAGE, RW)
    dma.unmap(0x1000, 0)
    with pytest.raises(ProtocolError):
        dma.unmap(0x1000, 0)
    assert len(dma) == 1


def test_the_draft_unmaps_any_part_and_keeps_the_rest(dma: Dma, ram: int) -> None:
    dma.policy = DRAFT_V6_POLICY
    os.pwrite(ram, b"".join(bytes([page]) * PAGE for page in range(8)), 0)
    dma.map(0, 4 * PAGE, RW, os.dup(ram), 0)
    dma.map(4 * PAGE, 4 * PAGE, RW | FILE_IO, os.dup(ram), 4 * PAGE)
    dma.unmap(PAGE, 5 * PAGE)
    assert [(region.iova, region.size) for region in dma.regions] == [(0, PAGE), (6 * PAGE, 2 * PAGE)]
    assert dma.read(0, 1) + dma.read(6 * PAGE, 1) + dma.read(7 * PAGE, 1) == b"\0\6\7"
    with pytest.raises(ProtocolError) as refusal:
        dma.unmap(2 * PAGE, PAGE)
    assert refusal.value.errno == errno.ENOENT


def test_an_author_hears_of_a_region_before_it_goes(ram: int) -> None:
    seen: list[bytes] = []
    os.pwrite(ram, b"still", 0)
    client = Dma(unmapped=lambda region: seen.append(client.read(region.iova, 5)))
    client.map(0x5000, PAGE, RW, os.dup(ram))
    client.unmap(0x5000, PAGE)
    assert seen == [b"still"]
    assert client.find(0x5000) is None


def test_memory_is_found_by_any_address_in_it(dma: Dma) -> None:
    for iova in (0x1000, 0x3000):
        dma.map(iova, 0x1000, RW)
    found = [dma.find(iova) for iova in (0xFFF, 0x1000, 0x1FFF, 0x2000, 0x3FFF, 0x4000)]
    assert [region.iova if region else None for region in found] == [None, 0x1000, 0x1000, None, 0x3000, None]


def test_a_file_that_grows_is_mapped_anew_and_the_old_regions_stay(dma: Dma, ram: int) -> None:
    os.pwrite(ram, b"low", 0)
    dma.map(0, PAGE, RW, os.dup(ram), 0)
    os.ftruncate(ram, 128 * PAGE)
    os.pwrite(ram, b"high", 100 * PAGE)
    dma.map(PAGE, PAGE, RW, os.dup(ram), 100 * PAGE)
    assert dma.read(0, 3) + dma.read(PAGE, 4) == b"lowhigh"


def mappings(fd: int) -> int:
    """How often this process has the file mapped; what the interpreter maps for its objects does not count."""
    inode = os.fstat(fd).st_ino
    return sum(line.split()[4] == str(inode) for line in Path("/proc/self/maps").read_text().splitlines())


def test_65535_pages_with_a_descriptor_each_cost_one_mapping_and_no_descriptors(dma: Dma) -> None:
    """What QEMU sends for a guest behind a vIOMMU; in an order that no insertion likes."""
    count = 65535
    fd = memory_file(count * PAGE)
    fds, begin = open_fds(), time.monotonic()
    pages = [page * 40507 % count for page in range(count)]
    for page in pages:
        dma.map(page * PAGE, PAGE, RW, os.dup(fd), page * PAGE)
    assert len(dma) == count
    assert len(open_fds()) <= len(fds) + 1
    assert mappings(fd) == 1
    dma.write(12345 * PAGE - 2, b"page")
    assert os.pread(fd, 4, 12345 * PAGE - 2) == b"page"
    for page in pages:
        dma.unmap(page * PAGE, PAGE)
    assert mappings(fd) == 0
    assert time.monotonic() - begin < 30
    os.close(fd)


def test_memory_that_is_to_be_reached_by_message_is_not_kept_though_it_is_shared() -> None:
    before, dma = open_fds(), Dma()
    dma.by_message = True
    link = RecordingLink(base=0x1000)
    dma.link = link
    dma.map(0x1000, 0x2000, 3, memory_file(0x4000), 0x1000)
    dma.write(0x1010, b"seen")
    assert (dma.read(0x1010, 4), link.messages, bytes(link.memory[0x10:0x14])) == (b"seen", 2, b"seen")
    assert open_fds() == before
    dma.unmap(0x1000, 0x2000)
