"""Every kind of write to client memory is in the log of dirty pages; test_dirty_log.py tests the log itself."""

from __future__ import annotations

import errno
from contextlib import nullcontext

import pytest

from tests.cases import for_each, for_each_row
from vfio_user import ProtocolError
from vfio_user.device import DRAFT_V6_POLICY, Dma
from vfio_user.migration.dirty_log import LARGEST_GRANULE, DirtyPages
from vfio_user.testing import RecordingLink, memory_file

RW, FILE_IO = 3, 8
PAGE = 4096


def make(pages: int = 64, iova: int = 0, flags: int = RW) -> Dma:
    dma = Dma()
    dma.map(iova, pages * PAGE, flags, memory_file(pages * PAGE))
    return dma


def dirty(dma: Dma, iova: int, pages: int, page_size: int = PAGE) -> set[int]:
    bits = dma.take_dirty(iova, pages * page_size, page_size)
    assert len(bits) == -(-pages // 64) * 8
    number = int.from_bytes(bits, "little")
    return {page for page in range(len(bits) * 8) if number >> page & 1}


def test_every_kind_of_write_is_logged() -> None:
    dma = make()
    dma.start_log(PAGE)
    dma.write(PAGE, b"x")
    dma.write(3 * PAGE - 1, b"xy")
    dma.write_u32(9 * PAGE, 1)
    dma.write(20 * PAGE, bytes(3 * PAGE))
    dma.views(30 * PAGE, 2 * PAGE, write=True)
    dma.mark_dirty(63 * PAGE, 1)
    dma.read(50 * PAGE, PAGE)
    dma.views(51 * PAGE, 10)
    assert dirty(dma, 0, 64) == {1, 2, 3, 9, 20, 21, 22, 30, 31, 63}
    dma.unmap_all()


def test_what_is_reported_is_forgotten() -> None:
    dma = make()
    dma.start_log(PAGE)
    dma.write(5 * PAGE, b"x")
    dma.write(40 * PAGE, b"x")
    assert dirty(dma, 0, 10) == {5}
    assert dirty(dma, 0, 64) == {40}
    assert dirty(dma, 0, 64) == set()
    dma.unmap_all()


def test_a_view_that_is_written_until_its_end_is_logged_until_its_end_however_it_ends() -> None:
    for error in (None, ValueError, KeyboardInterrupt):
        dma = make()
        dma.start_log(PAGE)
        with pytest.raises(error) if error else nullcontext(), dma.views(7 * PAGE, 8, write=True) as views:
            assert dirty(dma, 0, 64) == {7}
            views[0][0] = 1
            if error:
                raise error
        assert dirty(dma, 0, 64) == {7}
        with pytest.raises(ValueError, match="released"):
            views[0][0]
        dma.unmap_all()


def test_nothing_is_logged_before_and_after() -> None:
    dma = make()
    dma.write(0, b"x")
    dma.start_log(PAGE)
    assert dirty(dma, 0, 64) == set()
    dma.write(0, b"x")
    dma.stop_log()
    with pytest.raises(ProtocolError) as refusal:
        dma.take_dirty(0, PAGE, PAGE)
    assert refusal.value.errno == errno.EINVAL
    dma.start_log(PAGE)
    assert dirty(dma, 0, 64) == set()
    dma.unmap_all()


def test_regions_that_come_while_logging_are_logged() -> None:
    dma = make()
    dma.start_log(PAGE)
    dma.map(0x100000, 4 * PAGE, RW, memory_file(4 * PAGE))
    dma.write(0x100000 + PAGE, b"x")
    assert dirty(dma, 0x100000, 4) == {1}
    dma.unmap_all()


def test_a_range_over_several_regions_is_reported_as_one() -> None:
    dma = Dma()
    for page in range(8):
        dma.map(page * PAGE, PAGE, RW, memory_file(PAGE))
    dma.start_log(PAGE)
    dma.write(2 * PAGE - 1, b"xy")
    dma.write(6 * PAGE, b"x")
    assert dirty(dma, PAGE, 7) == {0, 1, 5}
    dma.unmap_all()


def test_a_write_over_several_regions_marks_each_of_them() -> None:
    dma = Dma()
    for page in range(4):
        dma.map(page * PAGE, PAGE, RW, memory_file(PAGE))
    dma.start_log(PAGE)
    for write in (
        lambda: dma.mark_dirty(PAGE // 2, 2 * PAGE),
        lambda: dma.write(PAGE // 2, bytes(2 * PAGE)),
        lambda: dma.views(PAGE // 2, 2 * PAGE, write=True),
        lambda: dma.gather([(PAGE // 2, 2 * PAGE)], write=True),
    ):
        write()
        assert dirty(dma, 0, 4) == {0, 1, 2}
    with dma.views(PAGE // 2, 2 * PAGE, write=True):
        dirty(dma, 0, 4)
    assert dirty(dma, 0, 4) == {0, 1, 2}
    dma.unmap_all()


def test_each_range_that_is_gathered_to_be_written_is_marked() -> None:
    """Also those that are in the region used last, of which nothing more is asked."""
    dma = make()
    dma.start_log(PAGE)
    dma.read(0, 8)
    dma.gather([(page * PAGE, 8) for page in (2, 5, 9)])
    assert dirty(dma, 0, 64) == set()
    dma.gather([(page * PAGE, 8) for page in (2, 5, 9)], write=True)
    assert dirty(dma, 0, 64) == {2, 5, 9}
    dma.unmap_all()


def test_nothing_is_kept_of_a_log_that_has_ended() -> None:
    dma = make(flags=RW)
    dma.map(0x100000, PAGE, RW)
    dma.start_log(PAGE)
    dma.stop_log()
    assert not any(region.dirty for region in dma.regions)
    dma.unmap_all()


def test_memory_that_comes_and_goes_is_counted_as_long_as_it_is_there() -> None:
    dma = Dma()
    dma.start_log(2 << 20)
    for _ in range(3):
        dma.map(0, 8 << 40, RW)
        dma.map(1 << 43, 8 << 40, RW)
        dma.unmap(0, 8 << 40)
        dma.unmap_all()


def test_memory_in_file_mode_and_in_message_mode_is_logged_too() -> None:
    dma = make(flags=RW | FILE_IO)
    dma.link = RecordingLink(base=0x100000)
    dma.map(0x100000, 4 * PAGE, RW)
    dma.start_log(PAGE)
    dma.write(3 * PAGE, b"x")
    dma.write(0x100000, b"x")
    assert dirty(dma, 0, 64) == {3}
    assert dirty(dma, 0x100000, 4) == {0}
    dma.unmap_all()


@for_each_row(
    [
        (0, PAGE, 3000, errno.EINVAL),
        (0, PAGE, 0, errno.EINVAL),
        (0, 0, PAGE, errno.EINVAL),
        (0, PAGE - 1, PAGE, errno.EINVAL),
        (0x10000000, PAGE, PAGE, errno.ENOENT),
    ]
)
def test_wrong_reports_are_refused(iova: int, length: int, page_size: int, expected: int) -> None:
    dma = make()
    dma.start_log(PAGE)
    dma.write(63 * PAGE, b"x")
    with pytest.raises(ProtocolError) as refusal:
        dma.take_dirty(iova, length, page_size)
    assert refusal.value.errno == expected
    assert dirty(dma, 0, 64) == {63}
    dma.unmap_all()


def test_the_page_size_of_a_running_log_stays() -> None:
    dma = make()
    dma.start_log(PAGE)
    dma.start_log(PAGE)
    for wrong in (2 * PAGE, 0, 3000):
        with pytest.raises(ProtocolError):
            dma.start_log(wrong)
    assert dma.log_page_size == PAGE
    dma.unmap_all()


def test_smaller_pages_repeat_and_larger_pages_combine_what_was_logged() -> None:
    dma = make()
    dma.start_log(PAGE)
    dma.write(3 * PAGE, b"x")
    assert dirty(dma, 2 * PAGE, 8, PAGE // 4) == {4, 5, 6, 7}
    dma.write(3 * PAGE, b"x")
    dma.write(9 * PAGE, b"x")
    assert dirty(dma, 0, 4, 4 * PAGE) == {0, 2}
    assert dirty(dma, 0, 64) == set()
    dma.unmap_all()


def test_a_page_reported_only_in_part_stays_dirty() -> None:
    dma = make()
    dma.start_log(PAGE)
    dma.write(PAGE, b"x")
    assert dirty(dma, PAGE, 1, 1024) == {0}
    assert dirty(dma, 0, 64) == {1}
    dma.unmap_all()


def test_cutting_a_region_keeps_the_marks_of_what_is_left() -> None:
    dma = make()
    dma.policy = DRAFT_V6_POLICY
    dma.start_log(PAGE)
    for page in (1, 5, 9):
        dma.write(page * PAGE, b"x")
    dma.unmap(4 * PAGE, 4 * PAGE)
    assert dirty(dma, 0, 4) == {1}
    assert dirty(dma, 8 * PAGE, 8) == {1}
    dma.unmap_all()


def huge(regions: int) -> Dma:
    """Maps so many times 8 TiB that are served by messages, which takes no memory."""
    dma = Dma()
    for number in range(regions):
        dma.map(number << 43, 8 << 40, RW)
    return dma


def test_a_log_that_would_take_all_memory_is_refused_and_not_kept() -> None:
    """48 TiB in six messages took 1.6 GiB."""
    dma = huge(6)
    for _ in range(2):
        with pytest.raises(ProtocolError, match="16 TiB") as refusal:
            dma.start_log(PAGE)
        assert refusal.value.errno == errno.ENOMEM
    assert not dma.log_page_size
    assert not any(region.dirty for region in dma.regions)


def test_memory_that_cannot_be_logged_any_more_is_not_mapped() -> None:
    """However few bits it would take."""
    dma = make()
    dma.start_log(LARGEST_GRANULE)
    dma.map(1 << 43, 8 << 40, RW)
    with pytest.raises(ProtocolError) as refusal:
        dma.map(2 << 43, 8 << 40, RW)
    assert refusal.value.errno == errno.ENOMEM
    assert len(dma) == 2
    dma.unmap(1 << 43, 8 << 40)
    dma.map(2 << 43, 8 << 40, RW)
    dma.unmap_all()


def test_without_memory_for_its_bits_no_log_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """A START that failed half way was a success the second time, and had no log for some of the memory."""
    dma = huge(2)
    made: list[int] = []

    def second_fails(start: int, size: int, page_size: int) -> DirtyPages:
        made.append(start)
        if len(made) == 2:
            raise MemoryError
        return DirtyPages(0, page_size)

    monkeypatch.setattr("vfio_user.device.dma_map.DirtyPages", second_fails)
    with pytest.raises(ProtocolError) as refusal:
        dma.start_log(PAGE)
    assert refusal.value.errno == errno.ENOMEM
    assert not dma.log_page_size
    assert not any(region.dirty for region in dma.regions)
    dma.start_log(PAGE)
    assert all(region.dirty for region in dma.regions)


def test_a_guest_of_a_tebibyte_is_logged() -> None:
    dma = Dma()
    dma.map(0, 1 << 40, RW)
    dma.start_log(PAGE)
    dma.mark_dirty((1 << 40) - 1, 1)
    assert dma.take_dirty(0, 1 << 40, PAGE)[-1] == 0x80


@for_each([PAGE, 2 * PAGE, 4 * PAGE])
def test_cutting_a_region_keeps_the_marks_in_the_pages_that_were_asked_for(page_size: int) -> None:
    dma = make()
    dma.policy = DRAFT_V6_POLICY
    dma.start_log(page_size)
    for page in (0, 33, 63):
        dma.write(page * PAGE, b"x")
    dma.unmap(16 * PAGE, 16 * PAGE)
    dma.write(48 * PAGE, b"x")
    step = page_size // PAGE
    assert dirty(dma, 0, 16 // step, page_size) == {0}
    assert dirty(dma, 32 * PAGE, 32 // step, page_size) == {page // step for page in (1, 16, 31)}
    dma.unmap_all()
