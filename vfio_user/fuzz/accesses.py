"""Steps that describe, read and write: registers, configuration space, areas that are mapped, and whole checks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from functools import lru_cache

from userdev.conformance.check import require
from userdev.errors import ProtocolError
from userdev.fuzz import Answer, Few, Found, Kind, Number, Pick, Several
from vfio_user.client.conformance import CATALOGUE, Bench, Check
from vfio_user.client.conformance.access import size_bar
from vfio_user.client.conformance.bench import INTERRUPT_LINE
from vfio_user.client.description import IrqFacts, irq_facts
from vfio_user.fuzz.encounter import Encounter
from vfio_user.fuzz.ground import Ground
from vfio_user.fuzz.memory import SLOTS, iova_of
from vfio_user.fuzz.oracles import CONFIG, MAPPED
from vfio_user.wire import NO_REPLY, Command, Message
from vfio_user.wire.constants import RegionIndex
from vfio_user.wire.layouts import REGION_ACCESS, REGION_INFO, WRITE_MULTI, WRITE_MULTI_ENTRY
from vfio_user.wire.region_info import decode_region_info

CONFIG_SPACE = RegionIndex.CONFIG
_GROUPS = frozenset(
    (
        "header",
        "order",
        "info",
        "region_info",
        "io_fds",
        "irq_info",
        "region_read",
        "migration_region",
        "region_write",
        "feature",
        "config",
    )
)
_ALONE = frozenset({"header/size-below-16", "header/oversize", "header/type-reply", "order/half-a-message"})
"""Checks that want connections of their own, or wait for silence."""

_REGISTERS = tuple(range(0, 0x100, 4))
_OFFSETS = (*_REGISTERS, *_REGISTERS, *(1 << bit for bit in range(8, 20)), 0x1001, 3, 5, 6)
_POWERS = tuple(1 << bit for bit in range(32))
VALUES = (0, 1, 2, 3, 4, 5, 7, 0xFF, 0x80, 0x1000, 0xFFFF_FFFF, *_POWERS, *map(iova_of, range(SLOTS)))
_FIXED = ((0x00, 4), (0x08, 4), (0x0E, 1), (0x2C, 4), (0x34, 1), (0x3D, 1))
"""What of the header is read-only: ids, revision and class, header type, subsystem, pointer, interrupt pin."""
_STATUS = (6, 7)
_BEHIND_COMMAND, _BEHIND_HEADER, _MSIX = 6, 0x40, 0x11


def describe_region(encounter: Encounter, index: int, room: int) -> None:
    """A region's description is the same at any time, and complete where there is room."""
    known = encounter.ground.description.regions
    reply = encounter.ask(Command.GET_REGION_INFO, REGION_INFO.pack(REGION_INFO.size + room, 0, index, 0, 0, 0))
    if index >= len(known):
        encounter.refused(reply, "a description of a region behind the last")
        return
    if reply.failed and not encounter.accessible:
        return
    encounter.good(reply, "a description of a region")
    info = REGION_INFO.unpack(reply.payload)
    require(info.size == known[index].size, f"region {index} has {info.size:#x} bytes and had {known[index].size:#x}")
    if REGION_INFO.size + room >= info.argsz:
        require(
            len(reply.payload) == info.argsz, f"a description of {len(reply.payload)} bytes says argsz {info.argsz}"
        )
        found, _ = decode_region_info(reply.payload)
        areas = list(found.sparse or ())
        if found.sparse is not None:
            require(areas == known[index].areas, f"region {index} may be mapped in other areas than before")


def describe_irq(encounter: Encounter, index: int) -> None:
    """An interrupt type's description is the same at any time."""
    known: Sequence[IrqFacts] = encounter.ground.description.irqs
    if index < len(known) and encounter.accessible:
        now = irq_facts(encounter.client, index)
        require(asdict(now) == asdict(known[index]), f"interrupt type {index} is described differently than before")


