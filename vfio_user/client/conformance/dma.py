"""DMA_MAP and DMA_UNMAP, in both layouts: structures of one range, and the draft's tables."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

from userdev.conformance.check import CheckFailed, Group, Level, Skip, require
from vfio_user.client.conformance.bench import UNUSED_IOVA, Bench
from vfio_user.client.conformance.dialects import CURRENT_FAMILY, DRAFT
from vfio_user.client.conformance.refusals import SINCE_2022, Bad, enter
from vfio_user.client.errors import RemoteError
from vfio_user.client.memory import Mapping
from vfio_user.wire import Command
from vfio_user.wire.constants import DmaFlags, DmaFlagsV6, UnmapFlags
from vfio_user.wire.layouts import BITMAP, DMA_ENTRY_V6, DMA_MAP, DMA_UNMAP

MAPPED = "dma_map/map-and-unmap"
"""Without this rule nothing is known of others about memory: it is how they are tried."""

LOOKED_AT = ("dma_map/impossible", "dma_map/table-impossible")
UNKNOWN = ("dma_map/unmap-unknown",)
LIES_OVER = ("dma_map/overlap-inside",)
TABLE_LIES_OVER = ("dma_map/table-overlap-inside",)
"""Of a server that does not keep these rules other refusals say nothing: whatever it is told is well done."""

dma_map = Group[Bench]("dma_map", "protocol.md 5: DMA_MAP", needs=(MAPPED,))
dma_unmap = Group[Bench]("dma_unmap", "protocol.md 6: DMA_UNMAP", needs=(MAPPED,))

BASE = 0x10_0000
SIZE = 0x1_0000
RW = DmaFlags.READ | DmaFlags.WRITE
_TAKEN = (errno.EINVAL, errno.EEXIST)
"""libvfio-user says EINVAL where the draft says EEXIST."""


def _map(addr: int, size: int, *, argsz: int = DMA_MAP.size, flags: int = RW, offset: int = 0) -> bytes:
    return DMA_MAP.pack(argsz, flags, offset, addr, size)


def _unmap(addr: int, size: int, *, argsz: int = DMA_UNMAP.size, flags: int = 0) -> bytes:
    return DMA_UNMAP.pack(argsz, flags, addr, size)


def _entry(addr: int, size: int, *, protections: int = 3, flags: int = 0, offset: int = 0) -> bytes:
    return DMA_ENTRY_V6.pack(addr, size, offset, protections, flags)


def _mapped(bench: Bench) -> Callable[[], None]:
    """One range is mapped, and nothing else; both have to be so afterwards."""
    bench.client.dma_map(BASE, bench.memory(SIZE))

    def check() -> None:
        bench.good(
            bench.ask(Command.DMA_UNMAP, bench.unmap_request(BASE, SIZE)),
            "unmapping the range that was mapped before the request that was refused",
        )

    return check


@dma_map.check("map-and-unmap", rule="spec: VFIO_USER_DMA_MAP, VFIO_USER_DMA_UNMAP")
def map_and_unmap(bench: Bench) -> None:
    """Ranges with and without a descriptor can be mapped and unmapped, again and again."""
    memories = [bench.memory(SIZE, shared=shared) for shared in (True, False)]
    bench.client.dma_map(BASE, memories[0])
    bench.client.dma_unmap(BASE, SIZE)
    for again in (1, 0, 0, 1, 1):
        try:
            bench.client.dma_map(BASE, memories[again])
        except RemoteError as error:
            raise CheckFailed(f"{error}, of a range that it has unmapped, as it said{_still_there(bench)}") from None
        bench.client.dma_unmap(BASE, SIZE)


def _still_there(bench: Bench) -> str:
    """What is to be said of a range that cannot be mapped behind an unmap that was answered as done."""
    if bench.ask(Command.DMA_UNMAP, bench.unmap_request(BASE, SIZE)).failed:
        return ""
    return ": unmapping it once more succeeds, so DMA_UNMAP is answered and not done"


def _impossible(bench: Bench) -> None:
    """A map that no server could do is refused."""
    bench.need_dma()
    bench.client.dma_map(BASE, bench.memory(SIZE))
    size, every_flag = (1 << 64) - 0x1000, 0xFFFF_FFFF
    table = bench.client.dma_tables
    request = _entry(BASE, size, flags=every_flag) if table else _map(BASE, size, argsz=0, flags=every_flag)
    what = "a map that wraps, lies over another and has every flag and no descriptor"
    require(
        bench.failed(bench.ask(Command.DMA_MAP, request)),
        f"{what} succeeded: nothing of it is looked at (a server without DMA may do so, and takes one of a byte then)",
    )


dma_map.check("impossible", level=Level.REFERENCE, dialects=CURRENT_FAMILY)(_impossible)
dma_map.check("table-impossible", dialects=DRAFT, rule="spec: VFIO_USER_DMA_MAP, EEXIST")(_impossible)


@dma_map.check("unmap-unknown", level=Level.REFERENCE, needs=LOOKED_AT, rule="protocol.md 6: DMA_UNMAP")
def unmap_unknown(bench: Bench) -> None:
    """Unmapping what was never mapped is refused."""
    bench.need_dma()
    reply = bench.ask(Command.DMA_UNMAP, bench.unmap_request(UNUSED_IOVA, SIZE))
    require(bench.failed(reply), "unmapping what was never mapped succeeded")


@dma_map.check("reply-is-header", rule="protocol.md 5: Reply")
def reply_is_header(bench: Bench) -> None:
    """The reply is a header and nothing else."""
    request = _entry(BASE, SIZE) if bench.client.dma_tables else _map(BASE, SIZE)
    reply = bench.good(bench.ask(Command.DMA_MAP, request), "DMA_MAP")
    require(reply.size == 16, f"the reply has {reply.size} bytes instead of 16")


@dma_map.check("neighbours", rule="spec: VFIO_USER_DMA_MAP")
def neighbours(bench: Bench) -> None:
    """Ranges that touch do not overlap, and each can be unmapped by itself."""
    memory = bench.memory(3 * SIZE)
    ranges = [Mapping(BASE + i * SIZE, SIZE, memory, i * SIZE) for i in range(3)]
    bench.client.dma_map_all(ranges)
    for mapping in (ranges[1], ranges[0], ranges[2]):
        bench.client.dma_unmap(mapping.iova, mapping.size)


@dma_map.check("many", rule="protocol.md 3.4: max_dma_maps")
def many(bench: Bench) -> None:
    """A thousand ranges of one page each, as a guest behind a vIOMMU makes them, or as many as the server announces."""
    bench.need_dma()
    page = 0x1000
    count = min(1000, bench.most_maps)
    if not count:
        raise Skip("the server announces that it takes no range")
    memory = bench.memory(page * count)
    ranges = [Mapping(BASE + 2 * page * i, page, memory, page * i) for i in range(count)]
    for first in range(0, count, 100):  # sent without waiting
        bench.client.dma_map_all(ranges[first : first + 100])
    for first in range(0, count, 100):
        bench.client.dma_unmap_each([(mapping.iova, page) for mapping in ranges[first : first + 100]])


@dma_map.check("read-only", rule="protocol.md 5: QEMU maps ROM with READ alone")
def read_only(bench: Bench) -> None:
    """A range that may only be read can be mapped."""
    bench.client.dma_map(BASE, bench.memory(SIZE), flags=DmaFlags.READ)
    bench.client.dma_unmap(BASE, SIZE)


@dma_map.check("identical", level=Level.REFERENCE, dialects=CURRENT_FAMILY, needs=UNKNOWN)
def identical(bench: Bench) -> None:
    """The same map again succeeds and is one map, or is refused as an overlap."""
    bench.need_dma()
    request = _map(BASE, SIZE)
    bench.good(bench.ask(Command.DMA_MAP, request), "DMA_MAP")
    again = bench.ask(Command.DMA_MAP, request)
    if again.failed:
        bench.refused(again, _TAKEN, "the same map again")
    bench.good(bench.ask(Command.DMA_UNMAP, _unmap(BASE, SIZE)), "unmapping it")
    gone = bench.ask(Command.DMA_UNMAP, _unmap(BASE, SIZE))
    bench.refused(gone, (errno.ENOENT,), "unmapping it a second time")


@dma_map.check("surplus-fds", level=Level.REFERENCE, dialects=CURRENT_FAMILY, rule="protocol.md 5: more than one fd")
def surplus_fds(bench: Bench) -> None:
    """Descriptors beyond the first are closed, and the map succeeds or is refused with EINVAL."""
    bench.need_fds()
    bench.need_dma()
    fds = [bench.memfd(), bench.memfd(), bench.memfd()]
    reply = bench.ask(Command.DMA_MAP, _map(BASE, SIZE), fds)
    if reply.failed:
        bench.refused(reply, (errno.EINVAL,), "a map with three descriptors")
    bench.client.device_info()


@dma_map.check(
    "fd-that-cannot-map",
    level=Level.REFERENCE,
    dialects=CURRENT_FAMILY,
    needs=(*LOOKED_AT, *UNKNOWN),
    rule="protocol.md 5: mmap fails",
)
def fd_that_cannot_map(bench: Bench) -> None:
    """A descriptor that cannot be mapped is refused, and nothing is mapped."""
    bench.need_fds()
    bench.need_dma()
    reader, writer = os.pipe()
    bench.own(reader), bench.own(writer)
    accepted = (errno.ENODEV, errno.EACCES, errno.EINVAL, errno.EPERM)
    reply = bench.ask(Command.DMA_MAP, _map(BASE, SIZE, flags=RW | DmaFlags.MMAP), [reader])
    bench.refused(reply, accepted, "mapping a pipe")
    bench.refused(bench.ask(Command.DMA_UNMAP, _unmap(BASE, SIZE)), (errno.ENOENT,), "unmapping what was refused")


_OVERLAPS = (
    ("inside", BASE + 0x1000, 0x1000),
    ("same-start", BASE, 0x1000),
    ("same-end", BASE + SIZE - 0x1000, 0x1000),
    ("over-the-start", BASE - 0x1000, 0x2000),
    ("over-the-end", BASE + SIZE - 0x1000, 0x2000),
    ("around", BASE - 0x1000, SIZE + 0x2000),
)

enter(
    dma_map,
    Command.DMA_MAP,
    [
        Bad("payload-too-short", "a request of 31 bytes", _map(BASE + SIZE, SIZE)[:-1]),
        Bad("argsz-too-small", "argsz 31", _map(BASE + SIZE, SIZE, argsz=31)),
        Bad("argsz-zero", "argsz 0", _map(BASE + SIZE, SIZE, argsz=0)),
        Bad("mmap-without-fd", "MMAP without a descriptor", _map(BASE + SIZE, SIZE, flags=RW | DmaFlags.MMAP)),
        Bad("file-io-without-fd", "FILE_IO without a descriptor", _map(BASE + SIZE, SIZE, flags=RW | DmaFlags.FILE_IO)),
        Bad("two-modes", "MMAP and FILE_IO at once", _map(BASE + SIZE, SIZE, flags=0xF), fds=1),
        Bad("unknown-flag", "an unknown flag", _map(BASE + SIZE, SIZE, flags=RW | 0x10)),
        Bad("unknown-high-flag", "an unknown high flag", _map(BASE + SIZE, SIZE, flags=0x8000_0003)),
        Bad("wraps", "a range that wraps", _map((1 << 64) - 0x1000, 0x2000), revision=SINCE_2022),
        Bad(
            "too-large",
            "a range of a page more than 8 TiB",
            _map(1 << 50, (8 << 40) + 0x1000),
            (errno.ENOSPC, errno.EINVAL, errno.ENOMEM),
        ),
        Bad("fd-size-0", "a range of size 0 with a descriptor", _map(BASE + SIZE, 0), fds=1),
        *(
            Bad(
                f"overlap-{name}",
                f"a range that overlaps another ({name})",
                _map(addr, size),
                _TAKEN,
                needs=() if name == _OVERLAPS[0][0] else LIES_OVER,
            )
            for name, addr, size in _OVERLAPS
        ),
        Bad(
            "overlap-other-protection",
            "the same range with another protection",
            _map(BASE, SIZE, flags=DmaFlags.READ),
            _TAKEN,
            needs=LIES_OVER,
        ),
        Bad(
            "overlap-other-fd",
            "the same range with another descriptor",
            _map(BASE, SIZE),
            _TAKEN,
            fds=1,
            needs=LIES_OVER,
        ),
    ],
    need=lambda bench: bench.need_dma(),
    keep=_mapped,
    needs=LOOKED_AT,
    dialects=CURRENT_FAMILY,
)


enter(
    dma_map,
    Command.DMA_MAP,
    [
        Bad("table-cut", "a table that is no whole number of entries", _entry(BASE + SIZE, SIZE)[:-1]),
        Bad(
            "table-fds-missing",
            "a mappable entry without a descriptor",
            _entry(BASE + SIZE, SIZE, flags=DmaFlagsV6.MAPPABLE),
        ),
        Bad(
            "table-one-fd-for-two",
            "two mappable entries with one descriptor",
            _entry(BASE + SIZE, SIZE, flags=1) + _entry(BASE + 2 * SIZE, SIZE, flags=1),
            fds=1,
        ),
        Bad("table-unknown-flag", "an unknown flag", _entry(BASE + SIZE, SIZE, flags=2)),
        Bad("table-wraps", "a range that wraps", _entry((1 << 64) - 0x1000, 0x2000)),
        *(
            Bad(
                f"table-overlap-{name}",
                f"a range that overlaps another ({name})",
                _entry(addr, size),
                (errno.EEXIST,),
                level=Level.MUST,
                rule="spec: VFIO_USER_DMA_MAP, EEXIST",
                needs=() if name == _OVERLAPS[0][0] else TABLE_LIES_OVER,
            )
            for name, addr, size in (*_OVERLAPS, ("identical", BASE, SIZE))
        ),
        Bad(
            "table-overlap-within",
            "a table whose second entry overlaps",
            _entry(BASE + SIZE, SIZE) + _entry(BASE, SIZE),
            (errno.EEXIST,),
            rule="spec: VFIO_USER_DMA_MAP, EEXIST",
            needs=TABLE_LIES_OVER,
        ),
    ],
    need=lambda bench: bench.need_dma(),
    keep=_mapped,
    needs=LOOKED_AT,
    dialects=DRAFT,
)


@dma_map.check("table", dialects=DRAFT, rule="spec: VFIO_USER_DMA_MAP, Table entry format")
def table(bench: Bench) -> None:
    """One table maps ranges with and without descriptors, which go to the mappable ones in order."""
    memory, private = bench.memory(2 * SIZE), bench.memory(SIZE, shared=False)
    bench.client.dma_map_all(
        [
            Mapping(BASE, SIZE, memory, 0),
            Mapping(BASE + 2 * SIZE, SIZE, private),
            Mapping(BASE + 4 * SIZE, SIZE, memory, SIZE),
        ]
    )
    bench.client.dma_unmap_all()


@dma_map.check(
    "table-all-or-nothing",
    dialects=DRAFT,
    level=Level.REFERENCE,
    needs=(*LOOKED_AT, *UNKNOWN, *TABLE_LIES_OVER),
    rule="one command, one effect",
)
def all_or_nothing(bench: Bench) -> None:
    """A table that is refused for its last entry has mapped none of the others."""
    bench.need_dma()
    bench.client.dma_map(BASE, bench.memory(SIZE))
    request = _entry(BASE + SIZE, SIZE) + _entry(BASE, SIZE)
    bench.refused(bench.ask(Command.DMA_MAP, request), (errno.EEXIST,), "a table whose second entry overlaps")
    gone = bench.ask(Command.DMA_UNMAP, _entry(BASE + SIZE, SIZE, protections=0))
    bench.refused(gone, (errno.ENOENT, errno.EINVAL), "unmapping its first entry")


# unmap


@dma_unmap.check("reply-echoes", dialects=CURRENT_FAMILY, rule="protocol.md 6: Reply without bitmap; 14: A3")
def reply_echoes(bench: Bench) -> None:
    """The reply is 40 bytes: the request's structure, whatever room that has."""
    bench.need_dma()
    memory = bench.memory(SIZE)
    for argsz in (DMA_UNMAP.size, min(1 << 20, bench.client.data_limit)):
        bench.client.dma_map(BASE, memory)
        request = _unmap(BASE, SIZE, argsz=argsz)
        reply = bench.good(bench.ask(Command.DMA_UNMAP, request), f"DMA_UNMAP with argsz {argsz}")
        require(reply.payload == request, f"the reply has {reply.size} bytes and is not the request's structure")


