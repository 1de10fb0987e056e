"""What each command does: from the message's bytes to the device and back, one function per command and layout.

A handler gets the session and the message, and returns the reply's payload and descriptors. It raises `ProtocolError`
with the errno to answer before it changes anything. Descriptors it does not take out of `message.fds` are closed by
the session. `HANDLERS` is the table; a dialect only says which of them can be reached, and by which number.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import TYPE_CHECKING

from userdev.errors import AUTHORS_FAILURES, ProtocolError
from vfio_user.device.irq_wiring import IrqRequest
from vfio_user.server import migration_commands
from vfio_user.server.dirty_pages import bitmap_report, bitmaps_report_v6, handle_dirty_pages
from vfio_user.server.handling import ServedFunction
from vfio_user.wire import Command, Message
from vfio_user.wire import layouts as at
from vfio_user.wire.constants import (
    IRQ_ACTION,
    IRQ_DATA,
    NO_FD,
    DeviceFlags,
    DmaFlags,
    DmaFlagsV6,
    IrqSetFlags,
    RegionFlags,
    UnmapFlags,
)
from vfio_user.wire.region_info import RegionDescription, encode_region_info
from vfio_user.wire.unmap_table import unmap_table

if TYPE_CHECKING:
    from vfio_user.device import Dma, RegionInfo
    from vfio_user.migration import Migration

Reply = tuple[bytes, list[int]]
Handler = Callable[[ServedFunction, Message], Reply]

NOTHING: Reply = (b"", [])
_MAX_ARGSZ = 1 << 20


def _refuse(what: str, number: int = errno.EINVAL) -> ProtocolError:
    return ProtocolError(what, number)


# DMA


def dma_map(session: ServedFunction, message: Message) -> Reply:
    """DMA_MAP: add a region of client memory, with its descriptor or without.

    Raises:
        ProtocolError: EINVAL for flags or sizes that contradict each other; or what `DmaMap.map` refuses.
    """
    if session.dialect.shapes[Command.DMA_MAP].request is None:
        return _dma_map_table(session, message)
    request = at.DMA_MAP.unpack(message.payload)
    if request.argsz < at.DMA_MAP.size:
        raise _refuse(f"DMA_MAP: argsz {request.argsz} is below {at.DMA_MAP.size}")
    mode = request.flags & (DmaFlags.MMAP | DmaFlags.FILE_IO)
    if request.flags & ~0xF or mode == DmaFlags.MMAP | DmaFlags.FILE_IO:
        raise _refuse(f"DMA_MAP: flags {request.flags:#x}")
    if mode and not message.fds:
        raise _refuse("DMA_MAP: a mapping mode without a file descriptor")
    with session.quiet():
        fd = message.fds.pop(0) if message.fds else None
        session.function.dma.map(request.addr, request.size, request.flags, fd, request.offset)
    return NOTHING


def _dma_map_table(session: ServedFunction, message: Message) -> Reply:
    entries = list(at.DMA_ENTRY_V6.unpack_all(message.payload))
    mappable = [entry for entry in entries if entry.flags & DmaFlagsV6.MAPPABLE]
    if not entries:
        raise _refuse("DMA_MAP: an empty table")
    if len(mappable) > len(message.fds):
        raise _refuse(f"DMA_MAP: {len(mappable)} mappable entries and {len(message.fds)} file descriptors")
    if any(entry.flags > DmaFlagsV6.MAPPABLE or entry.protections > 3 for entry in entries):
        raise _refuse("DMA_MAP: unknown flags or protections")
    with session.quiet():
        _map_all(session.function.dma, entries, message.fds)
    return NOTHING


def _map_all(dma: Dma, entries: list[at.DmaEntryV6], fds: list[int]) -> None:
    """A table is one request: all of it or nothing. PROT_READ and PROT_WRITE are the bits of DmaFlags."""
    done: list[at.DmaEntryV6] = []
    try:
        for entry in entries:
            fd = fds.pop(0) if entry.flags & DmaFlagsV6.MAPPABLE else None
            dma.map(entry.address, entry.size, entry.protections, fd, entry.offset)
            done.append(entry)
    except AUTHORS_FAILURES:
        for entry in done:
            with contextlib.suppress(*AUTHORS_FAILURES):  # it is gone, and the refusal is the first failure's
                dma.unmap(entry.address, entry.size)
        raise


def dma_unmap(session: ServedFunction, message: Message) -> Reply:
    """DMA_UNMAP: remove regions, all of them with ALL; the reply may carry the dirty bitmap.

    Raises:
        ProtocolError: EINVAL for flags or sizes that contradict each other; or what `DmaMap.unmap` refuses.
    """
    if session.dialect.shapes[Command.DMA_UNMAP].request is None:
        return _dma_unmap_table(session, message)
    request = at.DMA_UNMAP.unpack(message.payload)
    flags = request.flags
    if flags > UnmapFlags.ALL:
        raise _refuse(f"DMA_UNMAP: flags {flags:#x}")
    if not at.DMA_UNMAP.size <= request.argsz <= _MAX_ARGSZ:
        raise _refuse(f"DMA_UNMAP: argsz {request.argsz}")
    dma, echo = session.function.dma, message.payload[: at.DMA_UNMAP.size]
    if flags & UnmapFlags.ALL:
        if request.addr or request.size:
            raise _refuse("DMA_UNMAP: ALL with an address or a size")
        with session.quiet():
            dma.unmap_all()
        return echo, []
    if not flags & UnmapFlags.GET_DIRTY_BITMAP:
        with session.quiet():
            dma.unmap(request.addr, request.size)
        return echo, []
    bitmap = at.BITMAP.unpack(message.payload, at.DMA_UNMAP.size)
    if request.argsz < at.DMA_UNMAP.size + at.BITMAP.size + bitmap.size:
        raise _refuse(f"DMA_UNMAP: argsz {request.argsz} does not hold a bitmap of {bitmap.size} bytes")
    region = dma.find(request.addr)
    if region is None or (region.iova, region.size) != (request.addr, request.size):
        raise _refuse(f"DMA_UNMAP: nothing is mapped at {request.addr:#x} with size {request.size:#x}", errno.ENOENT)
    with session.quiet():
        report = bitmap_report(_migration(session), request.addr, request.size, bitmap.pgsize, bitmap.size)
        dma.unmap(request.addr, request.size)
        bits = report()
    return echo + at.BITMAP.pack(bitmap.pgsize, bitmap.size, tail=bits), []


def _dma_unmap_table(session: ServedFunction, message: Message) -> Reply:
    """The draft's table: one request, all of it or nothing."""
    dma, entries = session.function.dma, unmap_table(message.payload)
    for before, range_ in pairwise(sorted((entry.address, entry.size) for entry in entries)):
        if before == range_ or sum(before) > range_[0]:
            raise _refuse(f"DMA_UNMAP: ranges that overlap at {range_[0]:#x}")
    for entry in entries:
        if not dma.has_any(entry.address, entry.size):
            raise _refuse(f"DMA_UNMAP: nothing is mapped at {entry.address:#x}", errno.ENOENT)
    wanted = [(entry.address, entry.size, entry.bitmap.pgsize, entry.bitmap.size) for entry in entries if entry.bitmap]
    with session.quiet():
        report = bitmaps_report_v6(_migration(session), wanted) if wanted else bytes
        with contextlib.ExitStack() as unmapped:  # all of them, whatever the author's hook raises at one
            for entry in reversed(entries):
                unmapped.callback(dma.unmap, entry.address, entry.size)
        return report(), []


