"""The v1 migration region and DIRTY_PAGES: migration as the draft and the forks of 2022 have it."""

from __future__ import annotations

import errno
from collections import deque

from userdev.conformance.check import Group, Level, require
from userdev.memory.bitmap import bitmap_size
from vfio_user.client.conformance.access import WRITTEN
from vfio_user.client.conformance.bench import UNUSED_IOVA, Bench
from vfio_user.client.conformance.dialects import DRAFT, REGION
from vfio_user.client.conformance.dma import LOOKED_AT
from vfio_user.client.conformance.refusals import Bad, enter
from vfio_user.client.migration_region import (
    DATA_OFFSET,
    DATA_SIZE,
    DEVICE_STATE,
    PENDING_BYTES,
    PRE_COPY,
    RESERVED,
    RESUMING,
    RUNNING,
    STOP_AND_COPY,
    STOPPED,
    MigrationRegisters,
)
from vfio_user.wire import Command, Message
from vfio_user.wire.constants import DirtyPagesFlags
from vfio_user.wire.layouts import DIRTY_PAGES, DIRTY_RANGE, DIRTY_RANGE_V6, REGION_ACCESS

migration_region = Group[Bench](
    "migration_region", "spec: VFIO Device Migration Info; protocol.md 10.5", dialects=REGION
)
dirty_pages = Group[Bench](
    "dirty_pages",
    "protocol.md 9.9: DIRTY_PAGES",
    dialects=REGION,
    needs=("dma_map/map-and-unmap", *LOOKED_AT, "dirty_pages/clean-at-first"),
)

_NAMES = {
    STOPPED: "stopped",
    RUNNING: "running",
    STOP_AND_COPY: "stop-and-copy",
    PRE_COPY: "pre-copy",
    RESUMING: "resuming",
}

_INVALID = (RESUMING | RUNNING, RESUMING | PRE_COPY)


def _region(bench: Bench) -> MigrationRegisters:
    bench.need_migration_region()
    return MigrationRegisters(bench.client)


def _write(bench: Bench, region: MigrationRegisters, offset: int, value: int, width: int) -> Message:
    data = value.to_bytes(width, "little")
    return bench.ask(Command.REGION_WRITE, REGION_ACCESS.pack(offset, region.index, width, tail=data))


def _running(region: MigrationRegisters) -> None:
    if region.state != RUNNING:
        region.state = RUNNING


@migration_region.check("running-at-first")
def running_at_first(bench: Bench) -> None:
    """A device that nobody has migrated is running."""
    region = _region(bench)
    require(region.state == RUNNING, f"the state is {region.state}")


@migration_region.check("arcs", needs=WRITTEN)
def arcs(bench: Bench) -> None:
    """The transitions that the draft allows and that lead back to running are allowed; what is saved is read first."""
    region = _region(bench)
    try:
        for path in (
            (STOP_AND_COPY, STOPPED, RUNNING),
            (PRE_COPY, STOP_AND_COPY, STOPPED, RUNNING),
            (STOPPED, RUNNING),
        ):
            for state in path:
                region.state = state
                if state == STOP_AND_COPY:
                    deque(region.pieces(), maxlen=0)
                require(region.state == state, f"the state is {region.state} instead of {_NAMES[state]}")
    finally:
        _running(region)


@migration_region.check("invalid-states", needs=("migration_region/arcs",))
def invalid_states(bench: Bench) -> None:
    """States that the draft calls invalid are refused and the state stays."""
    region = _region(bench)
    for value in _INVALID:
        bench.refused(_write(bench, region, DEVICE_STATE, value, 4), (errno.EINVAL,), f"state {value}")
        require(region.state == RUNNING, f"the state changed after {value} was refused")


@migration_region.check("read-only-registers", level=Level.REFERENCE, needs=("migration_region/arcs",))
def read_only_registers(bench: Bench) -> None:
    """pending_bytes and data_offset cannot be written."""
    region = _region(bench)
    for name, offset in (("pending_bytes", PENDING_BYTES), ("data_offset", DATA_OFFSET)):
        bench.refused(_write(bench, region, offset, 1, 8), (errno.EINVAL,), f"a write of {name}")


@migration_region.check("register-widths", level=Level.REFERENCE)
def register_widths(bench: Bench) -> None:
    """A register is accessed whole, at its own offset."""
    region = _region(bench)
    for offset, width in ((DEVICE_STATE, 1), (DEVICE_STATE + 2, 2), (PENDING_BYTES, 1), (DATA_SIZE + 1, 2)):
        reply = bench.ask(Command.REGION_READ, REGION_ACCESS.pack(offset, region.index, width))
        bench.refused(reply, (errno.EINVAL,), f"a read of {width} bytes at {offset}")


@migration_region.check("reserved", dialects=DRAFT, rule="spec: VFIO Device Migration Info, reserved")
def reserved(bench: Bench) -> None:
    """Accesses to the reserved bytes are answered, and nothing is done."""
    region = _region(bench)
    bench.good(_write(bench, region, RESERVED, 0xFFFF_FFFF, 4), "a write of what is reserved")
    bench.good(bench.ask(Command.REGION_READ, REGION_ACCESS.pack(RESERVED, region.index, 4)), "a read of that")
    require(region.state == RUNNING, f"the state is {region.state} after a write of what is reserved")


