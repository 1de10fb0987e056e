"""The dirty log against an oracle that keeps every write, and against threads that write while it is read."""

from __future__ import annotations

import random
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from itertools import combinations, pairwise, product
from types import FrameType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.cases import for_each, for_each_row
from userdev.errors import ProtocolError
from userdev.memory.bitmap import bitmap_size
from vfio_user.migration import dirty_log
from vfio_user.migration.dirty_log import GRANULE, DirtyPages, check_page_size

TraceFunction = Callable[[FrameType, str, Any], Any]

GIB = 1 << 30
TIB = 1 << 40
PAGE_SIZES = [1 << shift for shift in range(12, 31)]


def pages_in(bitmap: bytes | bytearray) -> set[int]:
    return {8 * place + bit for place, byte in enumerate(bitmap) if byte for bit in range(8) if byte >> bit & 1}


def touched(writes: list[tuple[int, int]], address: int, length: int, page_size: int) -> set[int]:
    """The pages of a range that any of the writes (address, count) has a byte in."""
    found: set[int] = set()
    for start, count in writes:
        low, high = max(start, address), min(start + count, address + length)
        if low < high:
            found.update(range((low - address) // page_size, (high - 1 - address) // page_size + 1))
    return found


def writes_in(start: int, size: int) -> st.SearchStrategy[list[tuple[int, int]]]:
    """Writes of any size inside of a range."""
    end = start + size
    counts = st.integers(1, 64) | st.integers(1, size)
    writes = st.tuples(st.integers(start, end - 1), counts).map(lambda write: (write[0], min(write[1], end - write[0])))
    return st.lists(writes, max_size=12)


@st.composite
def marked_ranges(draw: st.DrawFn) -> tuple[int, int, list[tuple[int, int]]]:
    start = draw(st.integers(0, 1 << 20)) * GRANULE
    size = draw(st.one_of(st.integers(1, 64), st.integers(1, 1 << 19))) * GRANULE
    return start, size, draw(writes_in(start, size))


def marked(start: int, size: int, writes: list[tuple[int, int]], granule: int = GRANULE) -> DirtyPages:
    log = DirtyPages(start, size, granule)
    for write in writes:
        log.mark(*write)
    return log


@given(marked_ranges(), st.sampled_from(PAGE_SIZES))
def test_a_report_is_exact_at_any_page_size(case: tuple[int, int, list[tuple[int, int]]], page_size: int) -> None:
    start, size, writes = case
    log = marked(start, size, writes)
    bitmap = log.take(start, size, page_size)
    assert len(bitmap) == bitmap_size(size, page_size)
    assert pages_in(bitmap) == touched(writes, start, size, page_size)
    assert not any(log.take(start, size, page_size))


@given(marked_ranges(), st.lists(st.integers(0, 1 << 19), max_size=6), st.sampled_from([4096, 8192, 1 << 16]))
def test_reports_of_parts_are_exact_and_leave_the_rest(
    case: tuple[int, int, list[tuple[int, int]]], cuts: list[int], page_size: int
) -> None:
    """The range is cut at any granules, and reported part by part: each byte once."""
    start, size, writes = case
    log = marked(start, size, writes)
    borders = sorted({start, start + size, *(start + cut * GRANULE % size // GRANULE * GRANULE for cut in cuts)})
    for low, high in pairwise(borders):
        assert pages_in(log.take(low, high - low, page_size)) == touched(writes, low, high - low, page_size)
    assert not any(log.take(start, size, GRANULE))


@given(marked_ranges(), st.integers(-(1 << 31), 1 << 31), st.integers(1, 1 << 32), st.sampled_from(PAGE_SIZES))
def test_a_range_may_reach_beyond_what_is_logged(
    case: tuple[int, int, list[tuple[int, int]]], shift: int, length: int, page_size: int
) -> None:
    start, size, writes = case
    address = max(0, start + shift // GRANULE * GRANULE)
    length = -(-length // GRANULE) * GRANULE
    assert pages_in(marked(start, size, writes).take(address, length, page_size)) == touched(
        writes, address, length, page_size
    )


@given(writes_in(0x10000, 0x8000), st.integers(0xF000, 0x18000), st.integers(1, 0x9000), st.sampled_from(range(9, 16)))
def test_no_range_and_page_size_loses_a_page(
    writes: list[tuple[int, int]], address: int, length: int, shift: int
) -> None:
    """A range that cuts granules reports them whole, and again later; nothing that was written goes missing."""
    log = marked(0x10000, 0x8000, writes)
    first = pages_in(log.take(address, length, 1 << shift))
    assert touched(writes, address, length, 1 << shift) <= first
    outside = [write for write in writes if not address <= write[0] <= write[0] + write[1] <= address + length]
    rest = pages_in(log.take(0x10000, 0x8000, GRANULE))
    beyond = {
        page
        for page in touched(outside, 0x10000, 0x8000, GRANULE)
        if not address <= 0x10000 + page * GRANULE or 0x10000 + (page + 1) * GRANULE > address + length
    }
    assert beyond <= rest


@given(
    writes_in(0x12345, 0x28000),
    st.integers(0, 0x40000),
    st.integers(1, 0x40000),
    st.sampled_from([*range(6, 22), 40, 51, 63]),
    st.sampled_from([GRANULE, 2 * GRANULE, 1 << 15]),
)
def test_a_granule_makes_every_page_dirty_that_it_has_bytes_in(
    writes: list[tuple[int, int]], address: int, length: int, shift: int, unit: int
) -> None:
    """Wherever the range starts and ends, and whatever its pages and the log's are."""
    start, size = 0x12345, 0x28000
    log = marked(start, size, writes, unit)
    low, high = max(address, start), min(address + length, start + size)
    seen = range((low - start) // unit, -(-(high - start) // unit)) if low < high else ()
    granules = [
        (max(start + granule * unit, address), min(start + (granule + 1) * unit, address + length))
        for granule in seen
        if touched(writes, start + granule * unit, min(unit, size - granule * unit), unit)
    ]
    expected = touched([(first, end - first) for first, end in granules], address, length, 1 << shift)
    assert pages_in(log.take(address, length, 1 << shift)) == expected


def test_random_bits_are_folded_as_if_one_by_one() -> None:
    """Many and few, from a range that begins before or in the log, in pages of each size."""
    draw = random.Random(1)
    for shift, share, before in product(range(13, 33), (0.01, 0.4), (0, 5, -3)):
        granules = [granule for granule in range(1 << 12) if draw.random() < share]
        log = marked(GIB, 16 << 20, [(GIB + granule * GRANULE, 1) for granule in granules])
        places = (granule + before << 12 for granule in granules)
        reported = pages_in(log.take(GIB - before * GRANULE, (16 << 20) + before * GRANULE, 1 << shift))
        assert reported == {place >> shift for place in places if place >= 0}, (shift, share, before)


@for_each_row(
    [(512, GRANULE), (GRANULE, GRANULE), (1 << 16, 1 << 16), (2 << 20, 2 << 20), (GIB, 2 << 20), (1 << 63, 2 << 20)]
)
def test_a_log_is_kept_in_the_pages_that_its_client_asked_for(asked: int, kept: int) -> None:
    """A report in them is a copy, and need not look at what each is made of."""
    log = marked(0, GIB, [(kept - 1, 1), (3 * kept, 1)], asked)
    assert pages_in(log.take(0, GIB, GRANULE)) == {
        page + part for page in (0, 3 * kept // GRANULE) for part in range(kept // GRANULE)
    }


@for_each([1, 63, 64, 65, 129])
def test_a_report_of_all_is_whole_words_and_its_readers_own(granules: int) -> None:
    log = marked(0, granules * GRANULE, [(0, 1)])
    first = log.take(0, granules * GRANULE, GRANULE)
    log.mark((granules - 1) * GRANULE, 1)
    assert (len(first), pages_in(first)) == (bitmap_size(granules * GRANULE, GRANULE), {0})
    assert pages_in(log.take(0, granules * GRANULE, GRANULE)) == {granules - 1}


@for_each(range(17))
def test_a_granule_beside_the_border_of_two_large_pages_is_in_one_of_them(before: int) -> None:
    """Wherever the range begins within a byte of the log's bits, or the log within one of the range's."""
    size, large, shift = 16 << 20, 512 * GRANULE, before * GRANULE
    for page in (1, 2, 5):
        for beside in (-8, -1, 0, 1, 7):
            place = page * large + beside * GRANULE
            late = marked(0, size, [(shift + place, 1)])
            assert pages_in(late.take(shift, size - shift, large)) == {page - (beside < 0)}
            early = marked(shift, size, [(place, 1)])
            assert pages_in(early.take(0, size, large)) == {page - (beside < 0)}


@for_each([0, 1 << 20, (1 << 33) + 1], [30, 40, 46, 61])
def test_large_pages_cost_no_more_than_small_ones(place: int, shift: int) -> None:
    """They took gigabytes, and ten seconds, for one page's bit."""
    log = marked(place * GRANULE, GRANULE, [(place * GRANULE, 1)])
    tracemalloc.start()
    bitmap = log.take(0, 2 << 61, 1 << shift) if shift > 40 else log.take(0, 1 << 46, 1 << shift)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert pages_in(bitmap) == {place * GRANULE >> shift}
    assert peak < 1 << 20


def test_a_range_that_begins_between_pages_is_reported_as_fast_as_any() -> None:
    """Each of a million dirty pages was looked at by itself: a tenth of a second for each GiB."""
    log = marked(0, 64 * GIB, [(0, 64 * GIB)])
    begin = time.process_time()
    bitmap = log.take(1, 64 * GIB - 1, GRANULE)
    assert time.process_time() - begin < 2
    assert bitmap == b"\xff" * (64 * GIB // GRANULE // 8)


def test_a_part_that_was_reported_is_clean_and_nothing_else_is() -> None:
    granules = range(20)
    for low, high in combinations(granules, 2):
        log = marked(0, len(granules) * GRANULE, [(0, len(granules) * GRANULE)])
        log.take(low * GRANULE, (high - low) * GRANULE, GRANULE)
        assert pages_in(log.take(0, len(granules) * GRANULE, GRANULE)) == {*granules} - {*range(low, high)}


def test_a_granule_that_is_reported_in_part_is_reported_again() -> None:
    log = marked(0, 0x4000, [(0x1800, 8)])
    assert pages_in(log.take(0x1000, 0x800, 512)) == {0, 1, 2, 3}
    assert pages_in(log.take(0x1000, 0x1000, 0x1000)) == {0}
    assert pages_in(log.take(0x1000, 0x1000, 0x1000)) == set()


def test_smaller_pages_than_logged_repeat_what_is_known() -> None:
    assert pages_in(marked(0, 0x4000, [(0x1000, 1)]).take(0, 0x4000, 1024)) == {4, 5, 6, 7}


def test_a_region_that_ends_inside_of_a_granule_is_clean_after_a_report() -> None:
    log = marked(0x800, 0x1900, [(0x800, 0x1900)])
    assert pages_in(log.take(0x800, 0x1900, 0x1000)) == {0, 1}
    assert not any(log.take(0x800, 0x1900, 0x1000))


def test_bits_are_in_little_endian_order() -> None:
    assert marked(0, 0x100000, [(9 * GRANULE, 1)]).take(0, 0x100000, GRANULE)[:2] == b"\x00\x02"


@pytest.mark.parametrize("count", [0, -1])
def test_a_write_of_nothing_marks_nothing(count: int) -> None:
    log = marked(0, 0x2000, [(0x1000, count), (0x1234, count)])
    assert not any(log.take(0, 0x2000, GRANULE))


@given(marked_ranges(), st.integers(0, 100), st.integers(0, 100))
def test_a_part_takes_its_marks_along(case: tuple[int, int, list[tuple[int, int]]], low: int, high: int) -> None:
    start, size, writes = case
    first, end = (start + size * min(low, high) // 100 // GRANULE * GRANULE, start + size * max(low, high) // 100)
    if first < end:
        part = marked(start, size, writes).part(first, end - first)
        whole = marked(start, size, writes)
        assert part.take(first, end - first, GRANULE) == whole.take(first, end - first, GRANULE)


def test_a_tebibyte_is_logged_in_bits() -> None:
    log = DirtyPages(0, TIB)
    written = [(0, 1), (TIB - 1, 1), (512 * GIB + 12345, GIB)]
    for write in written:
        log.mark(*write)
    assert pages_in(log.take(0, TIB, GIB)) == touched(written, 0, TIB, GIB)


@for_each([0, -4096, 3, 4095, 4097, 12288])
def test_only_powers_of_two_are_page_sizes(page_size: int) -> None:
    with pytest.raises(ProtocolError):
        check_page_size(page_size)


@for_each([0, 1, 12, 30, 63])
def test_each_power_of_two_is_a_page_size(shift: int) -> None:
    check_page_size(1 << shift)


def switch_after_each_instruction(frame: FrameType, event: str, argument: object) -> TraceFunction | None:
    """Traces threads so that in the log's code another one may run between any two instructions."""
    if frame.f_code.co_filename != dirty_log.__file__:
        return None
    frame.f_trace_opcodes = True
    if event == "opcode":
        time.sleep(0)
    return switch_after_each_instruction


@pytest.fixture
def hostile_scheduler() -> Iterator[None]:
    before = threading.gettrace()  # who measures what tests reach has one of its own
    threading.settrace(switch_after_each_instruction)
    yield
    threading.settrace(before)


@pytest.mark.usefixtures("hostile_scheduler")
@pytest.mark.parametrize("at_once", [1, 2])
def test_no_page_is_lost_that_is_written_while_the_log_is_read(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Writers write and mark pages; a reader copies what is reported, and must have all of it at the end."""
    monkeypatch.setattr(dirty_log, "RECENT", 3)
    pages, writers = 60 * at_once, 3
    memory, copied = [0] * (pages * writers), [0] * (pages * writers)
    log = DirtyPages(0, pages * writers * GRANULE)
    done = threading.Event()

    def write(writer: int) -> None:
        for page in range(writer * 2, pages * writers, writers * 2):  # neighbours in one byte of the bitmap
            memory[page] = memory[page + 1] = page + 1
            for marked_page in range(page, page + 2, at_once):
                log.mark(marked_page * GRANULE, at_once * GRANULE)

    def copy() -> None:
        for page in pages_in(log.take(0, len(memory) * GRANULE, GRANULE)):
            copied[page] = memory[page]

    def read() -> None:
        while not done.is_set():
            copy()

    reader = threading.Thread(target=read)
    threads = [threading.Thread(target=write, args=(writer,)) for writer in range(writers)]
    for thread in [reader, *threads]:
        thread.start()
    for thread in threads:
        thread.join(50)
    done.set()
    reader.join(50)
    copy()
    assert copied == memory
    assert all(memory)


@for_each([1, 100, GRANULE - 1, 0])
def test_the_last_granule_of_memory_of_no_whole_pages_is_clean_once_it_was_reported(rest: int) -> None:
    """Asked for beside others, and alone: what is behind it nobody has."""
    size = 5 * GRANULE + rest
    last = (size - 1) // GRANULE
    for first in (0, 2, last):
        pages = DirtyPages(0, size)
        pages.mark(0, size)
        there = range(first, last + 1)
        asked = (first * GRANULE, size - first * GRANULE, GRANULE)
        assert pages_in(pages.take(*asked)) == {page - first for page in there}
        assert pages_in(pages.take(*asked)) == set()
        assert pages_in(pages.take(0, size, GRANULE)) == set(range(first))