def read(encounter: Encounter, region: int, offset: int, width: int) -> None:
    """A read inside a region is answered with as many bytes, or refused by the device; one outside is refused."""
    reply = encounter.ask(Command.REGION_READ, REGION_ACCESS.pack(offset, region, width))
    data = b""
    if _inside(encounter, region, offset, width):
        if not reply.failed:
            data = encounter.client.read_reply(reply, width)
        elif encounter.accessible and region == CONFIG_SPACE and not offset % width:
            encounter.good(reply, f"a read of {width} bytes of configuration space")
    else:
        encounter.refused(reply, f"a read of {width} bytes outside of region {region}")
    encounter.note("read", region, offset, width, reply, data)


def write(encounter: Encounter, region: int, offset: int, width: int, value: int, posted: int) -> None:
    """A write inside a region is done or refused, and silent where it is posted; one outside is refused."""
    data = (value & (1 << 8 * width) - 1).to_bytes(width, "little")
    payload = REGION_ACCESS.pack(offset, region, width, tail=data)
    encounter.touched = True
    encounter.masking |= region in _msix_regions(encounter.ground)
    if posted:
        _silent(encounter, Command.REGION_WRITE, payload)
        return
    reply = encounter.ask(Command.REGION_WRITE, payload)
    if not _inside(encounter, region, offset, width):
        encounter.refused(reply, f"a write of {width} bytes outside of region {region}")
    elif not reply.failed:
        answer = REGION_ACCESS.unpack(reply.payload)
        require(len(reply.payload) == REGION_ACCESS.size, "the reply to a write is not the request's structure")
        require(answer[:2] == (offset, region) and answer.length in (0, width), "the reply to a write repeats it wrong")
    encounter.note("write", region, offset, width, reply)


def _msix_regions(ground: Ground) -> set[int]:
    """The BARs in which MSI-X has its table and its pending bits."""
    found = (each for each in ground.description.pci_capabilities if each.id == _MSIX and not each.extended)
    return {each.details[part] for each in found for part in ("table_bar", "pba_bar")}


def _inside(encounter: Encounter, region: int, offset: int, width: int) -> bool:
    regions = encounter.ground.description.regions
    return region < len(regions) and offset + width <= regions[region].size


def _silent(encounter: Encounter, command: Command, payload: bytes) -> None:
    """Send a request that wants no reply; one that comes all the same is an error of the channel's."""
    channel = encounter.client.channel
    number = encounter.client.dialect.number(command)
    channel.send_bytes(Message(channel.fresh_id(), number, NO_REPLY, 0, payload).encode())
    encounter.ask(Command.REGION_READ, REGION_ACCESS.pack(0, CONFIG_SPACE, 4))


def write_many(encounter: Encounter, values: tuple[int, ...], count: int) -> None:
    """Writes in one message are done all, and in order; what announces more of them than there are is refused."""
    server = encounter.client.server
    if not encounter.accessible or server is None or not server.capabilities.write_multiple:
        return
    if not encounter.ground.keeps_line:
        return
    entries = b"".join(
        WRITE_MULTI_ENTRY.struct.pack(INTERRUPT_LINE, CONFIG_SPACE, 1, bytes([value])) for value in values
    )
    before = encounter.client.config_read(INTERRUPT_LINE, 1)
    reply = encounter.ask(Command.REGION_WRITE_MULTI, WRITE_MULTI.pack(len(values) + count, tail=entries))
    if count:
        encounter.refused(reply, "REGION_WRITE_MULTI with other writes than announced")
        expected = before
    else:
        encounter.good(reply, "REGION_WRITE_MULTI")
        done = WRITE_MULTI.unpack(reply.payload).nr_writes
        require(done == len(values), f"{len(values)} writes are answered with {done}")
        expected = bytes(values[-1:]) or before
    found = encounter.client.config_read(INTERRUPT_LINE, 1)
    wrong = f"the interrupt line is {found[0]:#x} after REGION_WRITE_MULTI, not {expected[0]:#x}"
    require(found == expected, wrong)