# Description of the device


def get_info(session: ServedFunction, message: Message) -> Reply:
    """DEVICE_GET_INFO: the counts of regions and interrupt indexes (struct vfio_device_info).

    Raises:
        ProtocolError: EINVAL, argsz is below the structure's size.
    """
    if session.dialect.shapes[Command.GET_INFO].request is not None:
        request = at.DEVICE_INFO.unpack(message.payload)
        if request.argsz < at.DEVICE_INFO.size:
            raise _refuse(f"GET_INFO: argsz {request.argsz} is below {at.DEVICE_INFO.size}")
    flags = DeviceFlags.RESET | DeviceFlags.PCI
    return at.DEVICE_INFO.pack(at.DEVICE_INFO.size, flags, session.regions.count, len(session.function.irqs)), []


def get_region_info(session: ServedFunction, message: Message) -> Reply:
    """DEVICE_GET_REGION_INFO: size, flags and capabilities, as far as argsz has room; with the region's descriptor.

    Raises:
        ProtocolError: EINVAL, there is no such region, or argsz is too small for the dialect.
    """
    request = at.REGION_INFO.unpack(message.payload)
    room = request.argsz if request.argsz >= at.REGION_INFO.size else None
    if room is None and session.dialect.region_info_needs_argsz:
        raise _refuse(f"GET_REGION_INFO: argsz {request.argsz} is below {at.REGION_INFO.size}")
    region = session.regions.info(request.region)
    payload, complete = encode_region_info(_description(region), room)
    return payload, [region.fd] if complete and region.fd is not None and region.flags & RegionFlags.MMAP else []


