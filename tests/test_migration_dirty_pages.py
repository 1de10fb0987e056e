"""DIRTY_PAGES and DMA_UNMAP's bitmap, in the layouts of both dialects that have them."""

from __future__ import annotations

import errno
import struct

import pytest

from tests.cases import for_each, for_each_row
from tests.migration_device import Adder, set_state
from userdev.errors import ProtocolError
from vfio_user.migration import Migration
from vfio_user.server.dirty_pages import handle_dirty_pages, take_bitmap, take_bitmaps_v6
from vfio_user.server.gate import check_command
from vfio_user.wire import CURRENT, DRAFT_V6, REGION_MIGRATION, Command, Dialect
from vfio_user.wire.constants import MigrationState

START, STOP, GET = 1, 2, 4
BASE, SIZE = 0x100000, 0x40000
BOTH = pytest.mark.parametrize("dialect", [DRAFT_V6, REGION_MIGRATION], ids=lambda dialect: dialect.name)


def control(flags: int, argsz: int = 8) -> bytes:
    return struct.pack("<II", argsz, flags)


def get(iova: int = BASE, size: int = SIZE, pgsize: int = 4096, bitmap: int = 8, argsz: int | None = None) -> bytes:
    return struct.pack("<IIQQQQ", 40 + bitmap if argsz is None else argsz, GET, iova, size, pgsize, bitmap)


def get_v6(*ranges: tuple[int, int, int, int], skipped: int = 0) -> bytes:
    return control(GET) + bytes(skipped) + b"".join(struct.pack("<QQQQQ", *range_, 0) for range_ in ranges)


def logging(*pages: int, dialect: Dialect = REGION_MIGRATION) -> Migration:
    device = Adder()
    device.dma.map(BASE, SIZE, 3)
    migration = Migration(device)
    assert handle_dirty_pages(migration, control(START), dialect) == b""
    for page in pages:
        device.dma.mark_dirty(BASE + page * 4096, 1)
    return migration


def left(migration: Migration) -> int:
    return int.from_bytes(handle_dirty_pages(migration, get(), REGION_MIGRATION)[40:], "little")


def test_region_migration_answers_with_both_structures_and_the_bitmap() -> None:
    migration = logging(0, 33)
    assert handle_dirty_pages(migration, get(), REGION_MIGRATION) == struct.pack(
        "<IIQQQQQ", 48, GET, BASE, SIZE, 4096, 8, 1 | 1 << 33
    )
    assert left(migration) == 0


@for_each([0, 4, 8], ids=["without data", "data as printed", "data as in the kernel"])
def test_the_draft_answers_each_range_with_its_bitmap(skipped: int) -> None:
    migration = logging(0, 33)
    request = get_v6((BASE, 0x1000, 4096, 8), (BASE + 0x20000, 0x20000, 8192, 8), skipped=skipped)
    assert handle_dirty_pages(migration, request, DRAFT_V6) == struct.pack("<QQQQ", 4096, 8, 0, 1) + struct.pack(
        "<QQQQ", 8192, 8, 0, 1
    )
    assert left(migration) == 0


@for_each([(1 << 20,), (1 << 19, 1 << 19)], ids=["one", "two"])
def test_the_drafts_bitmaps_may_fill_a_message_and_be_no_larger(sizes: tuple[int, ...]) -> None:
    asked = [(BASE + 0x20000 * number, 0x20000, 4096, size) for number, size in enumerate(sizes)]
    assert len(take_bitmaps_v6(logging(0), asked)) == (1 << 20) + 24 * len(sizes)
    migration = logging(0)
    with pytest.raises(ProtocolError):
        take_bitmaps_v6(migration, [(*asked[0][:3], sizes[0] + 1), *asked[1:]])
    assert left(migration) == 1


def test_the_draft_takes_ranges_that_are_next_to_each_other_and_none_that_overlap_by_a_page() -> None:
    first, second = (BASE, 0x20000, 4096, 4), (BASE + 0x20000, 0x20000, 4096, 4)
    for asked in ([first, second], [second, first]):
        migration = logging(31, 32)
        answer = take_bitmaps_v6(migration, asked)
        assert [answer[24:28], answer[52:56]] == [b"\1\0\0\0" if each is second else b"\0\0\0\x80" for each in asked]
        migration = logging(31, 32)
        with pytest.raises(ProtocolError):
            take_bitmaps_v6(migration, [asked[0], (BASE + 0x1F000, 0x2000, 4096, 4), asked[1]])
        assert left(migration) == 1 << 31 | 1 << 32


