"""Where a command's data is in guest memory: lists of pages and of pieces, whole and wrong in each way."""

from __future__ import annotations

import os
import random
import struct

import pytest

from tests.cases import for_each
from userdev.errors import ProtocolError
from userdev_servers.nvme.pointers import BUCKET, MAX_DESCRIPTORS, Buffers, prp_extents, sgl_extents
from userdev_servers.nvme.spec import Failure, Status
from vfio_user.device import Dma
from vfio_user.testing import RecordingLink, memory_file

PAGE = 4096
MEMORY = 64 * PAGE
BLOCK, BUCKETS, SEGMENT, LAST = 0x00, 0x10, 0x20, 0x30


class Guest:
    """A guest's memory, with lists in it."""

    def __init__(self) -> None:
        self.link = RecordingLink(memory=bytearray(MEMORY))
        self.dma = Dma()
        self.dma.link = self.link
        self.dma.map(0, MEMORY, 3)

    def put(self, at: int, data: bytes) -> None:
        self.link.memory[at : at + len(data)] = data

    def put_pages(self, at: int, pages: list[int]) -> None:
        """A list that goes on in the page after the one where it begins, and so on."""
        while True:
            here = (PAGE - at % PAGE) // 8
            if len(pages) <= here:
                return self.put(at, struct.pack(f"<{len(pages)}Q", *pages))
            following = at - at % PAGE + PAGE
            self.put(at, struct.pack(f"<{here}Q", *pages[: here - 1], following))
            at, pages = following, pages[here - 1 :]


@pytest.fixture
def guest() -> Guest:
    return Guest()


def pieces(first: int, pages: list[int], length: int) -> list[tuple[int, int]]:
    """What is in `extents`, page by page, and those that follow on each other together."""
    found: list[tuple[int, int]] = []
    for at, address in enumerate([first, *pages]):
        size = min(PAGE - address % PAGE if not at else PAGE, length)
        length -= size
        if size and found and sum(found[-1]) == address:
            found[-1] = (found[-1][0], found[-1][1] + size)
        elif size:
            found.append((address, size))
    assert not length
    return found


@for_each(range(40))
def test_pages_in_any_order_are_what_the_list_says(seed: int, guest: Guest) -> None:
    """Lists that begin anywhere in a page and are longer than it; pages that follow on each other, and that do not."""
    at_random = random.Random(seed)
    first = at_random.randrange(0, PAGE, 4) + PAGE * at_random.randrange(1000)
    count = at_random.choice([0, 1, 2, 3, 511, 512, 513, 1100])
    pages = [PAGE * at_random.randrange(1000) for _ in range(count)]
    for index in range(1, count):
        if at_random.random() < 0.5:
            pages[index] = pages[index - 1] + PAGE
    if pages and at_random.random() < 0.3:
        pages[0] = first - first % PAGE + PAGE
    whole = PAGE - first % PAGE + count * PAGE
    length = whole - at_random.randrange(PAGE if count else whole)
    second = pages[0] if count == 1 else 8 * PAGE + at_random.choice([0, 8, PAGE - 16, PAGE - 8])
    if count > 1:
        guest.put_pages(second, pages)
    assert prp_extents(guest.dma, first, second, length, PAGE) == pieces(first, pages, length)


LOW_BITS = [1 << bit for bit in range(12)]


@for_each(LOW_BITS)
def test_pages_that_begin_between_two_are_refused_whichever_bit_says_so(bit: int, guest: Guest) -> None:
    """Only the first may, at multiples of 4; and the list of pages, at multiples of 8."""
    wrong: list[tuple[int, int, int, list[int]]] = [
        (0, bit, 2 * PAGE, []),
        (0, PAGE, 4 * PAGE, [2 * PAGE, 3 * PAGE + bit, 4 * PAGE]),
        (0, PAGE, 4 * PAGE, [2 * PAGE + bit, 3 * PAGE, 4 * PAGE]),
    ]
    if bit < 4:
        wrong.append((bit, PAGE, 100, []))
    if bit < 8:
        wrong.append((0, PAGE + bit, 4 * PAGE, [2 * PAGE, 3 * PAGE, 4 * PAGE]))
    for first, second, length, pages in wrong:
        guest.put(second, struct.pack(f"<{len(pages)}Q", *pages))
        with pytest.raises(Failure) as failure:
            prp_extents(guest.dma, first, second, length, PAGE)
        assert failure.value.field & 0x7FF == Status.INVALID_PRP_OFFSET


@for_each(LOW_BITS)
def test_a_list_goes_on_at_the_beginning_of_a_page(bit: int, guest: Guest) -> None:
    guest.put(2 * PAGE - 16, struct.pack("<QQ", 8 * PAGE, 4 * PAGE + bit))
    with pytest.raises(Failure) as failure:
        prp_extents(guest.dma, 0, 2 * PAGE - 16, 4 * PAGE, PAGE)
    assert failure.value.field & 0x7FF == Status.INVALID_PRP_OFFSET


def descriptor(address: int, size: int, kind: int) -> bytes:
    return struct.pack("<QI3xB", address, size, kind)


def inline(size: int, kind: int) -> int:
    """The second half of the descriptor that is in the command."""
    return size | kind << 56


