"""What the device says of itself: GET_INFO, GET_REGION_INFO, GET_REGION_IO_FDS, GET_IRQ_INFO."""

from __future__ import annotations

import mmap

from userdev.conformance.check import Group, Level, Skip, require
from vfio_user.client.conformance.bench import DESCRIBED, Bench
from vfio_user.client.conformance.dialects import CURRENT_FAMILY, DRAFT
from vfio_user.client.conformance.refusals import SINCE_2022, Bad, enter
from vfio_user.client.reading import read_as
from vfio_user.client.regions import Region
from vfio_user.wire import Command
from vfio_user.wire.constants import DeviceFlags, IrqInfoFlags, RegionCapability, RegionFlags, RegionIndex
from vfio_user.wire.layouts import DEVICE_INFO, IRQ_INFO, REGION_INFO, REGION_IO_FDS
from vfio_user.wire.region_info import capabilities, decode_region_info

info = Group[Bench]("info", "protocol.md 7: DEVICE_GET_INFO")
region_info = Group[Bench]("region_info", "protocol.md 8: DEVICE_GET_REGION_INFO")
_PLENTY = 1 << 20
"""Bytes of room, the most that there may be: who has it asks once."""

io_fds = Group[Bench](
    "io_fds", "protocol.md 9.1: DEVICE_GET_REGION_IO_FDS", dialects=CURRENT_FAMILY, needs=("io_fds/two-steps",)
)
irq_info = Group[Bench]("irq_info", "protocol.md 9.2: DEVICE_GET_IRQ_INFO")


@info.check("describes", rule="spec: VFIO device info format; protocol.md 7")
def describes(bench: Bench) -> None:
    """A PCI device, with as many regions and interrupt types as QEMU wants."""
    reply = bench.good(
        bench.ask(Command.GET_INFO, DEVICE_INFO.pack(16, 0, 0, 0) if _sends_struct(bench) else b""), "GET_INFO"
    )
    found = read_as(DEVICE_INFO, reply.payload, Command.GET_INFO.value)
    require(reply.size == 32, f"the reply has {reply.size} bytes instead of 32")
    require(found.argsz == DEVICE_INFO.size, f"argsz is {found.argsz} instead of 16")
    require(found.flags & DeviceFlags.PCI, "the PCI flag is not set")
    require(8 <= found.num_regions <= 100, f"{found.num_regions} regions: QEMU takes 8 to 100")
    require(3 <= found.num_irqs <= 50, f"{found.num_irqs} interrupt types: QEMU takes 3 to 50")


def _sends_struct(bench: Bench) -> bool:
    return bench.dialect.shapes[Command.GET_INFO].request is not None


enter(
    info,
    Command.GET_INFO,
    [
        Bad("header-only", "GET_INFO without payload", b"", dialects=CURRENT_FAMILY),
        Bad("payload-too-short", "GET_INFO of 15 bytes", bytes([16]) + bytes(14), dialects=CURRENT_FAMILY),
        Bad("argsz-too-small", "GET_INFO with argsz 15", DEVICE_INFO.pack(15, 0, 0, 0), dialects=CURRENT_FAMILY),
        Bad("argsz-zero", "GET_INFO with argsz 0", DEVICE_INFO.pack(0, 0, 0, 0), dialects=CURRENT_FAMILY),
    ],
)


@info.check("longer-request", level=Level.REFERENCE, dialects=CURRENT_FAMILY)
def longer_request(bench: Bench) -> None:
    """A longer structure is accepted, as Oracle's QEMU sends it, and answered with 32 bytes."""
    reply = bench.good(bench.ask(Command.GET_INFO, DEVICE_INFO.pack(20, 0, 0, 0) + bytes(4)), "a GET_INFO of 36 bytes")
    require(reply.size == 32, f"the reply has {reply.size} bytes instead of 32")


# regions


@region_info.check("describes-every-region", rule="spec: VFIO region info format")
def describes_every_region(bench: Bench) -> None:
    """Every region answers with its own index; config space can be read and written and has its size."""
    for index, region in enumerate(bench.regions):
        require(region.index == index, f"region {index} says that it is region {region.index}")
    config = bench.region(RegionIndex.CONFIG)
    both = RegionFlags.READ | RegionFlags.WRITE
    require(config.flags & both == both, f"config space has flags {config.flags:#x}")
    require(config.size in (256, 4096), f"config space has {config.size} bytes")


@region_info.check("areas-are-pages", rule="protocol.md 8.2: sparse areas are for mmap")
def areas_are_pages(bench: Bench) -> None:
    """What may be mapped is whole pages inside its region, and at a page of its descriptor."""
    bench.need_mappable()
    for region in bench.regions:
        page = not region.mappable or region.offset % mmap.PAGESIZE == 0
        require(page, f"region {region.index} is to be mapped at {region.offset:#x} of its descriptor")
        for offset, size in region.mappable:
            whole = not (offset % mmap.PAGESIZE or size % mmap.PAGESIZE) and offset + size <= region.size
            require(whole and size, f"region {region.index} ({region.size:#x} bytes) has an area {offset:#x}+{size:#x}")


