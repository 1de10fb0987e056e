"""DIRTY_PAGES and the bitmap of DMA_UNMAP, in the dialects with a v1 migration region (docs/protocol.md 6, 9.9)."""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from itertools import pairwise

from userdev.errors import ProtocolError
from userdev.memory.bitmap import bitmap_size
from vfio_user.migration import Migration
from vfio_user.wire import Command, Dialect
from vfio_user.wire.constants import DirtyPagesFlags
from vfio_user.wire.layouts import BITMAP_V6, DIRTY_PAGES, DIRTY_RANGE, DIRTY_RANGE_V6

MAX_REPLY = 1 << 20
"""As libvfio-user: an argsz above is refused, and so are bitmaps above."""

_V6_DATA = (0, 4, 8)
"""Bytes of the unused `data` member before the ranges: absent, as printed, or as in the kernel's structure."""


def handle_dirty_pages(migration: Migration, payload: bytes, dialect: Dialect) -> bytes:
    """Start or stop the log, or report and clear; the reply's payload, none for starting and stopping.

    Raises:
        ProtocolError: EINVAL for malformed requests, flags that are not exactly one, and a bitmap that is asked for
            while no log is kept or has another size than its range needs; ENOENT where nothing is mapped.
    """
    argsz, flags = DIRTY_PAGES.unpack(payload)
    if argsz < DIRTY_PAGES.size or flags not in {*DirtyPagesFlags}:
        raise _refuse(f"argsz {argsz}, flags {flags:#x}")
    if flags == DirtyPagesFlags.START:
        migration.start_log()
        return b""
    if flags == DirtyPagesFlags.STOP:
        migration.stop_log()
        return b""
    if dialect.shapes[Command.DMA_UNMAP].request is None:
        return _get_bitmaps_v6(migration, payload)
    return _get_bitmap(migration, payload, argsz)


def take_bitmap(migration: Migration, iova: int, size: int, pgsize: int, bitmap_bytes: int) -> bytearray:
    """Take the dirty bitmap of a range, which is thereby clean.

    Raises:
        ProtocolError: EINVAL for a page size that is none, another bitmap size than the range needs, or while no log
            is kept; ENOENT where nothing is mapped.
    """
    return bitmap_report(migration, iova, size, pgsize, bitmap_bytes)()


def bitmap_report(
    migration: Migration, iova: int, size: int, pgsize: int, bitmap_bytes: int
) -> Callable[[], bytearray]:
    """What does so when it is called. For DMA_UNMAP: checked before the region is forgotten, and taken after that, as
    its device is told and may write there until then. Raises as `take_bitmap`.
    """
    _check_range(iova, size, pgsize)
    if bitmap_bytes != bitmap_size(size, pgsize):
        raise _misfit(bitmap_bytes, size, pgsize)
    return migration.dirty_report(iova, size, pgsize)


def take_bitmaps_v6(migration: Migration, asked: Sequence[tuple[int, int, int, int]]) -> bytes:
    """The draft's bitmaps of some (iova, size, pgsize, bitmap size), as its replies have them: structures and bits.

    The draft says nothing of words: any size will do that has all the bits, and what is more is zeros. All is checked
    before the first is taken, as who is refused gets no bitmap; raises as `take_bitmap`, and EINVAL for more than a
    message holds and for ranges that overlap: a page is reported once, and the whole log looked through once at most.
    """
    return bitmaps_report_v6(migration, asked)()


def bitmaps_report_v6(migration: Migration, asked: Sequence[tuple[int, int, int, int]]) -> Callable[[], bytes]:
    """What does so when it is called, as `bitmap_report`; raises as `take_bitmaps_v6`."""
    if any(iova < before + size for (before, size, *_), (iova, *_) in pairwise(sorted(asked))):
        raise _refuse("ranges that overlap")
    if sum(bitmap_bytes for *_, bitmap_bytes in asked) > MAX_REPLY:
        raise _refuse("bitmaps larger than a message")
    reports: list[Callable[[], bytearray]] = []
    for iova, size, pgsize, bitmap_bytes in asked:
        _check_range(iova, size, pgsize)
        if bitmap_bytes * 8 < -(-size // pgsize):
            raise _misfit(bitmap_bytes, size, pgsize)
        reports.append(migration.dirty_report(iova, size, pgsize))
    return lambda: b"".join(
        BITMAP_V6.pack(pgsize, bitmap_bytes, 0, tail=report()[:bitmap_bytes].ljust(bitmap_bytes, b"\0"))
        for report, (_, _, pgsize, bitmap_bytes) in zip(reports, asked, strict=True)
    )


def _check_range(iova: int, size: int, pgsize: int) -> None:
    if pgsize <= 0 or pgsize & (pgsize - 1) or size <= 0 or iova + size > 1 << 64:
        raise _refuse(f"{size:#x} bytes at {iova:#x} in pages of {pgsize:#x}")


def _misfit(bitmap_bytes: int, size: int, pgsize: int) -> ProtocolError:
    return _refuse(f"a bitmap of {bitmap_bytes} bytes for {size:#x} bytes in pages of {pgsize:#x}")


def _get_bitmap(migration: Migration, payload: bytes, argsz: int) -> bytes:
    """One range. With less room than needed only `argsz` says something in the reply, and nothing is cleared."""
    asked = DIRTY_RANGE.unpack(payload, DIRTY_PAGES.size)
    if argsz > MAX_REPLY or asked.bitmap_size > MAX_REPLY:
        raise _refuse(f"argsz {argsz} for a bitmap of {asked.bitmap_size} bytes")
    fixed = DIRTY_PAGES.size + DIRTY_RANGE.size
    if argsz < fixed + asked.bitmap_size:
        return DIRTY_PAGES.pack(fixed + asked.bitmap_size, DirtyPagesFlags.GET_BITMAP).ljust(argsz, b"\0")
    bits = take_bitmap(migration, *asked)
    return DIRTY_PAGES.pack(fixed + len(bits), DirtyPagesFlags.GET_BITMAP) + DIRTY_RANGE.pack(*asked, tail=bits)


def _get_bitmaps_v6(migration: Migration, payload: bytes) -> bytes:
    """The draft's ranges; each is answered with its bitmap structure and the bits, as in DMA_UNMAP."""
    ranges = len(payload) - DIRTY_PAGES.size
    skipped = ranges % DIRTY_RANGE_V6.size
    if skipped not in _V6_DATA or ranges < DIRTY_RANGE_V6.size:
        raise _refuse(f"{ranges} bytes are no ranges")
    found = DIRTY_RANGE_V6.unpack_all(payload, DIRTY_PAGES.size + skipped)
    return take_bitmaps_v6(migration, [range_[:4] for range_ in found])


def _refuse(what: str) -> ProtocolError:
    return ProtocolError(f"dirty pages: {what}", errno.EINVAL)