def burst(encounter: Encounter, values: tuple[int, ...], posted: int, place: int) -> None:
    """Writes and reads that are sent at once are answered in order, and a read sees the write before it."""
    line = ((int(CONFIG_SPACE), INTERRUPT_LINE, 1),) if encounter.ground.keeps_line else ()
    places = (*line, *((*known, 4) for known in encounter.ground.stores))
    if not encounter.accessible or not places:
        return
    region, offset, width = places[place % len(places)]
    channel, dialect = encounter.client.channel, encounter.client.dialect
    pending, data = [], bytearray()
    for value in values:
        written = REGION_ACCESS.pack(offset, region, width, tail=value.to_bytes(width, "little"))
        id = channel.fresh_id()
        if not posted:
            pending.append(channel.expect(id, "REGION_WRITE"))
        flags = NO_REPLY if posted else 0
        data += Message(id, dialect.number(Command.REGION_WRITE), flags, 0, written).encode()
        id = channel.fresh_id()
        pending.append(channel.expect(id, "REGION_READ"))
        asked = REGION_ACCESS.pack(offset, region, width)
        data += Message(id, dialect.number(Command.REGION_READ), payload=asked).encode()
    encounter.touched |= region != CONFIG_SPACE
    encounter.masking |= region in _msix_regions(encounter.ground)
    channel.send_bytes(bytes(data))
    replies = encounter.client.gather(pending)
    for reply in () if posted else replies[::2]:
        encounter.good(reply, "a write in a burst")
    for value, reply in zip(values, replies if posted else replies[1::2], strict=True):
        encounter.good(reply, "a read in a burst")
        got = encounter.client.read_reply(reply, width)[0]
        require(got == value, f"a read behind a write of {value:#x} to {region}:{offset:#x} says {got:#x}")


def write_config(encounter: Encounter, offset: int, data: tuple[int, ...]) -> None:
    """A write to configuration space changes nothing outside of it, and no id."""
    size = encounter.ground.config_size
    if not encounter.accessible or offset + len(data) > size:
        return
    client = encounter.client
    before = client.config_read(0, size)
    reply = encounter.ask(Command.REGION_WRITE, REGION_ACCESS.pack(offset, CONFIG_SPACE, len(data), tail=bytes(data)))
    encounter.touched = True
    encounter.masking |= offset >= _BEHIND_HEADER or offset < _BEHIND_COMMAND
    after = client.config_read(0, size)
    encounter.note("write", CONFIG_SPACE, offset, len(data), reply)
    encounter.journal.append(Answer("configuration space behind it", "", after, f"region {CONFIG_SPACE}"))
    changed = [at for at in range(size) if before[at] != after[at] and at not in _STATUS]
    if not changed:
        return
    require(not reply.failed, f"a write of configuration space was refused and changed {changed[0]:#x}")
    capabilities = ((found.offset, 2) for found in encounter.ground.description.pci_capabilities if not found.extended)
    for first, length in (*_FIXED, *capabilities):
        if before[first : first + length] != after[first : first + length]:
            raise Found(CONFIG, f"read-only {first:#x}", f"a write has changed what is read-only at {first:#x}")
    outside = [at for at in changed if not offset <= at < offset + len(data)]
    if outside and not _was_reset(after):
        at = outside[0]
        raise Found(CONFIG, "other bytes", f"a write of {len(data)} bytes at {offset:#x} has changed the byte {at:#x}")


def _was_reset(config: bytes) -> bool:
    """Whether the write has reset the function, as FLR and the way out of D3hot do: BARs and command are zeros."""
    return not any(config[4:6]) and not any(config[0x14:0x28])


def size_region(encounter: Encounter, index: int) -> None:
    """A BAR to which all ones are written says its region's size."""
    if not encounter.accessible:
        return
    at = 0
    while at < 6:
        if at == index:
            with encounter.checking() as bench:
                size_bar(bench, at)
            return
        kind = encounter.client.config_read(0x10 + 4 * at, 1)[0]
        at += 2 if not kind & 1 and kind & 6 == 4 else 1


