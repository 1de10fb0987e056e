"""Reading and writing client memory: all three modes, across regions, with rights checked before a byte moves."""

from __future__ import annotations

import errno
import itertools
import os
from collections.abc import Callable, Iterator

import pytest

from tests.cases import for_each
from vfio_user import ProtocolError
from vfio_user.device import Dma
from vfio_user.testing import RecordingLink, memory_file

READ, WRITE, FILE_IO = 1, 2, 8
RW = READ | WRITE
PAGE = 4096
MODES = ("mapped", "file", "message")


class Guest:
    """Three pages at 0x10000, each in a mode, with the pattern 0, 1, 2 ... of words."""

    def __init__(self, modes: tuple[str, ...]) -> None:
        self.content = b"".join(word.to_bytes(4, "little") for word in range(len(modes) * PAGE // 4))
        self.file = memory_file(len(self.content), self.content)
        self.client = RecordingLink(memory=bytearray(self.content), base=0x10000)
        self.modes = modes
        self.dma = Dma()
        self.dma.link = self.client
        for page, mode in enumerate(modes):
            flags = RW | (FILE_IO if mode == "file" else 0)
            fd = None if mode == "message" else os.dup(self.file)
            self.dma.map(0x10000 + page * PAGE, PAGE, flags, fd, page * PAGE)
        assert tuple(region.mode for region in self.dma.regions) == modes

    def memory(self) -> bytes:
        """What the guest sees."""
        shared = os.pread(self.file, len(self.content), 0)
        return b"".join(
            (self.client.memory if mode == "message" else shared)[page * PAGE : (page + 1) * PAGE]
            for page, mode in enumerate(self.modes)
        )

    def close(self) -> None:
        self.dma.unmap_all()
        os.close(self.file)


@pytest.fixture
def make() -> Iterator[Callable[..., Guest]]:
    guests: list[Guest] = []

    def make(*modes: str) -> Guest:
        guests.append(Guest(modes))
        return guests[-1]

    yield make
    for guest in guests:
        guest.close()


@pytest.mark.parametrize("modes", [(mode, other, mode) for mode in MODES for other in MODES])
def test_copies_cross_regions_of_any_mode(make: Callable[..., Guest], modes: tuple[str, ...]) -> None:
    guest = make(*modes)
    assert guest.dma.read(0x10000, 3 * PAGE) == guest.content
    assert guest.dma.read(0x10FFD, PAGE + 7) == guest.content[0xFFD : 0xFFD + PAGE + 7]
    buffer = bytearray(PAGE + 100)
    guest.dma.read_into(0x10000 + PAGE - 50, buffer)
    assert buffer == guest.content[PAGE - 50 : 2 * PAGE + 50]
    data = os.urandom(PAGE + 30)
    guest.dma.write(0x10000 + PAGE - 15, data)
    expected = bytearray(guest.content)
    expected[PAGE - 15 : 2 * PAGE + 15] = data
    assert guest.memory() == expected


@for_each(MODES)
def test_a_buffer_of_wider_items_is_as_many_bytes_as_it_has(mode: str, make: Callable[..., Guest]) -> None:
    """As registers are kept: a quarter of it was checked and marked, and all of it written, or nothing."""
    guest = make(mode, mode)
    guest.dma.start_log(PAGE)
    words = memoryview(bytearray(range(64))).cast("I")
    guest.dma.write(0x10000 + PAGE - 32, words)
    assert guest.memory()[PAGE - 32 : PAGE + 32] == bytes(range(64))
    assert guest.dma.take_dirty(0x10000, 2 * PAGE, PAGE)[0] == 0b11
    found = memoryview(bytearray(64)).cast("I")
    guest.dma.read_into(0x10000 + PAGE - 32, found)
    assert found == words
    with pytest.raises(ProtocolError):
        guest.dma.write(0x12000 - 32, words)
    for place in (0, 64):  # by the long way, then by the short one
        guest.dma.write(0x10000 + place, words)
        assert guest.memory()[: place + 65] == bytes(range(64)) * (place // 64 + 1) + bytes([place + 64 >> 2])
        guest.dma.read_into(0x10000 + place, found)
        assert found == words


@pytest.mark.parametrize("mode", MODES)
def test_integers_are_little_endian(make: Callable[..., Guest], mode: str) -> None:
    dma = make(mode).dma
    dma.write_u64(0x10008, 0x1122334455667788)
    assert [dma.read_u8(0x10008), dma.read_u16(0x10008), dma.read_u32(0x10008)] == [0x88, 0x7788, 0x55667788]
    dma.write_u32(0x10008, 0xAABBCCDD)
    dma.write_u16(0x10008, 0xEEFF)
    dma.write_u8(0x10008, 0)
    assert dma.read_u64(0x10008) == 0x11223344AABBEE00


@pytest.mark.parametrize("mode", MODES)
def test_what_is_not_mapped_answers_efault_and_nothing_moves(make: Callable[..., Guest], mode: str) -> None:
    guest = make(mode, "mapped")
    for iova, count in ((0x0F000, 1), (0x0FFFF, 2), (0x11FFF, 2), (0x10000, 3 * PAGE), (0x12000, 1), (1 << 63, 8)):
        for access in (lambda: guest.dma.read(iova, count), lambda: guest.dma.write(iova, b"\xff" * count)):  # noqa: B023
            with pytest.raises(ProtocolError) as refusal:
                access()
            assert refusal.value.errno == errno.EFAULT
    assert guest.memory() == guest.content


def test_what_the_client_did_not_grant_answers_eperm_and_nothing_moves() -> None:
    dma, fd = Dma(), memory_file(3 * PAGE)
    for page, flags in enumerate((RW, READ, WRITE)):
        dma.map(page * PAGE, PAGE, flags, os.dup(fd), page * PAGE)
    attempts: list[Callable[[], object]] = [
        lambda: dma.write(PAGE, b"x"),
        lambda: dma.write(PAGE - 1, b"xy"),
        lambda: dma.read(2 * PAGE, 1),
        lambda: dma.read(0, 3 * PAGE),
        lambda: dma.views(PAGE, 1, write=True),
        lambda: dma.views(2 * PAGE, 1),
    ]
    for attempt in (*attempts, *attempts):  # again, when the last region is known
        with pytest.raises(ProtocolError) as refusal:
            attempt()
        assert refusal.value.errno == errno.EPERM
    assert os.pread(fd, 3 * PAGE, 0) == bytes(3 * PAGE)
    dma.write(2 * PAGE, b"ok")
    assert os.pread(fd, 2, 2 * PAGE) == b"ok"
    dma.unmap_all()
    os.close(fd)


def test_nothing_can_be_read_from_an_unmapped_region_by_a_stale_cache(make: Callable[..., Guest]) -> None:
    guest = make("mapped")
    guest.dma.read(0x10000, 4)
    guest.dma.unmap(0x10000, PAGE)
    with pytest.raises(ProtocolError):
        guest.dma.read(0x10000, 4)


def test_an_access_of_nothing_is_always_right(make: Callable[..., Guest]) -> None:
    dma = make("mapped").dma
    assert dma.read(0, 0) == b""
    dma.write(0xFFFF_FFFF, b"")
    assert dma.views(0, 0) == []


def test_views_are_the_memory_itself_with_neighbours_joined(make: Callable[..., Guest]) -> None:
    guest = make("mapped", "mapped", "mapped")
    with guest.dma.views(0x10010, 2 * PAGE, write=True) as views:
        assert [len(view) for view in views] == [2 * PAGE]
        views[0][PAGE : PAGE + 4] = b"here"
    assert guest.memory()[PAGE + 0x10 : PAGE + 0x14] == b"here"


def test_views_of_scattered_memory_come_in_order() -> None:
    dma, fd = Dma(), memory_file(4 * PAGE, b"".join(bytes([page]) * PAGE for page in range(4)))
    for page, place in enumerate((3, 1, 2)):
        dma.map(page * PAGE, PAGE, RW, os.dup(fd), place * PAGE)
    with dma.views(PAGE // 2, 2 * PAGE) as views:
        assert [(view[0], len(view)) for view in views] == [(3, PAGE // 2), (1, PAGE + PAGE // 2)]
        with pytest.raises(TypeError):
            views[0][0] = 1
    dma.unmap_all()
    os.close(fd)


Extents = list[tuple[int, int]]

WAYS: dict[str, Callable[[Dma, Extents], bytes]] = {
    "read": lambda dma, extents: b"".join(dma.read(*each) for each in extents),
    "views": lambda dma, extents: b"".join(view for each in extents for view in dma.views(*each)),
    "gather": lambda dma, extents: b"".join(dma.gather(extents)),
    "writable views": lambda dma, extents: b"".join(view for each in extents for view in dma.views(*each, write=True)),
    "writable gather": lambda dma, extents: b"".join(dma.gather(extents, write=True)),
}


def test_neighbours_are_told_apart_by_file_and_by_place_whatever_looks_at_them() -> None:
    """Where one file is left off another may go on at the very same offset."""
    whole = [(0, 2 * PAGE)]
    parts = [(PAGE - 8, 16), (0, 8), (PAGE, 8), (PAGE - 1, 2)]
    files = [bytes([16 * file + page]) * PAGE for file in range(2) for page in range(4)]
    fds = [memory_file(4 * PAGE, b"".join(files[4 * file : 4 * file + 4])) for file in range(2)]
    places = [(file, page) for file in range(2) for page in (0, 1, 2)]
    for first, second in itertools.product(places, places):
        dma = Dma()
        for at, (file, page) in enumerate((first, second)):
            dma.map(at * PAGE, PAGE, RW, os.dup(fds[file]), page * PAGE)
        content = files[4 * first[0] + first[1]] + files[4 * second[0] + second[1]]
        for name, look in WAYS.items():
            for extents in (whole, parts):
                expected = b"".join(content[at : at + size] for at, size in extents)
                assert look(dma, extents) == expected, (name, first, second, extents)
        joined = first[0] == second[0] and first[1] + 1 == second[1]
        assert len(dma.views(0, 2 * PAGE)) == (1 if joined else 2), (first, second)
        dma.unmap_all()
    for fd in fds:
        os.close(fd)


def test_gathered_ranges_are_views_in_the_order_asked_for(make: Callable[..., Guest]) -> None:
    guest = make("mapped", "mapped")
    guest.dma.start_log(PAGE)
    extents = [(0x10000 + PAGE + 8, 4), (0x10000, 16), (0x10000 + PAGE - 4, 8)]  # the last across two regions
    pieces = guest.dma.gather(extents)
    at = [(PAGE + 8, 4), (0, 16), (PAGE - 4, 8)]
    assert b"".join(pieces) == b"".join(guest.content[start : start + size] for start, size in at)
    assert all(piece.readonly for piece in pieces)
    assert guest.dma.take_dirty(0x10000, 2 * PAGE, PAGE) == bytes(8)
    pieces = guest.dma.gather([*extents[:2], (0x10000 + PAGE, 8)], write=True)
    pieces[0][:] = b"here"
    assert guest.memory()[PAGE + 8 : PAGE + 12] == b"here"
    assert guest.dma.take_dirty(0x10000, 2 * PAGE, PAGE)[0] == 0b11


@pytest.mark.parametrize("bad", [(0x10000 + PAGE - 4, 8), (0x10000 + PAGE, 1), (0, 1), (2**64 - 4, 8)])
def test_what_cannot_be_gathered_is_an_error_as_for_views(make: Callable[..., Guest], bad: tuple[int, int]) -> None:
    with pytest.raises(ProtocolError) as refusal:
        make("mapped").dma.gather([(0x10000, 8), bad])
    assert refusal.value.errno == errno.EFAULT


def test_a_view_that_an_author_keeps_does_not_break_unmapping(make: Callable[..., Guest]) -> None:
    guest = make("mapped")
    views = guest.dma.views(0x10000, 8)
    guest.dma.unmap(0x10000, PAGE)
    assert bytes(views[0]) == guest.content[:8]


@pytest.mark.parametrize("mode", ["file", "message"])
def test_memory_that_is_not_mapped_cannot_be_viewed(make: Callable[..., Guest], mode: str) -> None:
    with pytest.raises(ProtocolError) as refusal:
        make(mode).dma.views(0x10000, 8)
    assert refusal.value.errno == errno.EOPNOTSUPP


def test_a_client_that_refuses_a_message_passes_its_errno_on(make: Callable[..., Guest]) -> None:
    guest = make("message")
    del guest.client.memory[100:]
    with pytest.raises(ProtocolError) as refusal:
        guest.dma.read(0x10000, 200)
    assert refusal.value.errno == errno.ENODEV


@for_each(itertools.product(MODES, ("read", "read_into", "write")), ids=lambda case: " ".join(case))
def test_what_is_unmapped_while_a_message_is_waited_for_is_used_no_more(
    case: tuple[str, str], make: Callable[..., Guest]
) -> None:
    """Its descriptor's number may be another file's by then, one that the client was never to see."""
    mode, access = case
    guest = make("message", mode)
    others: list[int] = []

    class Unmapping(RecordingLink):
        def dma_read(self, iova: int, count: int) -> bytes:
            self.unmap()
            return bytes(count)

        def dma_write(self, iova: int, data: bytes | memoryview) -> None:
            self.unmap()

        def unmap(self) -> None:
            assert not others, "what is unmapped was asked for"
            guest.dma.unmap(0x11000, PAGE)
            others.append(memory_file(PAGE, b"secret"))

    guest.dma.link = Unmapping()
    given = {"read": 8, "read_into": bytearray(8), "write": b"overwrites"}[access]
    with pytest.raises(ProtocolError) as refusal:
        getattr(guest.dma, access)(0x10FFC, given)
    assert refusal.value.errno == errno.EFAULT
    assert os.pread(others[0], 6, 0) == b"secret"
    os.close(others[0])


def test_a_file_that_ends_too_early_answers_efault(make: Callable[..., Guest]) -> None:
    dma, fd = Dma(), os.memfd_create("not sealed")
    os.ftruncate(fd, PAGE)
    dma.map(0, PAGE, RW | FILE_IO, fd)
    os.ftruncate(fd, 10)
    with pytest.raises(ProtocolError) as refusal:
        dma.read(0, 20)
    assert refusal.value.errno == errno.EFAULT
    dma.unmap_all()


ACCESSES: dict[str, Callable[[Dma], object]] = {
    "read": lambda dma: dma.read(PAGE, 4),
    "a read across two regions": lambda dma: dma.read(4 * PAGE - 2, 4),
    "read into": lambda dma: dma.read_into(PAGE, bytearray(4)),
    "write": lambda dma: dma.write(PAGE, b"four"),
    "views": lambda dma: dma.views(PAGE, 4),
    "writable views": lambda dma: dma.views(PAGE, 4, write=True),
    "gather": lambda dma: dma.gather([(PAGE, 4), (0, 4)]),
    "a number": lambda dma: dma.read_u32(PAGE),
}


@for_each(ACCESSES.values(), ids=ACCESSES)
def test_memory_that_its_client_has_shrunk_is_refused_and_the_rest_of_it_works(access: Callable[[Dma], object]) -> None:
    dma, fd = Dma(), os.memfd_create("not sealed", os.MFD_CLOEXEC)
    os.ftruncate(fd, 8 * PAGE)
    dma.map(0, 4 * PAGE, 3, os.dup(fd))
    dma.map(4 * PAGE, 4 * PAGE, 3, os.dup(fd), 4 * PAGE)
    access(dma)
    os.ftruncate(fd, PAGE)
    for _ in range(2):
        with pytest.raises(ProtocolError) as refused:
            access(dma)
        assert refused.value.errno == errno.EFAULT
    dma.write(0, b"works")
    assert dma.read(0, 5) == b"works" == os.pread(fd, 5, 0)
    os.ftruncate(fd, 8 * PAGE)
    access(dma)
    os.close(fd)
