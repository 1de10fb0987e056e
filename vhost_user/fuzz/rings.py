"""Steps about rings: requests of the device, rings that stop and start, and contents that no driver may have."""

from __future__ import annotations

import struct
from contextlib import nullcontext
from typing import NamedTuple

from userdev.fuzz import Blob, Found, Kind, Number, Pick
from vhost_user.frontend.driver import Descriptor
from vhost_user.frontend.queue import Queue
from vhost_user.frontend.split import SplitDriver
from vhost_user.fuzz.encounter import KINDS, RING, Encounter, Offered
from vhost_user.fuzz.oracles import BLOCKS, RINGS
from vhost_user.rings.ring import INDIRECT, NEXT, WRITE
from vhost_user.wire import ProtocolFeature, VirtioFeature

SECTOR = 512
SECTORS = 8
"""That are written and read: the first ones of the disk."""
_READ, _WRITE = 0, 1
_QUIET = 0.02
"""Seconds that a ring with contents of no driver is looked at: nothing tells that nothing will be done."""
PAGE = 4096


def start(encounter: Encounter) -> None:
    """A ring can be started."""
    encounter.started()


def stop(encounter: Encounter) -> None:
    """A ring that is stopped says where it would go on: behind all that has come back."""
    queue = encounter.queue
    if queue is None or not encounter.running:
        return
    encounter.stop()
    said, expected = queue.base_at_stop, queue.driver.base
    if said != expected:
        raise Found(RINGS, "base", f"a ring is stopped at {said:#x}, and its driver is at {expected:#x}")


def enable(encounter: Encounter, on: int) -> None:
    """A ring can be disabled, and enabled again."""
    if encounter.queue is not None and encounter.running:
        encounter.queue.enable(bool(on))
        if not on:
            encounter.queue.enable()