@for_each_row([(1, b"\x01"), (5, b"\x01\0\0\0\2"), (8, None), (12, None), (4096, None)])
def test_the_drafts_bitmap_has_the_size_that_was_asked_for(size: int, bits: bytes | None) -> None:
    """Its text has no word of words: whatever holds the bits will do, and what is more is zeros."""
    migration = logging(0, 33)
    length = min(8 * size, 64) * 4096 if bits else SIZE
    expected = bits or (1 | 1 << 33).to_bytes(size, "little")
    for answer in (
        handle_dirty_pages(migration, get_v6((BASE, length, 4096, size)), DRAFT_V6),
        take_bitmaps_v6(logging(0, 33), [(BASE, length, 4096, size)]),
    ):
        assert answer == struct.pack("<QQQ", 4096, size, 0) + expected


def test_a_table_with_a_bad_bitmap_request_loses_no_page() -> None:
    migration = logging(5)
    for bad in (
        (BASE, SIZE, 4096, 7),
        (BASE, SIZE, 0, 8),
        (BASE, SIZE, 4096, (1 << 20) - 7),
        (BASE, SIZE, 4096, 1 << 60),
    ):
        with pytest.raises(ProtocolError) as refused:
            take_bitmaps_v6(migration, [(BASE, SIZE, 4096, 8), bad])
        assert refused.value.errno == errno.EINVAL
    assert left(migration) == 1 << 5


@BOTH
def test_the_log_starts_with_the_negotiated_page_size_and_stops(dialect: Dialect) -> None:
    migration = logging(7, dialect=dialect)
    assert migration.device.dma.log_page_size == migration.page_size == 4096
    handle_dirty_pages(migration, control(START), dialect)
    assert left(migration) == 1 << 7
    for _ in range(2):
        assert handle_dirty_pages(migration, control(STOP), dialect) == b""
    assert migration.device.dma.log_page_size == 0


@BOTH
@pytest.mark.parametrize(
    "payload",
    [b"", bytes(7), *(control(flags) for flags in (0, 3, 5, 6, 7, 8, 1 << 31)), control(START, argsz=7)],
)
def test_malformed_controls_are_refused(dialect: Dialect, payload: bytes) -> None:
    migration = logging(5)
    with pytest.raises(ProtocolError) as refused:
        handle_dirty_pages(migration, payload, dialect)
    assert refused.value.errno == errno.EINVAL
    assert left(migration) == 1 << 5


REFUSED = {
    "no range": control(GET),
    "half a range": get()[:39],
    "argsz above a message": get(argsz=(1 << 20) + 1),
    "a bitmap too small": get(bitmap=0),
    "a bitmap that no argsz can say": get(bitmap=(1 << 64) - 1, argsz=48),
    "a bitmap too large": get(bitmap=16),
    "page size 0": get(pgsize=0),
    "page size 4097": get(pgsize=4097),
    "size 0": get(size=0),
    "wrapping": get(iova=(1 << 64) - 0x1000),
}
REFUSED_V6 = {
    "no range": control(GET),
    "half a range": get_v6((BASE, SIZE, 4096, 8))[:-1],
    "12 bytes between": get_v6((BASE, SIZE, 4096, 8), skipped=12),
    "a bitmap too small": get_v6((BASE, SIZE, 4096, 0)),
    "a bitmap too small by a page": get_v6((BASE, 0x9000, 4096, 1)),
    "bitmaps above a message": get_v6((0, 1 << 36, 4096, 1 << 21)),
    "size 0": get_v6((BASE, 0, 4096, 8)),
    "page size 3": get_v6((BASE, SIZE, 3, 8)),
}
ALL_REFUSED = [(REGION_MIGRATION, payload) for payload in REFUSED.values()] + [
    (DRAFT_V6, payload) for payload in REFUSED_V6.values()
]


@for_each_row(ALL_REFUSED, ids=[*REFUSED, *REFUSED_V6])
def test_malformed_requests_lose_no_page(dialect: Dialect, payload: bytes) -> None:
    migration = logging(5)
    with pytest.raises(ProtocolError) as refused:
        handle_dirty_pages(migration, payload, dialect)
    assert refused.value.errno == errno.EINVAL
    assert left(migration) == 1 << 5


BAD_RANGES = {
    "nothing mapped": ((BASE + SIZE, 0x1000, 4096, 8), errno.ENOENT),
    "shorter than its page": ((BASE + 0x20000, 0x1000, 8192, 8), errno.EINVAL),
    "no page size": ((BASE + 0x20000, 0x1000, 3, 8), errno.EINVAL),
    "too little room": ((BASE + 0x20000, 0x20000, 4096, 1), errno.EINVAL),
    "wrapping": (((1 << 64) - 0x1000, 0x2000, 4096, 8), errno.EINVAL),
}


