"""Servers that are off by one: a bound of the protocol that is one further, or one nearer, for those that it has.

Not here, as no client can tell: the most that an access may have, of a device whose regions are smaller; the last byte
of config space, which a server may refuse to have written; the size of a message, which may be somewhat longer.
"""

from __future__ import annotations

import errno
from typing import Any, NamedTuple

from tests.clauses.clause import Clause
from tests.clauses.faults import Refuses, Takes, When
from tests.clauses.requests import begins, of_feature, sized
from userdev.layout import Layout
from vfio_user.wire import Command
from vfio_user.wire.constants import Feature, FeatureFlags, RegionIndex
from vfio_user.wire.layouts import (
    DEVICE_STATE,
    DMA_MAP,
    DMA_UNMAP,
    FEATURE,
    IRQ_INFO,
    IRQ_SET,
    LOGGING_CONTROL,
    LOGGING_RANGE,
    LOGGING_REPORT,
    REGION_ACCESS,
    REGION_INFO,
    WRITE_MULTI,
    WRITE_MULTI_ENTRY,
)

CONFIG_SIZE, REGIONS, IRQ_TYPES, VECTORS = 4096, 10, 5, 8
"""What the device has that is described."""

MIB = 1 << 20
C = Command


def says(layout: Layout[Any], at: int = 0, **wanted: int) -> When:
    """A request that has these fields."""

    def when(request: bytes) -> bool:
        if len(request) < at + layout.size:
            return False
        asked = layout.unpack(request, at)
        return all(getattr(asked, name) == value for name, value in wanted.items())

    return when


def vectors_to(end: int) -> When:
    """SET_IRQS of a range that begins at a vector and ends here."""

    def when(request: bytes) -> bool:
        asked = IRQ_SET.unpack(request) if len(request) >= IRQ_SET.size else None
        return asked is not None and asked.start < VECTORS and asked.start + asked.nr_vectors == end

    return when


def accesses_to(end: int) -> When:
    """An access that begins in config space and ends here."""

    def when(request: bytes) -> bool:
        asked = REGION_ACCESS.unpack(request) if len(request) >= REGION_ACCESS.size else None
        if asked is None or asked.region != RegionIndex.CONFIG:
            return False
        return asked.offset < CONFIG_SIZE and asked.offset + asked.length == end

    return when


def writes_among_many_to(end: int) -> When:
    return lambda request: accesses_to(end)(request[WRITE_MULTI.size :])


def both(*whens: When) -> When:
    return lambda request: all(when(request) for when in whens)


class Bound(NamedTuple):
    """A request at the edge, and the check that has to find who takes it for one on the other side."""

    id: str
    command: Command
    request: When


STATE, START, REPORT = Feature.MIG_DEVICE_STATE, Feature.DMA_LOGGING_START, Feature.DMA_LOGGING_REPORT
SET, GET, PROBE = FeatureFlags.SET, FeatureFlags.GET, FeatureFlags.PROBE

