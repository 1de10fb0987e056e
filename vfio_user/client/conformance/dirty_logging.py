"""Dirty logging as a device feature: what the device wrote, asked for range by range."""

from __future__ import annotations

import errno
from collections.abc import Callable

from userdev.conformance.check import Group, Level, Skip, require
from userdev.memory.bitmap import bitmap_size
from vfio_user.client.conformance.bench import UNUSED_IOVA, Bench
from vfio_user.client.conformance.dialects import MESSAGES
from vfio_user.client.conformance.dma import LOOKED_AT
from vfio_user.client.conformance.features import GET, SET, SET_LOOKED_AT, container
from vfio_user.client.conformance.refusals import Bad, enter
from vfio_user.wire import Command
from vfio_user.wire.constants import Feature
from vfio_user.wire.layouts import FEATURE, LOGGING_CONTROL, LOGGING_RANGE, LOGGING_REPORT

dirty_logging = Group[Bench](
    "dirty_logging",
    "protocol.md 10.4: DMA_LOGGING_REPORT",
    dialects=MESSAGES,
    needs=("dma_map/map-and-unmap", *LOOKED_AT, *SET_LOOKED_AT, "dirty_logging/clean-at-first"),
)

BASE = 0x10_0000
SIZE = 0x1_0000
PAGE = 0x1000


def _start(page_size: int, ranges: int = 0, tail: bytes = b"") -> bytes:
    return container(Feature.DMA_LOGGING_START | SET, LOGGING_CONTROL.pack(page_size, ranges, 0, tail=tail))


def _report(iova: int, length: int, page_size: int, *, argsz: int | None = None) -> bytes:
    bits = bitmap_size(length, page_size) if page_size else 8
    room = FEATURE.size + LOGGING_REPORT.size + bits
    request = LOGGING_REPORT.pack(iova, length, page_size)
    return container(Feature.DMA_LOGGING_REPORT | GET, request, argsz=room if argsz is None else argsz)


def _need_logging(bench: Bench) -> None:
    bench.need_migration()
    bench.need_dma()
    if not bench.client.has_feature(Feature.DMA_LOGGING_START):
        raise Skip("the device does not log what it writes")


def _logging(bench: Bench) -> Callable[[], None]:
    """A range is mapped and logged; afterwards the log can still be read."""
    client = bench.client
    bench.need_fds()
    client.dma_map(BASE, bench.memory(SIZE))
    client.start_logging(PAGE)

    def check() -> None:
        client.report_logging(BASE, SIZE, PAGE)
        client.stop_logging()

    return check


@dirty_logging.check("clean-at-first")
def clean_at_first(bench: Bench) -> None:
    """A range that the device did not touch is reported without dirty pages."""
    _need_logging(bench)
    bench.need_fds()
    client = bench.client
    client.dma_map(BASE, bench.memory(SIZE))
    client.start_logging(PAGE)
    try:
        dirty = client.report_logging(BASE, SIZE, PAGE).pages()
        require(not dirty, f"{len(dirty)} pages are dirty that nobody wrote")
        client.report_logging(BASE, SIZE // 2, PAGE)
    finally:
        client.stop_logging()


@dirty_logging.check("start-twice", level=Level.REFERENCE, rule="protocol.md 10.1: LOGGING_START")
def start_twice(bench: Bench) -> None:
    """Starting again with the same page size succeeds; with another it is refused with EINVAL."""
    _need_logging(bench)
    bench.client.start_logging(PAGE)
    try:
        bench.client.start_logging(PAGE)
        reply = bench.ask(Command.DEVICE_FEATURE, _start(2 * PAGE))
        bench.refused(reply, (errno.EINVAL,), "starting again with another page size")
    finally:
        bench.client.stop_logging()


@dirty_logging.check("stop-twice", level=Level.REFERENCE, rule="protocol.md 10.1: LOGGING_STOP when off")
def stop_twice(bench: Bench) -> None:
    """Stopping what was not started succeeds."""
    _need_logging(bench)
    bench.client.stop_logging()
    bench.client.stop_logging()


@dirty_logging.check("unmap-with-bitmap", level=Level.REFERENCE, rule="protocol.md 6: GET_DIRTY_BITMAP")
def unmap_with_bitmap(bench: Bench) -> None:
    """A range is unmapped with its bitmap while logging is on."""
    _need_logging(bench)
    bench.need_fds()
    client = bench.client
    client.dma_map(BASE, bench.memory(SIZE))
    client.start_logging(PAGE)
    try:
        found = client.dma_unmap(BASE, SIZE, page_size=PAGE)
        require(found is not None and not found.pages(), "pages are dirty that nobody wrote")
    finally:
        client.stop_logging()


@dirty_logging.check("off", level=Level.REFERENCE)
def report_when_off(bench: Bench) -> None:
    """A report while nothing is logged is refused with EINVAL."""
    _need_logging(bench)
    bench.need_fds()
    bench.client.dma_map(BASE, bench.memory(SIZE))
    reply = bench.ask(Command.DEVICE_FEATURE, _report(BASE, SIZE, PAGE))
    bench.refused(reply, (errno.EINVAL,), "a report while nothing is logged")


enter(
    dirty_logging,
    Command.DEVICE_FEATURE,
    [
        Bad("start-page-size-0", "starting with page size 0", _start(0)),
        Bad(
            "start-ranges-missing",
            "starting with a range announced and less sent",
            _start(PAGE, ranges=1, tail=bytes(LOGGING_RANGE.size - 1)),
            rule="protocol.md 10.1: LOGGING_START",
        ),
        Bad(
            "start-too-short",
            "starting with half a structure",
            container(Feature.DMA_LOGGING_START | SET, LOGGING_CONTROL.pack(PAGE, 0, 0)[:-1]),
        ),
    ],
    need=_need_logging,
)
enter(
    dirty_logging,
    Command.DEVICE_FEATURE,
    [
        Bad("report-unmapped", "a report of what is not mapped", _report(UNUSED_IOVA, SIZE, PAGE), (errno.ENOENT,)),
        Bad("report-page-size-0", "a report with page size 0", _report(BASE, SIZE, 0)),
        Bad("report-page-size-odd", "a report with a page size of 4095", _report(BASE, SIZE, 4095)),
        Bad("report-length-0", "a report of no pages", _report(BASE, 0, PAGE)),
        Bad("report-argsz", "a report with too little room", _report(BASE, SIZE, PAGE, argsz=39)),
        Bad(
            "report-too-short",
            "a report with half a range",
            container(Feature.DMA_LOGGING_REPORT | GET, LOGGING_REPORT.pack(BASE, SIZE, PAGE)[:-1], argsz=64),
        ),
    ],
    need=_need_logging,
    keep=_logging,
)