def test_pieces_of_any_size_come_in_their_order(guest: Guest) -> None:
    guest.put(PAGE, descriptor(0x111, 7, BLOCK) + descriptor(0, 5, BUCKETS) + descriptor(3 * PAGE, 32, SEGMENT))
    guest.put(3 * PAGE, descriptor(0x222, 0, BLOCK) + descriptor(5 * PAGE, 16, LAST))
    guest.put(5 * PAGE, descriptor(0x333, 4, BLOCK))
    found = sgl_extents(guest.dma, PAGE, inline(48, SEGMENT), 16, writable=True)
    assert found == [(0x111, 7), (BUCKET, 5), (0x333, 4)]
    assert sgl_extents(guest.dma, 0x444, inline(16, BLOCK), 16, writable=True) == [(0x444, 16)]


WRONG_LISTS: dict[str, tuple[bytes, int, Status]] = {
    "less than all": (descriptor(0, 15, BLOCK), LAST, Status.DATA_SGL_LENGTH_INVALID),
    "more than all": (descriptor(0, 17, BLOCK), LAST, Status.DATA_SGL_LENGTH_INVALID),
    "another kind": (descriptor(0, 16, 0x40), LAST, Status.SGL_TYPE_INVALID),
    "a segment before the end": (
        descriptor(3 * PAGE, 16, SEGMENT) + descriptor(0, 16, BLOCK),
        SEGMENT,
        Status.INVALID_SGL_SEGMENT,
    ),
    "a segment behind the last": (descriptor(3 * PAGE, 16, LAST), LAST, Status.INVALID_SGL_SEGMENT),
    "a segment of nothing": (descriptor(3 * PAGE, 0, LAST), SEGMENT, Status.INVALID_SGL_SEGMENT),
    "half a descriptor": (descriptor(3 * PAGE, 24, LAST), SEGMENT, Status.INVALID_SGL_SEGMENT),
    "too many at once": (
        descriptor(3 * PAGE, 16 * (MAX_DESCRIPTORS + 1), LAST),
        SEGMENT,
        Status.INVALID_SGL_COUNT,
    ),
    "a circle": (descriptor(PAGE, 16, SEGMENT), SEGMENT, Status.INVALID_SGL_COUNT),
}


@for_each(WRONG_LISTS)
def test_a_list_of_pieces_that_is_wrong_is_refused_for_what_is_wrong(name: str, guest: Guest) -> None:
    segment, kind, status = WRONG_LISTS[name]
    guest.put(PAGE, segment)
    with pytest.raises(Failure) as failure:
        sgl_extents(guest.dma, PAGE, inline(len(segment), kind), 16, writable=True)
    assert failure.value.field & 0x7FF == status


@pytest.mark.parametrize("more", [0, 1])
def test_a_list_has_so_many_descriptors_over_all_its_segments(
    guest: Guest, monkeypatch: pytest.MonkeyPatch, more: int
) -> None:
    """That of the command too."""
    monkeypatch.setattr("userdev_servers.nvme.pointers.MAX_DESCRIPTORS", 6)
    guest.put(PAGE, 2 * descriptor(0, 1, BLOCK) + descriptor(3 * PAGE, 16 * (2 + more), LAST))
    guest.put(3 * PAGE, 3 * descriptor(0, 1, BLOCK))
    if more:
        with pytest.raises(Failure) as failure:
            sgl_extents(guest.dma, PAGE, inline(48, SEGMENT), 5, writable=True)
        assert failure.value.field & 0x7FF == Status.INVALID_SGL_COUNT
    else:
        assert len(sgl_extents(guest.dma, PAGE, inline(48, SEGMENT), 4, writable=True)) == 4


PLACES = [(3 * PAGE + 100, 700), (PAGE, 1), (BUCKET, 50), (5 * PAGE - 8, 16)]


@pytest.mark.parametrize("mapped", [True, False])
@pytest.mark.parametrize("size", [0, 1, 700, 701, 751, 767])
def test_data_goes_to_its_pieces_one_after_the_other(guest: Guest, size: int, mapped: bool) -> None:
    memory = memory_file(MEMORY)
    if mapped:
        guest.dma.unmap_all()
        guest.dma.map(0, MEMORY, 3, os.dup(memory))
    data = random.Random(size).randbytes(size)
    buffers = Buffers(guest.dma, PLACES, writable=True)
    assert buffers.in_place == mapped
    buffers.fill(data)
    assert buffers.gather() == data.ljust(767, b"\0")
    buffers.finish()
    expected, at = bytearray(MEMORY), 0
    for address, length in PLACES:
        if address != BUCKET:
            part = data[at : at + length]
            expected[address : address + len(part)] = part
        at += length
    assert (os.pread(memory, MEMORY, 0) if mapped else guest.link.memory) == expected
    guest.dma.unmap_all()
    os.close(memory)


@for_each([True, False], [[(MEMORY, 512)], [(0, 512), (MEMORY - 1, 2)], [(BUCKET, 8), (MEMORY, 8)]])
def test_data_that_is_not_in_guest_memory_is_refused_before_it_is_moved(
    writable: bool, extents: list[tuple[int, int]], guest: Guest
) -> None:
    guest.dma.unmap_all()
    guest.dma.map(0, MEMORY, 3, memory_file(MEMORY))
    with pytest.raises(ProtocolError):
        Buffers(guest.dma, extents, writable=writable)
    guest.dma.unmap_all()