@for_each(BAD_RANGES, [True, False])
def test_a_range_that_is_refused_takes_no_page_of_the_others(bad: str, first: bool) -> None:
    """A client that is refused has no bitmap: what was taken for it would be written and never copied."""
    migration = logging(5)
    range_, number = BAD_RANGES[bad]
    ranges = [range_, (BASE, 0x20000, 4096, 8)] if first else [(BASE, 0x20000, 4096, 8), range_]
    with pytest.raises(ProtocolError) as refused:
        handle_dirty_pages(migration, get_v6(*ranges), DRAFT_V6)
    assert refused.value.errno == number
    assert left(migration) == 1 << 5


@BOTH
def test_a_bitmap_of_what_is_not_mapped_is_enoent(dialect: Dialect) -> None:
    request = get_v6((0, 0x1000, 4096, 8)) if dialect is DRAFT_V6 else get(iova=0, size=0x1000)
    with pytest.raises(ProtocolError) as refused:
        handle_dirty_pages(logging(), request, dialect)
    assert refused.value.errno == errno.ENOENT


@BOTH
def test_a_bitmap_before_start_is_refused(dialect: Dialect) -> None:
    migration = logging()
    handle_dirty_pages(migration, control(STOP), dialect)
    request = get_v6((BASE, SIZE, 4096, 8)) if dialect is DRAFT_V6 else get()
    with pytest.raises(ProtocolError) as refused:
        handle_dirty_pages(migration, request, dialect)
    assert refused.value.errno == errno.EINVAL


def test_too_little_room_is_told_and_loses_no_page() -> None:
    migration = logging(5)
    reply = handle_dirty_pages(migration, get(argsz=20), REGION_MIGRATION)
    assert reply == struct.pack("<II", 48, GET) + bytes(12)
    assert left(migration) == 1 << 5


def test_the_last_bitmap_is_taken_from_a_stopped_device() -> None:
    migration = logging(5)
    for state in (MigrationState.STOP, MigrationState.STOP_COPY):
        set_state(migration, state)
        check_command(migration.state, Command.DIRTY_PAGES)
    assert left(migration) == 1 << 5


def test_unmap_takes_the_bitmap() -> None:
    migration = logging(1, 2)
    assert take_bitmap(migration, BASE, SIZE, 8192, 8) == bytes([3]) + bytes(7)
    assert left(migration) == 0


@for_each_row(
    [
        (BASE, 0, 8, errno.EINVAL),
        (BASE, 4097, 8, errno.EINVAL),
        (BASE, 4096, 0, errno.EINVAL),
        (BASE, 4096, 16, errno.EINVAL),
        (BASE + SIZE, 4096, 8, errno.ENOENT),
    ]
)
def test_unmap_with_a_bad_bitmap_request_loses_no_page(iova: int, pgsize: int, size: int, number: int) -> None:
    migration = logging(5)
    with pytest.raises(ProtocolError) as refused:
        take_bitmap(migration, iova, SIZE, pgsize, size)
    assert refused.value.errno == number
    assert left(migration) == 1 << 5


def test_the_current_dialect_has_no_dirty_pages() -> None:
    assert Command.DIRTY_PAGES not in CURRENT


@for_each([BASE, BASE + 0x1000, BASE + SIZE - 0x1000])
def test_ranges_of_the_draft_that_overlap_are_refused_and_nothing_is_taken(second: int) -> None:
    """Each looks through the log: thirty thousand of the same in one message would do so for minutes."""
    migration = logging(1)
    request = get_v6((second, 0x1000, 4096, 8), (BASE, SIZE, 4096, 8))
    with pytest.raises(ProtocolError, match="overlap") as refused:
        handle_dirty_pages(migration, request, DRAFT_V6)
    assert refused.value.errno == errno.EINVAL
    assert left(migration) == 2


@for_each_row(
    [
        ((BASE, 0x8000, 4096, 1), None),
        ((BASE, 0x9000, 4096, 1), errno.EINVAL),
        ((BASE, 0x8800, 4096, 1), errno.EINVAL),
        ((BASE, 0x9000, 4096, 2), None),
        ((BASE, 0, 4096, 1), errno.EINVAL),
    ],
    ids=["8 pages", "9 pages", "8 pages and a half", "9 pages with room", "no bytes"],
)
def test_a_bitmap_of_the_draft_has_a_bit_for_each_page(range_: tuple[int, int, int, int], number: int | None) -> None:
    migration = logging(8)
    if number is None:
        (taken,) = (handle_dirty_pages(migration, get_v6(range_), DRAFT_V6)[-range_[3] :],)
        assert int.from_bytes(taken, "little") == (1 << 8) & ((1 << range_[1] // 4096) - 1)
        return
    with pytest.raises(ProtocolError) as refused:
        handle_dirty_pages(migration, get_v6(range_), DRAFT_V6)
    assert refused.value.errno == number
    assert left(migration) == 1 << 8