@migration_region.check(
    "pending-again", rule="spec: VFIO Device Migration Info, pending_bytes", needs=("migration_region/arcs",)
)
def pending_again(bench: Bench) -> None:
    """Reading pending_bytes again changes nothing."""
    region = _region(bench)
    try:
        region.state = STOP_AND_COPY
        found = [region.pending_bytes for _ in range(3)]
        deque(region.pieces(), maxlen=0)
        region.state = STOPPED
    finally:
        _running(region)
    require(len({*found}) == 1, f"pending_bytes reads {', '.join(map(str, found))}")


@migration_region.check("round-trip", needs=("migration_region/arcs",))
def round_trip(bench: Bench) -> None:
    """A state that was saved piece by piece can be loaded, and the device then runs and looks as before."""
    region = _region(bench)
    before = bench.snapshot()
    try:
        pieces = region.save()
        require(pieces, "a device without any state")
        require(region.pending_bytes == 0, "bytes are pending behind the end")
        region.state = STOPPED
        region.state = RUNNING
        region.load(pieces)
    finally:
        _running(region)
    bench.unchanged(before, "a migration to itself")


# dirty pages

BASE = 0x10_0000
SIZE = 0x1_0000
PAGE = 0x1000


def _need(bench: Bench) -> None:
    bench.need_migration_region()
    bench.need_dma()


def _request(flags: int, tail: bytes = b"", *, argsz: int = DIRTY_PAGES.size) -> bytes:
    return DIRTY_PAGES.pack(argsz, flags, tail=tail)


def _get(bench: Bench, iova: int, size: int, page_size: int, *, bits: int | None = None) -> bytes:
    bits = (bitmap_size(size, page_size) if page_size else 8) if bits is None else bits
    if bench.client.dma_tables:
        tail = DIRTY_RANGE_V6.pack(iova, size, page_size, bits, 0)
        return _request(DirtyPagesFlags.GET_BITMAP, tail, argsz=DIRTY_PAGES.size + len(tail))
    tail = DIRTY_RANGE.pack(iova, size, page_size, bits)
    return _request(DirtyPagesFlags.GET_BITMAP, tail, argsz=DIRTY_PAGES.size + len(tail) + bits)


@dirty_pages.check("clean-at-first")
def clean_at_first(bench: Bench) -> None:
    """A range that the device did not touch has no dirty pages."""
    _need(bench)
    bench.need_fds()
    client = bench.client
    client.dma_map(BASE, bench.memory(SIZE))
    client.start_dirty_pages()
    try:
        dirty = client.dirty_pages(BASE, SIZE, PAGE).pages()
        require(not dirty, f"{len(dirty)} pages are dirty that nobody wrote")
        found = client.dma_unmap(BASE, SIZE, page_size=PAGE)
        require(found is not None and not found.pages(), "pages are dirty that nobody wrote")
    finally:
        client.stop_dirty_pages()


@dirty_pages.check("start-and-stop-twice", level=Level.REFERENCE)
def start_and_stop_twice(bench: Bench) -> None:
    """Starting what is on and stopping what is off succeeds."""
    _need(bench)
    for _ in range(2):
        bench.client.start_dirty_pages()
    for _ in range(2):
        bench.client.stop_dirty_pages()


@dirty_pages.check("off", level=Level.REFERENCE)
def get_when_off(bench: Bench) -> None:
    """A bitmap of what is not logged is refused with EINVAL."""
    _need(bench)
    bench.need_fds()
    bench.client.dma_map(BASE, bench.memory(SIZE))
    reply = bench.ask(Command.DIRTY_PAGES, _get(bench, BASE, SIZE, PAGE))
    bench.refused(reply, (errno.EINVAL,), "a bitmap while nothing is logged")


_NO_BITMAP = (errno.ENOENT, errno.EINVAL, errno.ENOTSUP)
"""libvfio-user of 2022 has ENOTSUP for every range that is not exactly one that was mapped, 2023's ENOENT."""

enter(
    dirty_pages,
    Command.DIRTY_PAGES,
    [
        Bad("payload-too-short", "a request of 7 bytes", _request(1)[:-1]),
        Bad("argsz-too-small", "argsz 7", _request(1, argsz=7)),
        Bad("no-flag", "no flag", _request(0)),
        Bad("two-flags", "START and STOP at once", _request(3)),
        Bad("unknown-flag", "an unknown flag", _request(8)),
        Bad("get-too-short", "GET_BITMAP without a range", _request(4, argsz=48)),
        Bad("unmapped", "a bitmap of what is not mapped", lambda b: _get(b, UNUSED_IOVA, SIZE, PAGE), _NO_BITMAP),
        Bad("page-size-0", "a bitmap with page size 0", lambda b: _get(b, BASE, SIZE, 0), _NO_BITMAP),
    ],
    need=_need,
)