def _description(region: RegionInfo) -> RegionDescription:
    return RegionDescription(region.index, region.size, region.flags, region.offset, region.sparse or None, region.type)


def get_region_io_fds(session: ServedFunction, message: Message) -> Reply:
    """DEVICE_GET_REGION_IO_FDS: the region's ioeventfds, or the room that they need where argsz is less.

    Raises:
        ProtocolError: EINVAL, there is no such region, or a field is not as it has to be; ENOSPC, they have more
            descriptors than the client takes in one message.
    """
    request = at.REGION_IO_FDS.unpack(message.payload)
    if request.flags or request.nr_entries or not at.REGION_IO_FDS.size <= request.argsz <= _MAX_ARGSZ:
        raise _refuse("GET_REGION_IO_FDS: flags, count or argsz")
    region = session.regions.info(request.region)
    if not region.flags:
        raise _refuse(f"GET_REGION_IO_FDS: region {request.region} does not exist")
    entries = region.io_fds[::-1]  # newest first, as libvfio-user lists them
    needed = at.REGION_IO_FDS.size + len(entries) * at.IO_FD.size
    header = at.REGION_IO_FDS.pack(needed, 0, request.region, len(entries))
    if request.argsz < needed:
        return header, []
    fds: list[int] = []

    def slot(fd: int | None) -> int:
        if fd is None:
            return NO_FD
        if fd not in fds:
            fds.append(fd)
        return fds.index(fd)

    body = b"".join(
        at.IO_FD.pack(e.offset, e.size, slot(e.fd), e.type, e.flags, slot(e.shadow_fd), e.shadow_offset, e.datamatch)
        for e in entries
    )
    if len(fds) > (most := session.agreement.client.fds_per_message):
        raise _refuse(f"GET_REGION_IO_FDS: {len(fds)} descriptors, and the client takes {most}", errno.ENOSPC)
    return header + body, fds


# Interrupts


def get_irq_info(session: ServedFunction, message: Message) -> Reply:
    """DEVICE_GET_IRQ_INFO: count and flags of one index (struct vfio_irq_info).

    Raises:
        ProtocolError: EINVAL, there is no such index, or argsz is below the structure's size.
    """
    request = at.IRQ_INFO.unpack(message.payload)
    if request.argsz < at.IRQ_INFO.size:
        raise _refuse(f"GET_IRQ_INFO: argsz {request.argsz} is below {at.IRQ_INFO.size}")
    irqs = session.function.irqs
    if request.irq >= len(irqs):
        raise _refuse(f"GET_IRQ_INFO: index {request.irq}, and the device has {len(irqs)}")
    irq = irqs[request.irq]
    return at.IRQ_INFO.pack(at.IRQ_INFO.size, irq.flags, request.irq, irq.count), []


def set_irqs(session: ServedFunction, message: Message) -> Reply:
    """DEVICE_SET_IRQS: wire, mask, unmask or trigger vectors (struct vfio_irq_set).

    Raises:
        ProtocolError: EINVAL, not exactly one kind of data and one action; or what `Interrupts.set_irqs` refuses.
    """
    request = at.IRQ_SET.unpack(message.payload)
    if request.argsz < at.IRQ_SET.size:
        raise _refuse(f"SET_IRQS: argsz {request.argsz} is below {at.IRQ_SET.size}")
    data = IrqSetFlags(request.flags & IRQ_DATA)
    action = IrqSetFlags(request.flags & IRQ_ACTION)
    if data.value.bit_count() != 1 or action.value.bit_count() != 1:
        raise _refuse(f"SET_IRQS: flags {request.flags:#x} name not exactly one kind of data and one action")
    bools = message.payload[at.IRQ_SET.size :]
    fds, message.fds = message.fds, []
    session.function.interrupts.set_irqs(
        IrqRequest(request.irq, request.start, request.nr_vectors, action, data, bools, fds)
    )
    return NOTHING


# Regions


def region_read(session: ServedFunction, message: Message) -> Reply:
    """REGION_READ: the bytes of a region, behind the request's header.

    Raises:
        ProtocolError: EINVAL, more than `max_data_xfer_size`, or not in the region.
    """
    request = at.REGION_ACCESS.unpack(message.payload)
    if request.length > session.max_data:
        raise _refuse(f"REGION_READ: {request.length} bytes are over the limit of {session.max_data}")
    if not request.length:
        return NOTHING
    data = session.regions.read(request.region, request.offset, request.length)
    return message.payload[: at.REGION_ACCESS.size] + data, []