def look_at_mapped(encounter: Encounter, region: int, offset: int) -> None:
    """What is mapped of a region is what a read says, and can be mapped at all."""
    facts = encounter.ground.description.regions[region]
    if not encounter.accessible or not facts.areas or not encounter.client.channel.carries_fds:
        return
    described = encounter.client.region_info(region)
    require(described.mappable, f"region {region} may not be mapped any more")
    first, size = described.mappable[offset % len(described.mappable)]
    require(described.fd is not None, f"region {region} may be mapped and comes without a descriptor")
    try:
        mapped = encounter.client.map_region(described, (first, size))
    except ProtocolError as error:
        raise Found(MAPPED, "cannot be mapped", str(error)) from None
    with mapped:
        at = offset * 4 % size
        reply = encounter.ask(Command.REGION_READ, REGION_ACCESS.pack(first + at, region, 4))
        if not reply.failed and (read := encounter.client.read_reply(reply, 4)) != mapped[at : at + 4]:
            seen = mapped[at : at + 4].hex()
            raise Found(
                MAPPED, "shows another", f"region {region} reads {read.hex()} and shows {seen} where it is mapped"
            )


def check(encounter: Encounter, id: str) -> None:
    """A check of the conformance suite that holds at any time."""
    if not encounter.accessible:
        return

    def attempt(check: Check[Bench]) -> None:
        with encounter.checking() as bench:
            check.run(bench)

    encounter.judge(id, attempt)


@lru_cache(1)
def _stateless() -> dict[str, Check[Bench]]:
    return {check.id: check for check in CATALOGUE if check.group in _GROUPS and check.id not in _ALONE}


def kinds(ground: Ground) -> list[Kind[Encounter]]:
    """The steps of this module that the device can be asked for."""
    regions = len(ground.description.regions)
    existing = tuple(region.index for region in ground.regions)
    registers = ground.registers
    bars = tuple(region for region, _ in registers) or tuple(bar.index for bar in ground.bars) or (CONFIG_SPACE,)
    sizes = {region.size for region in ground.regions}
    ends = tuple(size + by for size in sizes for by in (-4, -1, 0, 1) if size + by >= 0)
    known = tuple(at for _, at in registers) * (1 + 2 * len(_OFFSETS) // (1 + len(registers)))
    offsets = (*known, *_OFFSETS, *ends, 1 << 40, (1 << 64) - 8)
    width = Pick((4, 4, 4, 1, 2, 8))
    line = Several(Number(0, 255), 1, 4)
    places = (INTERRUPT_LINE, 0, *[4] * 5, 8, 0xC, 0xE, *range(0x10, 0x40, 4), *_capability_bytes(ground))
    dialect = ground.description.dialect
    checks = [id for id, check in _stateless().items() if check.dialects is None or dialect in check.dialects]
    found: list[Kind[Encounter]] = [
        Kind("describe_region", describe_region, {"index": Number(0, regions), "room": Pick((0, 0, 8, 48, 512))}),
        Kind("describe_irq", describe_irq, {"index": Number(0, len(ground.description.irqs))}),
        Kind(
            "read",
            read,
            {"region": Pick((*bars, *bars, *existing, regions)), "offset": Few(offsets, 4), "width": width},
        ),
        Kind(
            "write",
            write,
            {
                "region": Pick((*bars, *bars, *bars, *[regions] * (1 + len(bars) // 2))),
                "offset": Few(offsets, 4),
                "width": width,
                "value": Few(VALUES, 4),
                "posted": Pick((0, 0, 1)),
            },
            weight=3,
        ),
        Kind("write_many", write_many, {"values": line, "count": Pick((0, 0, 1, 3))}),
        Kind(
            "burst",
            burst,
            {"values": Several(Number(1, 2), 1, 4), "posted": Pick((0, 1)), "place": Number(0, 15)},
        ),
        Kind("write_config", write_config, {"offset": Pick(places), "data": Several(Number(0, 255), 1, 4)}),
        Kind("size_region", size_region, {"index": Number(0, 5)}),
        Kind("check", check, {"id": Pick(checks)}, weight=2),
    ]
    if mappable := tuple(region.index for region in ground.regions if region.areas):
        found.append(Kind("look_at_mapped", look_at_mapped, {"region": Pick(mappable), "offset": Number(0, 0x3FF)}))
    return found


def _capability_bytes(ground: Ground) -> list[int]:
    """Some bytes of each capability of the first 256 bytes."""
    starts = (found.offset for found in ground.description.pci_capabilities if not found.extended)
    return [start + at for start in starts for at in (0, 1, 2, 4, 8)]