@dma_unmap.check("all", level=Level.REFERENCE, dialects=CURRENT_FAMILY, needs=UNKNOWN, rule="protocol.md 6: ALL")
def unmap_all(bench: Bench) -> None:
    """ALL takes every range away."""
    bench.need_dma()
    memory = bench.memory(SIZE)
    for i in range(5):
        bench.client.dma_map(BASE + 2 * i * SIZE, memory)
    bench.client.dma_unmap_all()
    for i in range(5):
        reply = bench.ask(Command.DMA_UNMAP, _unmap(BASE + 2 * i * SIZE, SIZE))
        require(bench.failed(reply), "unmapping after ALL succeeded")
    bench.client.dma_unmap_all()


@dma_unmap.check("twice", level=Level.REFERENCE, needs=UNKNOWN)
def twice(bench: Bench) -> None:
    """What was unmapped is not there any more, and the place can be mapped again."""
    bench.need_dma()
    memory = bench.memory(SIZE)
    for _ in range(2):
        bench.client.dma_map(BASE, memory)
        bench.client.dma_unmap(BASE, SIZE)
        reply = bench.ask(Command.DMA_UNMAP, bench.unmap_request(BASE, SIZE))
        bench.refused(reply, (errno.ENOENT,), "unmapping a second time")


_GONE = (errno.ENOENT,)