@region_info.check("descriptor-maps", rule="spec: VFIO region info, MMAP")
def descriptor_maps(bench: Bench) -> None:
    """A region with the MMAP flag comes with one descriptor, and its areas can be mapped."""
    bench.need_fds()
    bench.need_mappable()
    for region in bench.regions:
        for area in region.mappable:
            require(region.fd is not None, f"region {region.index} may be mapped and came without a descriptor")
            bench.client.map_region(region, area).close()


def _with_capabilities(bench: Bench) -> tuple[Region, int]:
    """A region that has capabilities, and the argsz it needs."""
    for region in bench.regions:
        reply = bench.ask(Command.GET_REGION_INFO, REGION_INFO.pack(32, 0, region.index, 0, 0, 0))
        needed = read_as(REGION_INFO, reply.payload, Command.GET_REGION_INFO.value).argsz
        if needed > REGION_INFO.size:
            return region, needed
    raise Skip("no region has capabilities")


@region_info.check("two-steps", level=Level.REFERENCE, dialects=CURRENT_FAMILY, rule="protocol.md 8.1: argsz")
def two_steps(bench: Bench) -> None:
    """With too little room the reply is cut, says what is needed, and has no capabilities and no descriptor."""
    region, needed = _with_capabilities(bench)
    for argsz in (REGION_INFO.size, needed - 1):
        reply = bench.client.raw(
            bench.dialect.number(Command.GET_REGION_INFO), REGION_INFO.pack(argsz, 0, region.index, 0, 0, 0)
        )
        assert reply is not None
        descriptors = len(reply.fds)
        bench.good(reply, f"argsz {argsz}")
        got = read_as(REGION_INFO, reply.payload, Command.GET_REGION_INFO.value)
        require(len(reply.payload) == argsz, f"argsz {argsz} is answered with {len(reply.payload)} bytes")
        require(got.argsz == needed, f"argsz {argsz} is answered with argsz {got.argsz} instead of {needed}")
        require(not got.flags & RegionFlags.CAPS, f"argsz {argsz} is answered with the CAPS flag and no capabilities")
        require(not descriptors, f"a reply that was cut to {argsz} bytes came with a descriptor")


@region_info.check("complete-with-room", dialects=CURRENT_FAMILY, rule="spec: VFIO region info, argsz and cap_offset")
def complete_with_room(bench: Bench) -> None:
    """With enough room, or more, the reply has all its capabilities, in a chain that ends."""
    region, needed = _with_capabilities(bench)
    for argsz in (needed, needed + 100):
        reply = bench.ask(Command.GET_REGION_INFO, REGION_INFO.pack(argsz, 0, region.index, 0, 0, 0))
        bench.good(reply, f"argsz {argsz}")
        require(
            len(reply.payload) == needed, f"argsz {argsz} is answered with {len(reply.payload)} bytes, not {needed}"
        )
        found, _ = decode_region_info(reply.payload)
        require(found.flags & RegionFlags.CAPS, "the CAPS flag is not set")


@region_info.check("capability-versions", rule="spec: VFIO sparse mmap, VFIO Region Type: version")
def capability_versions(bench: Bench) -> None:
    """Its capabilities have version 1, the only one that there is."""
    region, needed = _with_capabilities(bench)
    reply = bench.ask(Command.GET_REGION_INFO, REGION_INFO.pack(needed, 0, region.index, 0, 0, 0))
    for found in capabilities(bench.good(reply, f"argsz {needed}").payload):
        known = found.id in {*RegionCapability}
        require(not known or found.version == 1, f"capability {found.id} has version {found.version}")


@region_info.check("always-complete", dialects=DRAFT, rule="protocol.md 8.1: no two-step rule in the draft")
def always_complete(bench: Bench) -> None:
    """The reply is complete although the request's argsz says nothing."""
    for region in bench.regions:
        reply = bench.good(
            bench.ask(Command.GET_REGION_INFO, REGION_INFO.pack(0, 0, region.index, 0, 0, 0)), "a request with argsz 0"
        )
        described = read_as(REGION_INFO, reply.payload, Command.GET_REGION_INFO.value)
        require(len(reply.payload) == described.argsz, f"region {region.index} was cut")