def region_write(session: ServedFunction, message: Message) -> Reply:
    """The effect only; the session has the reply from `write_reply` and may have sent it."""
    request = at.REGION_ACCESS.unpack(message.payload)
    if request.length:
        data = memoryview(message.payload)[at.REGION_ACCESS.size :]
        session.regions.write(request.region, request.offset, data)
    return write_reply(session, message), []


def write_reply(session: ServedFunction, message: Message) -> bytes:
    """The payload of REGION_WRITE's reply, once its sizes are right."""
    request = at.REGION_ACCESS.unpack(message.payload)
    if len(message.payload) - at.REGION_ACCESS.size != request.length or request.length > session.max_data:
        raise _refuse(f"REGION_WRITE: {request.length} bytes in a message of {message.size}")
    if not request.length:
        return b""
    count = request.length if session.dialect.write_reply_counts else 0
    return at.REGION_ACCESS.pack(request.offset, request.region, count)


def region_write_multi(session: ServedFunction, message: Message) -> Reply:
    """Many small writes in order; the first that fails ends the command, and those before it stay done."""
    request = at.WRITE_MULTI.unpack(message.payload)
    writes = list(at.WRITE_MULTI_ENTRY.unpack_all(message.payload, at.WRITE_MULTI.size))
    if len(writes) != request.nr_writes or any(not 0 < write.length <= 8 for write in writes):
        raise _refuse(f"REGION_WRITE_MULTI: {request.nr_writes} writes in a message of {message.size}")
    for write in writes:
        session.regions.write(write.region, write.offset, write.data[: write.length])
    return at.WRITE_MULTI.pack(len(writes)), []


# Reset and migration


def _migration(session: ServedFunction) -> Migration:
    migration: Migration | None = session.function.migration
    if migration is None:
        raise _refuse("the device does not migrate")
    return migration


def device_reset(session: ServedFunction, message: Message) -> Reply:
    """DEVICE_RESET, once the device stands still; migration leaves ERROR by it.

    Raises:
        ProtocolError: the device refuses to stand still.
    """
    with session.quiet():
        session.function.client_reset()
        if session.function.migration is not None:
            session.function.migration.was_reset()
    return NOTHING


def device_feature(session: ServedFunction, message: Message) -> Reply:
    """DEVICE_FEATURE: migration's state and the dirty log (`migration_commands`); raises as those functions do."""
    return migration_commands.device_feature(_migration(session), message.payload), []


def mig_data_read(session: ServedFunction, message: Message) -> Reply:
    """MIG_DATA_READ: the next bytes of saved state (`migration_commands`); raises as those functions do."""
    limit = session.agreement.data_per_message
    return migration_commands.mig_data_read(_migration(session), message.payload, limit), []


def mig_data_write(session: ServedFunction, message: Message) -> Reply:
    """MIG_DATA_WRITE: bytes of state to load (`migration_commands`); raises as those functions do."""
    migration_commands.mig_data_write(_migration(session), message.payload, session.max_data)
    return NOTHING


def dirty_pages(session: ServedFunction, message: Message) -> Reply:
    """DIRTY_PAGES of v1's dialects (`dirty_pages.handle_dirty_pages`); raises as those functions do."""
    return handle_dirty_pages(_migration(session), message.payload, session.dialect), []


def version_again(session: ServedFunction, message: Message) -> Reply:
    """Refuse a second VERSION.

    Raises:
        ProtocolError: EINVAL, always.
    """
    raise _refuse("VERSION: the version is agreed already")


HANDLERS: Mapping[Command, Handler] = {
    Command.VERSION: version_again,
    Command.DMA_MAP: dma_map,
    Command.DMA_UNMAP: dma_unmap,
    Command.GET_INFO: get_info,
    Command.GET_REGION_INFO: get_region_info,
    Command.GET_REGION_IO_FDS: get_region_io_fds,
    Command.GET_IRQ_INFO: get_irq_info,
    Command.SET_IRQS: set_irqs,
    Command.REGION_READ: region_read,
    Command.REGION_WRITE: region_write,
    Command.REGION_WRITE_MULTI: region_write_multi,
    Command.DEVICE_RESET: device_reset,
    Command.DEVICE_FEATURE: device_feature,
    Command.MIG_DATA_READ: mig_data_read,
    Command.MIG_DATA_WRITE: mig_data_write,
    Command.DIRTY_PAGES: dirty_pages,
}