@dma_unmap.check(
    "around",
    level=Level.REFERENCE,
    dialects=CURRENT_FAMILY,
    needs=UNKNOWN,
    rule="protocol.md 6; VFIO_IOMMU_UNMAP_DMA",
)
def around(bench: Bench) -> None:
    """A range around a mapped one unmaps it, as the kernel does, or is refused with ENOENT and changes nothing."""
    bench.need_dma()
    bench.client.dma_map(BASE, bench.memory(SIZE))
    wide = bench.ask(Command.DMA_UNMAP, _unmap(BASE - 0x1000, SIZE + 0x2000))
    exact = bench.ask(Command.DMA_UNMAP, _unmap(BASE, SIZE))
    if wide.failed:
        bench.refused(wide, _GONE, "a range around a mapped one")
        bench.good(exact, "unmapping the range itself")
    else:
        bench.refused(exact, _GONE, "unmapping what a wider range has unmapped")


_BITMAP = UnmapFlags.GET_DIRTY_BITMAP
_PAGES_16 = BITMAP.pack(0x1000, 8)

enter(
    dma_unmap,
    Command.DMA_UNMAP,
    [
        Bad("payload-too-short", "a request of 23 bytes", _unmap(BASE, SIZE)[:-1]),
        Bad("argsz-too-small", "argsz 23", _unmap(BASE, SIZE, argsz=23)),
        Bad("argsz-too-large", "argsz over 1 MiB", _unmap(BASE, SIZE, argsz=(1 << 20) + 1)),
        Bad("both-flags", "both flags at once", _unmap(0, 0, flags=3) + _PAGES_16),
        Bad("unknown-flag", "an unknown flag", _unmap(BASE, SIZE, flags=4)),
        Bad("all-with-address", "ALL with an address", _unmap(BASE, 0, flags=UnmapFlags.ALL)),
        Bad("all-with-size", "ALL with a size", _unmap(0, SIZE, flags=UnmapFlags.ALL)),
        Bad("bitmap-missing", "a bitmap request without its structure", _unmap(BASE, SIZE, argsz=48, flags=_BITMAP)),
        Bad("bitmap-argsz", "a bitmap request with argsz 47", _unmap(BASE, SIZE, argsz=47, flags=_BITMAP) + _PAGES_16),
        Bad(
            "bitmap-without-logging",
            "a bitmap request while nothing is logged",
            _unmap(BASE, SIZE, argsz=48, flags=_BITMAP) + _PAGES_16,
            (errno.EINVAL, errno.ENOTSUP),
        ),
        *(
            Bad(
                f"inexact-{name}",
                f"a range that is not exactly one that was mapped ({name})",
                _unmap(addr, size),
                (errno.ENOENT,),
            )
            for name, addr, size in _OVERLAPS
            if name != "around"
        ),
        Bad("unknown", "a range that was never mapped", _unmap(UNUSED_IOVA, SIZE), (errno.ENOENT,)),
    ],
    need=lambda bench: bench.need_dma(),
    keep=_mapped,
    needs=UNKNOWN,
    dialects=CURRENT_FAMILY,
)
enter(
    dma_unmap,
    Command.DMA_UNMAP,
    [
        Bad("table-cut", "a table that is no whole number of entries", _entry(BASE, SIZE, protections=0)[:-1]),
        Bad("table-unknown-flag", "an unknown flag", _entry(BASE, SIZE, protections=0, flags=2)),
        Bad(
            "table-unknown",
            "a table with an entry that was never mapped",
            _entry(BASE, SIZE, protections=0) + _entry(UNUSED_IOVA, SIZE, protections=0),
            (errno.ENOENT,),
        ),
    ],
    need=lambda bench: bench.need_dma(),
    keep=_mapped,
    needs=UNKNOWN,
    dialects=DRAFT,
)