enter(
    region_info,
    Command.GET_REGION_INFO,
    [
        Bad("payload-too-short", "a request of 31 bytes", REGION_INFO.pack(32, 0, 0, 0, 0, 0)[:-1]),
        Bad("argsz-too-small", "argsz 31", REGION_INFO.pack(31, 0, 0, 0, 0, 0), dialects=CURRENT_FAMILY),
        Bad("argsz-zero", "argsz 0", REGION_INFO.pack(0, 0, 0, 0, 0, 0), dialects=CURRENT_FAMILY),
        Bad(
            "index-behind-last",
            "the index behind the last region",
            lambda bench: REGION_INFO.pack(32, 0, bench.info.num_regions, 0, 0, 0),
            needs=DESCRIBED,
        ),
        Bad("index-huge", "region 0xffffffff", REGION_INFO.pack(32, 0, 0xFFFF_FFFF, 0, 0, 0)),
    ],
)


# descriptors for KVM


def _io_request(argsz: int = 16, flags: int = 0, region: int = RegionIndex.CONFIG, count: int = 0) -> bytes:
    return REGION_IO_FDS.pack(argsz, flags, region, count)


@io_fds.check("two-steps", level=Level.REFERENCE, revision=SINCE_2022)
def io_fds_two_steps(bench: Bench) -> None:
    """Every region that exists lists its sub-regions: first how many, then all of them."""
    for region in bench.regions:
        if region.size:
            for entry in bench.client.io_fds(region.index):
                for fd in (entry.fd, entry.shadow_fd):
                    if fd is not None:
                        bench.own(fd)
                inside = entry.gpa_offset + entry.size <= region.size
                require(inside, f"region {region.index}: a sub-region {entry.gpa_offset:#x}+{entry.size:#x}")


@io_fds.check("reply", rule="spec: VFIO_USER_DEVICE_GET_REGION_IO_FDS, Reply")
def io_fds_reply(bench: Bench) -> None:
    """The reply repeats the region, has no flags, and says how many sub-regions follow, and how many bytes that is."""
    for region in bench.regions:
        if not region.size:
            continue
        for argsz in (REGION_IO_FDS.size, min(_PLENTY, bench.client.data_limit)):
            reply = bench.ask(Command.GET_REGION_IO_FDS, _io_request(argsz, region=region.index))
            payload = bench.good(reply, f"argsz {argsz}").payload
            got = read_as(REGION_IO_FDS, payload, Command.GET_REGION_IO_FDS.value)
            require(got[1:3] == (0, region.index), f"region {region.index} is answered with {tuple(got)}")
        size, entries = len(reply.payload), len(reply.payload) - REGION_IO_FDS.size
        require(got.argsz == size, f"region {region.index}: {size} bytes with argsz {got.argsz}")
        whole = not entries if not got.nr_entries else entries and not entries % got.nr_entries
        require(whole, f"region {region.index}: {got.nr_entries} sub-regions in {entries} bytes")


enter(
    io_fds,
    Command.GET_REGION_IO_FDS,
    [
        Bad("payload-too-short", "a request of 15 bytes", _io_request()[:-1]),
        Bad("argsz-too-small", "argsz 15", _io_request(argsz=15)),
        Bad("argsz-too-large", "argsz over 1 MiB", _io_request(argsz=(1 << 20) + 1)),
        Bad("flags", "flags 1", _io_request(flags=1)),
        Bad("count", "a count in the request", _io_request(count=1)),
        Bad(
            "index-behind-last",
            "the index behind the last region",
            lambda b: _io_request(region=b.info.num_regions),
            needs=DESCRIBED,
        ),
        Bad("unused-region", "a region that does not exist", lambda b: _io_request(region=_unused_region(b))),
    ],
)


def _unused_region(bench: Bench) -> int:
    for region in bench.regions:
        if not region.flags and not region.size:
            return region.index
    raise Skip("every region exists")


# interrupt types


@irq_info.check("describes-every-type", rule="spec: VFIO IRQ info format")
def describes_every_type(bench: Bench) -> None:
    """Every interrupt type answers with its own index, and the ones that exist can be delivered by eventfd."""
    for index, found in enumerate(bench.irqs):
        require(found.irq == index, f"interrupt type {index} says that it is type {found.irq}")
        require(found.argsz == IRQ_INFO.size, f"interrupt type {index} has argsz {found.argsz}")
        if found.nr_vectors and bench.client.fds_per_message:
            require(found.flags & IrqInfoFlags.EVENTFD, f"interrupt type {index} cannot be delivered by eventfd")


enter(
    irq_info,
    Command.GET_IRQ_INFO,
    [
        Bad("payload-too-short", "a request of 15 bytes", IRQ_INFO.pack(16, 0, 0, 0)[:-1]),
        Bad("argsz-too-small", "argsz 15", IRQ_INFO.pack(15, 0, 0, 0), dialects=CURRENT_FAMILY),
        Bad(
            "index-behind-last",
            "the index behind the last interrupt type",
            lambda bench: IRQ_INFO.pack(16, 0, bench.info.num_irqs, 0),
            needs=DESCRIBED,
        ),
        Bad("index-huge", "interrupt type 0xffffffff", IRQ_INFO.pack(16, 0, 0xFFFF_FFFF, 0)),
    ],
)
