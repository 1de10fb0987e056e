"""The dirty log under a device's DMA: every way to write client memory marks it, and nothing else does."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.cases import for_each
from userdev.errors import ProtocolError
from vfio_user.device import Dma
from vfio_user.testing import RecordingLink, memory_file
from vfio_user.wire.constants import DmaFlags

PAGE = 4096
BASE, SIZE = 0x10000000, 0x40000
MODES = ("mapped", "file", "message")
STARTS = {mode: BASE + at * SIZE for at, mode in enumerate(MODES)}  # neighbours: a write may go from one to the next
END = BASE + len(MODES) * SIZE
READ_ONLY = END + SIZE


def write_with_view(dma: Dma, iova: int, data: bytes) -> None:
    """In place, a piece after another."""
    with dma.views(iova, len(data), write=True) as views:
        done = 0
        for view in views:
            view[:] = data[done : done + len(view)]
            done += len(view)


def write_word(dma: Dma, iova: int, data: bytes) -> None:
    dma.write_u8(iova, data[0])
    dma.write(iova, memoryview(data))


WRITES: dict[str, Callable[[Dma, int, bytes], None]] = {
    "write": Dma.write,
    "view": write_with_view,
    "word": write_word,
}


@pytest.fixture
def dma() -> Iterator[Dma]:
    """Client memory in each mode, with no log."""
    found = Dma()
    found.link = RecordingLink(memory=bytearray(SIZE), base=STARTS["message"])
    for mode in MODES:
        fd = None if mode == "message" else memory_file(SIZE)
        flags = DmaFlags.READ | DmaFlags.WRITE | (DmaFlags.FILE_IO if mode == "file" else 0)
        found.map(STARTS[mode], SIZE, flags, fd)
    found.map(READ_ONLY, SIZE, DmaFlags.READ, os.open("/dev/zero", os.O_RDONLY))
    yield found
    found.unmap_all()


def dirty(dma: Dma, iova: int = BASE, size: int = END - BASE, page_size: int = PAGE) -> set[int]:
    number = int.from_bytes(dma.take_dirty(iova, size, page_size), "little")
    return {bit for bit in range(number.bit_length()) if number >> bit & 1}


def pages(iova: int, count: int, page_size: int = PAGE) -> set[int]:
    return set(range((iova - BASE) // page_size, (iova - BASE + count - 1) // page_size + 1))


ONE_WRITE = st.tuples(
    st.sampled_from(list(WRITES)),
    st.integers(BASE, END - 1),
    st.one_of(st.integers(1, 16), st.integers(1, 3 * PAGE), st.integers(1, 2 * SIZE)),
)


@given(st.lists(ONE_WRITE, max_size=12), st.sampled_from([PAGE << shift for shift in range(7)]))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_every_write_of_any_size_is_marked(dma: Dma, writes: list[tuple[str, int, int]], page_size: int) -> None:
    dma.stop_log()
    dma.start_log(page_size)
    expected: set[int] = set()
    for how, iova, count in writes:
        count = min(count, END - iova)
        try:
            WRITES[how](dma, iova, b"\xa5" * count)
        except ProtocolError:
            assert how == "view"  # file and message memory cannot be viewed
            continue
        expected |= pages(iova, count, page_size)
    assert dirty(dma, page_size=page_size) == expected
    assert not dirty(dma, page_size=page_size)


@pytest.mark.parametrize("mode", MODES)
def test_reading_marks_nothing(dma: Dma, mode: str) -> None:
    dma.start_log(PAGE)
    dma.read(STARTS[mode], 100)
    dma.read_u64(STARTS[mode])
    dma.read_into(STARTS[mode], bytearray(5000))
    assert not dirty(dma)


@pytest.mark.parametrize("mode", MODES)
def test_nothing_is_marked_before_the_log_starts_or_after_it_stops(dma: Dma, mode: str) -> None:
    dma.write(STARTS[mode], b"before")
    dma.start_log(PAGE)
    assert not dirty(dma)
    dma.write(STARTS[mode], b"during")
    dma.stop_log()
    dma.write(STARTS[mode], b"after")
    dma.start_log(PAGE)
    assert not dirty(dma)


def test_a_refused_write_marks_nothing(dma: Dma) -> None:
    dma.start_log(PAGE)
    for iova, count in ((READ_ONLY, 10), (END - 5, 10), (0, 1)):
        with pytest.raises(ProtocolError):
            dma.write(iova, bytes(count))
    assert not dirty(dma)
    assert not dirty(dma, READ_ONLY, SIZE)


def test_a_view_that_is_written_late_is_marked_again_when_it_is_given_up(dma: Dma) -> None:
    dma.start_log(PAGE)
    with dma.views(BASE, 2 * PAGE, write=True) as views:
        assert dirty(dma) == {0, 1}
        views[0][:] = b"x" * len(views[0])
    assert dirty(dma) == {0, 1}


def test_what_is_viewed_for_writing_is_dirty_as_long_as_there_is_anything_of_the_view(dma: Dma) -> None:
    """A device that keeps a view writes through it whenever it likes, and nobody is told."""
    (view,) = dma.views(BASE + PAGE, 2 * PAGE, write=True)  # before there is a log, too
    dma.start_log(PAGE)
    part = view[PAGE : PAGE + 1]
    for _ in range(2):
        assert dirty(dma) == {1, 2}
    view.release()
    assert dirty(dma) == {1, 2}
    part[0] = 7
    part.release()
    assert [dirty(dma), dirty(dma)] == [{1, 2}, set()]
    assert dma.read(BASE + 2 * PAGE, 1) == b"\7"


def test_what_was_viewed_and_given_up_is_in_the_next_report_of_its_range_whichever_is_asked_for_first(dma: Dma) -> None:
    dma.start_log(PAGE)
    with dma.views(BASE + 3 * PAGE, 1, write=True):
        pass
    assert not dirty(dma, BASE, PAGE)
    assert not dirty(dma, STARTS["file"], SIZE)
    assert dirty(dma, BASE, SIZE) == {3}


def test_what_is_written_through_a_view_when_its_memory_goes_is_in_the_report_of_that() -> None:
    kept: list[memoryview] = []

    def give_up(_: object) -> None:
        kept[0][0] = 7
        kept.pop().release()

    dma = Dma(unmapped=give_up)
    dma.map(BASE, SIZE, DmaFlags.READ | DmaFlags.WRITE, memory_file(SIZE))
    dma.start_log(PAGE)
    kept += dma.views(BASE + PAGE, 1, write=True)
    dirty(dma, BASE, SIZE)
    report = dma.dirty_report(BASE, SIZE, PAGE)
    dma.unmap(BASE, SIZE)
    assert report()[0] == 0b10


def test_views_that_nobody_asks_for_are_not_kept_count_of_for_ever(dma: Dma) -> None:
    for is_logged in (False, True):
        if is_logged:
            dma.start_log(PAGE)
        for at in range(2000):
            dma.views(BASE + at % 32 * 2 * PAGE, 8, write=True)
        assert len(dma._views) <= (300 if is_logged else 0)
    assert dirty(dma) == set(range(0, 64, 2))
    dma.views(BASE, 8, write=True)
    dma.stop_log()
    dma.start_log(PAGE)
    assert not dirty(dma)


def test_memory_that_is_mapped_later_is_logged_too(dma: Dma) -> None:
    dma.start_log(PAGE)
    dma.map(END, SIZE, DmaFlags.READ | DmaFlags.WRITE, memory_file(SIZE))
    dma.write(END + 3 * PAGE, b"late")
    assert dirty(dma, END, SIZE) == {3}


def test_memory_that_is_unmapped_takes_its_marks_along(dma: Dma) -> None:
    dma.start_log(PAGE)
    dma.write(STARTS["mapped"], b"gone")
    dma.unmap(STARTS["mapped"], SIZE)
    dma.map(STARTS["mapped"], SIZE, DmaFlags.READ | DmaFlags.WRITE, memory_file(SIZE))
    assert not dirty(dma)


@for_each(WRITES.values(), ids=WRITES)
def test_memory_that_could_shrink_is_logged_as_any_other(write: Callable[[Dma, int, bytes], None]) -> None:
    fd = os.memfd_create("not sealed")
    os.ftruncate(fd, SIZE)
    dma = Dma()
    dma.map(0, SIZE, DmaFlags.READ | DmaFlags.WRITE, fd)
    dma.start_log(PAGE)
    write(dma, 3 * PAGE, b"four")
    assert dirty(dma, 0, SIZE) == {3}