def serve(encounter: Encounter, count: int, indirect: int, one_by_one: int, border: int = 0) -> None:
    """Requests of the device come back right, and its driver is told."""
    queue = encounter.started()
    if queue is None or encounter.device is None:
        return
    with_table = bool(indirect) and encounter.front_end.has(VirtioFeature.INDIRECT_DESC)
    request = encounter.device.request
    batches = [1] * count if one_by_one else [min(count, queue.size // max(1, len(request)))]
    for batch in batches:
        with encounter.over_a_border(border) if border else nullcontext():
            done = encounter.served(queue, batch, *request, indirect=with_table)
        for completion in done:
            if not encounter.device.is_right(completion):
                shown = completion.writable[-16:].hex()
                raise Found(
                    RINGS, "answer", f"a request is answered with {completion.written} bytes, {shown} at the end"
                )


def there_before(encounter: Encounter, count: int) -> None:
    """Requests that were made available before a ring runs are served when it is kicked."""
    queue = encounter.started()
    if queue is None or encounter.device is None:
        return
    encounter.stop()
    for _ in range(count):
        queue.put(*encounter.device.request)
    encounter.started()
    queue.wait_used(count)


def log(encounter: Encounter, on: int) -> None:
    """What is written is marked from now on, or not any more."""
    front_end = encounter.front_end
    if not front_end.has(ProtocolFeature.LOG_SHMFD) or VirtioFeature.LOG_ALL not in encounter.offered.features:
        return
    if on:
        encounter.log = front_end.share_log()
        front_end.log_writes()
    elif encounter.log is not None:
        front_end.log_writes(False)
        encounter.log = None


def write_blocks(encounter: Encounter, sector: int, data: str, cut: int, merged: int) -> None:
    """What is written to a disk is what is read of it, however the request is cut."""
    queue = _disk(encounter)
    if queue is None:
        return
    block = (bytes.fromhex(data) or b"\0").ljust(SECTOR, b"\x5a")[:SECTOR]
    whole = struct.pack("<IIQ", _WRITE, 0, sector) + block
    at = 16 + cut % SECTOR
    pieces = [whole] if merged else [whole[:16], whole[16:at], whole[at:]]
    buffers: tuple[bytes | int, ...] = (*filter(None, pieces), 1)
    (done,) = encounter.served(queue, 1, *buffers)
    if done.writable[-1] == 0:
        encounter.blocks[sector] = block
        return
    encounter.blocks.pop(sector, None)
    if sector < encounter.offered.sectors:
        raise Found(BLOCKS, "not written", f"a write of sector {sector} ends with status {done.writable[-1]}")


def read_blocks(encounter: Encounter, sector: int, cut: int) -> None:
    """A read has what was written last."""
    queue = _disk(encounter)
    if queue is None:
        return
    header = struct.pack("<IIQ", _READ, 0, sector)
    at = cut % SECTOR
    buffers: tuple[bytes | int, ...] = (header, *((at, SECTOR - at) if at else (SECTOR,)), 1)
    (done,) = encounter.served(queue, 1, *buffers)
    if done.writable[-1] and sector < encounter.offered.sectors:
        raise Found(BLOCKS, "not read", f"a read of sector {sector} ends with status {done.writable[-1]}")
    known = encounter.blocks.get(sector)
    if done.writable[-1] == 0 and known is not None and done.writable[:SECTOR] != known:
        raise Found(
            BLOCKS, "other data", f"sector {sector} has {done.writable[:8].hex()}, and {known[:8].hex()} was written"
        )


def _disk(encounter: Encounter) -> Queue | None:
    if encounter.device is None or encounter.device.name != "blk":
        return None
    return encounter.started()


class Content(NamedTuple):
    """What no driver may put into a ring: descriptors (place, length, flags, next) from the first on, and heads."""

    descriptors: tuple[tuple[str, int, int, int], ...] = ()
    heads: tuple[int, ...] = (0,)


_WRONG: dict[str, Content] = {
    "head": Content(heads=(RING,)),
    "far head": Content(heads=(0xFFFF,)),
    "next": Content((("inside", 16, NEXT, RING),)),
    "loop": Content((("inside", 16, NEXT, 0),)),
    "outside": Content((("outside", 16, WRITE, 0),)),
    "over the end": Content((("end", 16, WRITE, 0),)),
    "huge": Content((("inside", 0xFFFF_FFFF, WRITE, 0),)),
    "order": Content((("inside", 16, WRITE | NEXT, 1), ("inside", 16, 0, 0))),
    "table": Content((("inside", 15, INDIRECT, 0),)),
    "table of tables": Content((("table", 16, INDIRECT, 0),)),
    "far": Content((("inside", 16, 0, 0),), heads=(0,) * (RING + 1)),
}


def break_ring(encounter: Encounter, how: str, kind: int) -> None:
    """What no driver may put into a ring breaks that ring at most: the next front-end has one that is served."""
    queue = encounter.started()
    if queue is None or not isinstance(queue.driver, SplitDriver) or queue.outstanding:
        return
    memory = encounter.front_end.memory
    inside = memory.allocate(64)
    table = queue.driver.table([Descriptor(inside, 16, INDIRECT)])
    at = memory.allocate(len(table))
    memory[at : at + len(table)] = table
    places = {"inside": inside, "outside": memory.size + PAGE, "end": memory.size - 8, "table": at}
    before = bytearray(memory[0 : memory.size])
    for index, (place, length, flags, following) in enumerate(_WRONG[how].descriptors):
        queue.driver.describe(index, places[place], length, flags, following)
    for head in _WRONG[how].heads:
        queue.driver.offer(head)
    queue.kick()
    queue.wait_err(_QUIET)
    encounter.front_end.settle()
    encounter.unwritten(before, [(inside, 64), (places["end"], 8)])
    encounter.rejoin(kind)
    serve(encounter, 2, 0, 0)


def kinds(offered: Offered, device: str | None) -> list[Kind[Encounter]]:
    """The steps of this module, where somebody has said what the device is."""
    if device is None:
        return []
    sector, cut = Number(0, SECTORS - 1), Pick((0, 1, 16, 511))
    some = [
        Kind[Encounter]("start", start, {}),
        Kind[Encounter]("stop", stop, {}),
        Kind[Encounter]("enable", enable, {"on": Pick((0, 1))}),
        Kind[Encounter](
            "serve",
            serve,
            {
                "count": Number(1, 24),
                "indirect": Pick((0, 0, 1)),
                "one_by_one": Pick((0, 1)),
                "border": Pick((0, 0, 1, 8, 20)),
            },
            weight=2,
        ),
        Kind[Encounter]("there_before", there_before, {"count": Number(1, 4)}),
        Kind[Encounter]("break_ring", break_ring, {"how": Pick(tuple(_WRONG)), "kind": Number(0, len(KINDS) - 1)}),
    ]
    if VirtioFeature.LOG_ALL in offered.features:
        some.append(Kind[Encounter]("log", log, {"on": Pick((0, 1))}))
    if device == "blk":
        some += [
            Kind[Encounter](
                "write_blocks", write_blocks, {"sector": sector, "data": Blob(0, 8), "cut": cut, "merged": Pick((0, 1))}
            ),
            Kind[Encounter]("read_blocks", read_blocks, {"sector": sector, "cut": cut}, weight=2),
        ]
    return some