BEHIND = [
    *(
        Bound(f"{group}/payload-too-short", command, sized(layout.size - 1))
        for group, command, layout in (
            ("region_info", C.GET_REGION_INFO, REGION_INFO),
            ("irq_info", C.GET_IRQ_INFO, IRQ_INFO),
            ("set_irqs", C.SET_IRQS, IRQ_SET),
            ("region_read", C.REGION_READ, REGION_ACCESS),
            ("region_write", C.REGION_WRITE, REGION_ACCESS),
            ("write_multi", C.REGION_WRITE_MULTI, WRITE_MULTI),
            ("dma_map", C.DMA_MAP, DMA_MAP),
            ("dma_unmap", C.DMA_UNMAP, DMA_UNMAP),
            ("feature", C.DEVICE_FEATURE, FEATURE),
        )
    ),
    *(
        Bound(f"{group}/argsz-too-small", command, begins(size - 1))
        for group, command, size in (
            ("info", C.GET_INFO, 16),
            ("region_info", C.GET_REGION_INFO, 32),
            ("io_fds", C.GET_REGION_IO_FDS, 16),
            ("irq_info", C.GET_IRQ_INFO, 16),
            ("set_irqs", C.SET_IRQS, 20),
            ("dma_map", C.DMA_MAP, 32),
            ("dma_unmap", C.DMA_UNMAP, 24),
        )
    ),
    *(
        Bound(f"{group}/argsz-too-large", command, begins(MIB + 1))
        for group, command in (("io_fds", C.GET_REGION_IO_FDS), ("dma_unmap", C.DMA_UNMAP))
    ),
    Bound("region_info/index-behind-last", C.GET_REGION_INFO, says(REGION_INFO, region=REGIONS)),
    Bound("irq_info/index-behind-last", C.GET_IRQ_INFO, says(IRQ_INFO, irq=IRQ_TYPES)),
    Bound("set_irqs/index-behind-last", C.SET_IRQS, says(IRQ_SET, irq=IRQ_TYPES)),
    Bound("set_irqs/start-behind-last", C.SET_IRQS, says(IRQ_SET, start=VECTORS)),
    Bound("set_irqs/count-too-large", C.SET_IRQS, vectors_to(VECTORS + 1)),
    Bound("set_irqs/over-the-last", C.SET_IRQS, vectors_to(VECTORS + 1)),
    Bound("set_irqs/bools-missing", C.SET_IRQS, both(says(IRQ_SET, nr_vectors=2), sized(IRQ_SET.size + 1))),
    Bound("set_irqs/bools-too-many", C.SET_IRQS, both(says(IRQ_SET, nr_vectors=1), sized(IRQ_SET.size + 2))),
    Bound("region_read/region-behind-last", C.REGION_READ, says(REGION_ACCESS, region=REGIONS)),
    Bound("region_read/at-the-end", C.REGION_READ, says(REGION_ACCESS, offset=CONFIG_SIZE)),
    Bound("region_read/over-the-end", C.REGION_READ, accesses_to(CONFIG_SIZE + 1)),
    Bound("region_write/region-behind-last", C.REGION_WRITE, says(REGION_ACCESS, region=REGIONS)),
    Bound("region_write/at-the-end", C.REGION_WRITE, says(REGION_ACCESS, offset=CONFIG_SIZE)),
    Bound("region_write/over-the-end", C.REGION_WRITE, accesses_to(CONFIG_SIZE + 1)),
    Bound("region_write/data-missing", C.REGION_WRITE, both(says(REGION_ACCESS, length=2), sized(17))),
    Bound("region_write/data-too-long", C.REGION_WRITE, both(says(REGION_ACCESS, length=1), sized(18))),
    Bound("write_multi/over-the-end", C.REGION_WRITE_MULTI, writes_among_many_to(CONFIG_SIZE + 1)),
    Bound("write_multi/nine-bytes", C.REGION_WRITE_MULTI, says(REGION_ACCESS, WRITE_MULTI.size, length=9)),
    Bound("write_multi/entry-cut", C.REGION_WRITE_MULTI, sized(WRITE_MULTI.size + WRITE_MULTI_ENTRY.size - 1)),
    Bound("dma_map/too-large", C.DMA_MAP, says(DMA_MAP, size=(8 << 40) + 0x1000)),
    Bound("dma_unmap/bitmap-argsz", C.DMA_UNMAP, begins(47)),
    Bound("feature/get-argsz", C.DEVICE_FEATURE, both(begins(15), of_feature(Feature.MIGRATION, GET))),
    Bound("feature/get-state-argsz", C.DEVICE_FEATURE, both(begins(15), of_feature(STATE, GET))),
    Bound("feature/set-argsz", C.DEVICE_FEATURE, both(begins(15), of_feature(STATE, SET), sized(16))),
    Bound("feature/set-too-short", C.DEVICE_FEATURE, both(of_feature(STATE, SET), sized(8 + DEVICE_STATE.size - 1))),
    Bound("feature/probe-argsz", C.DEVICE_FEATURE, both(begins(7), of_feature(Feature.MIGRATION, PROBE))),
    Bound(
        "dirty_logging/start-too-short",
        C.DEVICE_FEATURE,
        both(of_feature(START, SET), sized(8 + LOGGING_CONTROL.size - 1)),
    ),
    Bound(
        "dirty_logging/start-ranges-missing",
        C.DEVICE_FEATURE,
        both(of_feature(START, SET), sized(8 + LOGGING_CONTROL.size + LOGGING_RANGE.size - 1)),
    ),
    Bound(
        "dirty_logging/report-too-short",
        C.DEVICE_FEATURE,
        both(of_feature(REPORT, GET), sized(8 + LOGGING_REPORT.size - 1)),
    ),
    Bound("dirty_logging/report-argsz", C.DEVICE_FEATURE, both(of_feature(REPORT, GET), begins(39))),
    Bound("mig_data/read-payload", C.MIG_DATA_READ, sized(7)),
    Bound("mig_data/read-argsz", C.MIG_DATA_READ, begins(23)),
    Bound("mig_data/read-too-large", C.MIG_DATA_READ, begins(8 + MIB + 1)),
    Bound("mig_data/write-payload", C.MIG_DATA_WRITE, sized(7)),
    Bound("mig_data/write-argsz", C.MIG_DATA_WRITE, begins(11)),
    Bound("mig_data/write-data-missing", C.MIG_DATA_WRITE, both(begins(13), sized(12))),
]
"""Requests of one more or less than there may be."""

WITHIN = [
    Bound("region_info/describes-every-region", C.GET_REGION_INFO, says(REGION_INFO, region=REGIONS - 1)),
    Bound("irq_info/describes-every-type", C.GET_IRQ_INFO, says(IRQ_INFO, irq=IRQ_TYPES - 1)),
    Bound("io_fds/reply", C.GET_REGION_IO_FDS, begins(MIB)),
    Bound("set_irqs/trigger-without-eventfd", C.SET_IRQS, says(IRQ_SET, start=VECTORS - 1)),
    Bound("set_irqs/trigger-without-eventfd", C.SET_IRQS, vectors_to(VECTORS)),
    Bound("region_read/reply", C.REGION_READ, accesses_to(CONFIG_SIZE)),
    Bound("region_read/reply", C.REGION_READ, says(REGION_ACCESS, offset=CONFIG_SIZE - 1)),
    Bound("write_multi/eight-bytes", C.REGION_WRITE_MULTI, says(REGION_ACCESS, WRITE_MULTI.size, length=8)),
    Bound("dma_unmap/reply-echoes", C.DMA_UNMAP, begins(MIB)),
]
"""Requests of as much as there may be."""

BOUND_CLAUSES = [
    *(Clause(id, "succeeded instead of failing", Takes(command, request)) for id, command, request in BEHIND),
    *(Clause(id, "EINVAL", Refuses(command, request, errno.EINVAL)) for id, command, request in WITHIN),
]
