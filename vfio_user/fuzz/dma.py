"""Steps that give the device memory, and take it away: exact ranges, and ranges that are nearly right."""

from __future__ import annotations

import errno

from userdev.conformance.check import require
from userdev.fuzz import Kind, Number, Pick
from vfio_user.client.memory import Mapping
from vfio_user.fuzz.encounter import Encounter, MappedRange
from vfio_user.fuzz.ground import Ground
from vfio_user.fuzz.memory import SLOT, SLOTS, iova_of, offset_of
from vfio_user.wire import DRAFT_V6, Command
from vfio_user.wire.constants import DmaFlagsV6, UnmapFlags
from vfio_user.wire.layouts import DMA_ENTRY_V6, DMA_MAP, DMA_UNMAP

PAGE = 0x1000
_TAKEN = (errno.EINVAL, errno.EEXIST)


def give(encounter: Encounter, slot: int, page: int, pages: int, shift: int, rights: int, shared: int) -> None:
    """A range that overlaps none is taken, and one that overlaps is refused."""
    offset = offset_of(slot) + page * PAGE
    size = pages * PAGE if pages else SLOT - page * PAGE
    size = min(size, SLOT - page * PAGE)
    iova = iova_of(slot) + page * PAGE + shift * PAGE
    with_fd = bool(shared) and encounter.client.channel.carries_fds
    memory = encounter.memory.memory if with_fd else encounter.memory.private
    fds = [memory.fd] if with_fd and memory.fd is not None else []
    wanted = MappedRange(iova, size, with_fd, offset, rights)
    over = [known for known in encounter.maps.values() if known.iova < wanted.end and iova < known.end]
    if not over and rights & 2:
        encounter.memory.give(with_fd, offset, size)
    reply = encounter.ask(Command.DMA_MAP, encounter.map_request(wanted), fds)
    if over:
        same = len(over) == 1 and encounter.map_request(over[0]) == encounter.map_request(wanted)
        if reply.failed or not same:
            encounter.refused(reply, "a range that overlaps another", _TAKEN)
        return
    if reply.failed:
        if rights & 2:
            encounter.memory.take(with_fd, offset, size)
        if encounter.accessible:
            encounter.good(reply, "mapping a range that overlaps none")
        return
    encounter.maps[iova] = wanted
    encounter.client.memory.add(Mapping(iova, size, memory, offset, rights))


def unmap(encounter: Encounter, slot: int, page: int, pages: int, shift: int) -> None:
    """A range that was mapped can be unmapped, and no other."""
    _unmap(encounter, iova_of(slot) + (page + shift) * PAGE, (pages * PAGE) or SLOT - page * PAGE)


def unmap_known(encounter: Encounter, which: int, shift: int, longer: int) -> None:
    """Unmap one of the ranges there are, or nearly that."""
    if encounter.maps:
        known = list(encounter.maps.values())[which % len(encounter.maps)]
        _unmap(encounter, known.iova + shift * PAGE, max(PAGE, known.size + longer * PAGE))


def _unmap(encounter: Encounter, iova: int, size: int) -> None:
    request = encounter.unmap_request(iova, size)
    known = encounter.maps.get(iova)
    exact = known is not None and known.size == size
    if (
        encounter.client.dma_tables
        and not exact
        and any(iova < m.end and m.iova < iova + size for m in encounter.maps.values())
    ):
        return  # of the draft it is no rule what becomes of a part
    within = [each for each in encounter.maps.values() if iova <= each.iova and each.end <= iova + size]
    reply = encounter.ask(Command.DMA_UNMAP, request)
    if exact:
        if reply.failed and not encounter.accessible:
            return
        encounter.good(reply, "unmapping a range that was mapped")
        require(
            encounter.client.dma_tables or reply.payload == request,
            "the reply to DMA_UNMAP is not the request's structure",
        )
        encounter.forget_map(iova)
    elif reply.failed or not within:
        accepted = (errno.ENOENT,) if encounter.accessible else (errno.ENOENT, errno.EINVAL)
        encounter.refused(reply, "unmapping a range that was not mapped", accepted)
    else:  # a range around others may be taken as the kernel takes it
        for each in within:
            encounter.forget_map(each.iova)


def unmap_all(encounter: Encounter, address: int) -> None:
    """All ranges can be taken away at once, and that request has no address."""
    reply = encounter.ask(Command.DMA_UNMAP, DMA_UNMAP.pack(DMA_UNMAP.size, UnmapFlags.ALL, address, 0))
    if address:
        encounter.refused(reply, "unmapping all with an address")
        return
    if reply.failed and not encounter.accessible:
        return
    encounter.good(reply, "unmapping all")
    for iova in list(encounter.maps):
        encounter.forget_map(iova)


def map_wrong(encounter: Encounter, what: str, shared: int) -> None:
    """A range that cannot be is refused, and nothing is mapped."""
    fds = [encounter.memory.memory.fd] if shared and encounter.client.channel.carries_fds else []
    flags, iova, size, argsz = 3, 1 << 40, SLOT, DMA_MAP.size
    match what:
        case "flag":
            flags |= 0x10
        case "wraps":
            iova = (1 << 64) - PAGE
        case "argsz":
            argsz -= 1
        case "modes":
            flags |= 12
        case "empty" if fds:
            size = 0
        case "mmap" if not fds:
            flags |= 4
        case _:
            return
    reply = encounter.ask(
        Command.DMA_MAP, DMA_MAP.pack(argsz, flags, 0, iova, size), [fd for fd in fds if fd is not None]
    )
    encounter.refused(reply, f"a map that cannot be ({what})")


def map_wrong_entry(encounter: Encounter, what: str, shared: int) -> None:
    """A table with an entry that cannot be is refused, and nothing of it is mapped: neither is the one before it."""
    with_fd = bool(shared) and encounter.client.channel.carries_fds and encounter.memory.memory.fd is not None
    fds = [encounter.memory.memory.fd] if with_fd else []
    flags, rights, iova, size = int(DmaFlagsV6.MAPPABLE if with_fd else 0), 3, 1 << 40, SLOT
    match what:
        case "flag":
            flags |= 0x10
        case "rights":
            rights |= 8
        case "wraps":
            iova = (1 << 64) - PAGE
        case "empty" if fds:
            size = 0
        case "mmap" if not fds:
            flags |= int(DmaFlagsV6.MAPPABLE)
        case "cut" | "none":
            pass
        case _:
            return
    entry = DMA_ENTRY_V6.pack(iova, size, 0, rights, flags)
    good = DMA_ENTRY_V6.pack(1 << 41, SLOT, 0, 3, 0)
    table = {"cut": entry[:-1], "none": b""}.get(what, good + entry)
    reply = encounter.ask(Command.DMA_MAP, table, [fd for fd in fds if fd is not None])
    encounter.refused(reply, f"a table that cannot be ({what})")
    accepted = (errno.ENOENT,) if encounter.accessible else (errno.ENOENT, errno.EINVAL)
    gone = encounter.ask(Command.DMA_UNMAP, encounter.unmap_request(1 << 41, SLOT))
    encounter.refused(gone, "unmapping what a refused table would have mapped", accepted)


def kinds(ground: Ground) -> list[Kind[Encounter]]:
    """The steps of this module, where the device does DMA."""
    if not ground.does_dma:
        return []
    slot, page, pages = Number(0, SLOTS - 1), Pick((0, 0, 0, 1, 3)), Pick((0, 0, 1, 2))
    shift = Pick((0, 0, 0, -1, 1))
    wrong = Pick(("flag", "wraps", "argsz", "modes", "empty", "mmap"))
    found: list[Kind[Encounter]] = [
        Kind(
            "give",
            give,
            {
                "slot": slot,
                "page": page,
                "pages": pages,
                "shift": shift,
                "rights": Pick((3, 3, 3, 1, 2)),
                "shared": Pick((1, 1, 0)),
            },
            weight=3,
        ),
        Kind("unmap", unmap, {"slot": slot, "page": page, "pages": pages, "shift": shift}),
        Kind("unmap_known", unmap_known, {"which": Number(0, 7), "shift": shift, "longer": shift}),
    ]
    if ground.description.dialect == DRAFT_V6.name:
        wrong = Pick(("flag", "wraps", "cut", "rights", "empty", "none", "mmap"))
        return [*found, Kind("map_wrong_entry", map_wrong_entry, {"what": wrong, "shared": Pick((0, 1))})]
    return [
        *found,
        Kind("unmap_all", unmap_all, {"address": Pick((0, 0, PAGE))}),
        Kind("map_wrong", map_wrong, {"what": wrong, "shared": Pick((0, 1))}),
    ]
