"""What the interposer can ask of a server or a client, a function each, on top of `Session.ask`.

They are coroutines of `vfio_user.interposer.loop`. A refusal by the peer raises `Refused` with its errno; a peer that
is gone or silent raises `Lost` or `TimeoutError`.
"""

from __future__ import annotations

import errno as errnos
import os
import re
from collections import deque
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass

from vfio_user.errors import ProtocolError
from vfio_user.interposer import migration_region
from vfio_user.interposer.asking import PAGE as PAGE
from vfio_user.interposer.asking import TIMEOUT as TIMEOUT
from vfio_user.interposer.asking import Refused as Refused
from vfio_user.interposer.asking import data_limit as data_limit
from vfio_user.interposer.asking import feature as feature
from vfio_user.interposer.asking import region_read as region_read
from vfio_user.interposer.asking import region_write as region_write
from vfio_user.interposer.asking import request as request
from vfio_user.interposer.direction import Direction
from vfio_user.interposer.loop import Task
from vfio_user.interposer.migration_region import RegionMigration
from vfio_user.interposer.picture import Mapping
from vfio_user.interposer.session import Session
from vfio_user.wire import Command
from vfio_user.wire import layouts as at
from vfio_user.wire.constants import Feature, FeatureFlags, MigrationState, MigrationSupport

AT_ONCE = 64
BYTES_AT_ONCE = 1 << 20
"""Messages to a peer that are not answered yet, and what they carry."""
Run = tuple[int, int]
"""(IOVA, bytes) of a piece of guest memory."""


async def migration_support(session: Session) -> MigrationSupport | None:
    """What the server can do of migration v2, by v1's region where it has that instead; None: it cannot migrate."""
    session.picture.migration_asked = True
    with suppress(Refused, ProtocolError):
        body = await feature(session, Feature.MIGRATION, FeatureFlags.GET, room=at.MIGRATION_FLAGS.size)
        return MigrationSupport(at.MIGRATION_FLAGS.unpack(body).flags)
    with suppress(Refused, ProtocolError):
        session.picture.migration_region = session.picture.migration_region or await migration_region.find(session)
    return MigrationSupport.STOP_COPY | MigrationSupport.PRE_COPY if session.picture.migration_region else None


async def _by_region(session: Session) -> RegionMigration | None:
    """How to migrate the session's server where that is not by messages; it is asked once."""
    if not session.picture.migration_asked:
        await migration_support(session)
    return session.picture.migration_region


async def migration_state(session: Session) -> MigrationState:
    """The device's migration state."""
    if (v1 := await _by_region(session)) is not None:
        state = await v1.state(session)
        session.picture.set_migration_state(state)
        return state
    body = await feature(session, Feature.MIG_DEVICE_STATE, FeatureFlags.GET, room=at.DEVICE_STATE.size)
    state = MigrationState(at.DEVICE_STATE.unpack(body).state)
    session.picture.set_migration_state(state)
    return state


async def set_migration_state(session: Session, state: MigrationState, *, timeout: float = TIMEOUT) -> None:
    """Take the device to another migration state; the server goes through those in between."""
    if (v1 := await _by_region(session)) is not None:
        await v1.set_state(session, state, timeout=timeout)
    else:
        body = at.DEVICE_STATE.pack(state, 0)
        await feature(session, Feature.MIG_DEVICE_STATE, FeatureFlags.SET, body, timeout=timeout)
    session.picture.set_migration_state(state)


async def mig_data_read(session: Session, size: int) -> bytes:
    """One piece of the device's state; empty at its end (STOP_COPY) or when there is nothing yet (PRE_COPY)."""
    if (v1 := await _by_region(session)) is not None:
        return await v1.read(session, size)
    payload = at.MIGRATION_DATA.pack(at.MIGRATION_DATA.size + size, size)
    reply = await request(session, Command.MIG_DATA_READ, payload)
    told = at.MIGRATION_DATA.unpack(reply.payload)
    return reply.payload[at.MIGRATION_DATA.size :][: told.size]


async def read_state(session: Session) -> AsyncIterator[bytes]:
    """The device's state, piece by piece, until nothing more comes."""
    size = data_limit(session)
    while piece := await mig_data_read(session, size):
        yield piece


async def mig_data_write(session: Session, data: bytes) -> None:
    """Hand a piece of state to a device that is RESUMING."""
    if (v1 := await _by_region(session)) is not None:
        await v1.write(session, data)
        return
    payload = at.MIGRATION_DATA.pack(at.MIGRATION_DATA.size + len(data), len(data), tail=data)
    await request(session, Command.MIG_DATA_WRITE, payload)


async def logging_start(session: Session, page_size: int, ranges: Iterable[Run] | None = None) -> None:
    """Let the server log the pages it writes, in `ranges` or everywhere that is mapped."""
    if (v1 := await _by_region(session)) is not None:
        await v1.start_logging(session)
        return
    wanted = list(ranges) if ranges is not None else mapped(session)
    body = at.LOGGING_CONTROL.pack(page_size, len(wanted), 0)
    body += b"".join(at.LOGGING_RANGE.pack(*run) for run in wanted)
    await feature(session, Feature.DMA_LOGGING_START, FeatureFlags.SET, body)


async def logging_stop(session: Session) -> None:
    """Let it end that."""
    if (v1 := await _by_region(session)) is not None:
        await v1.stop_logging(session)
        return
    await feature(session, Feature.DMA_LOGGING_STOP, FeatureFlags.SET, at.LOGGING_CONTROL.pack(0, 0, 0))


async def logging_report(session: Session, page_size: int, run: Run) -> bytes:
    """The dirty bitmap of a range since it was last asked for: a bit per page, in 64-bit words."""
    iova, length = run
    pages = -(-length // page_size)
    size = -(-pages // 64) * 8
    if (v1 := await _by_region(session)) is not None:
        return await v1.report(session, page_size, iova, length, size)
    body = at.LOGGING_REPORT.pack(iova, length, page_size)
    found = await feature(session, Feature.DMA_LOGGING_REPORT, FeatureFlags.GET, body, room=size)
    return found[at.LOGGING_REPORT.size :][:size]


def mapped(session: Session) -> list[Run]:
    """All of the guest's memory that the server was told of."""
    return [(mapping.iova, mapping.size) for mapping in session.picture.maps.values()]


def dirty_pages(bitmap: bytes) -> Iterator[int]:
    """The numbers of the pages that a dirty bitmap marks."""
    for dirty in _DIRTY.finditer(bitmap):  # a sparse bitmap is mostly zeros
        first = dirty.start() * 8
        for byte in dirty.group():
            for bit in _BITS[byte]:
                yield first + bit
            first += 8


_DIRTY = re.compile(rb"[^\0]+")
_BITS = tuple(tuple(bit for bit in range(8) if byte >> bit & 1) for byte in range(256))


def dirty_runs(bitmap: bytes, iova: int, length: int, page_size: int) -> Iterator[Run]:
    """The ranges that a dirty bitmap marks, adjacent pages together, cut at the end of the range."""
    start = end = -1
    for page in dirty_pages(bitmap):
        if page != end:
            if start >= 0:
                yield _run(start, end, iova, length, page_size)
            start = page
        end = page + 1
    if start >= 0:
        yield _run(start, end, iova, length, page_size)


def _run(first: int, end: int, iova: int, length: int, page_size: int) -> Run:
    at_byte = first * page_size
    return iova + at_byte, min(end * page_size, length) - at_byte


def read_memory(session: Session, iova: int, size: int) -> bytes:
    """Guest memory as it is, through the descriptors the client mapped it with.

    Raises:
        Refused: (EFAULT) some of it is not mapped, or was mapped without a descriptor.
    """
    found = bytearray()
    while len(found) < size:
        place = iova + len(found)
        mapping = session.memory.mapping(place)
        if mapping is None or mapping.fd < 0:
            raise Refused(f"no memory can be read at IOVA {place:#x}", errnos.EFAULT)
        data = os.pread(
            mapping.fd, min(size - len(found), _left(mapping, place)), mapping.offset + place - mapping.iova
        )
        if not data:
            raise Refused(f"the memory mapped at IOVA {mapping.iova:#x} ends before it", errnos.EFAULT)
        found += data
    return bytes(found)


def write_memory(session: Session, iova: int, data: bytes) -> None:
    """Write guest memory behind everyone's back; see `read_memory`."""
    view = memoryview(data)
    while view:
        mapping = session.memory.mapping(iova)
        if mapping is None or mapping.fd < 0:
            raise Refused(f"no memory can be written at IOVA {iova:#x}", errnos.EFAULT)
        size = min(len(view), _left(mapping, iova))
        written = os.pwrite(mapping.fd, view[:size], mapping.offset + iova - mapping.iova)
        view, iova = view[written:], iova + written


def _left(mapping: Mapping, place: int) -> int:
    return mapping.iova + mapping.size - place


async def dma_write(session: Session, iova: int, data: bytes) -> None:
    """DMA_WRITE to the client, as if the server did it."""
    number = Command.DMA_WRITE
    layout = session.dialect.shapes[number].request
    assert layout is not None
    await request(session, number, layout.pack(iova, len(data), tail=data), towards=Direction.TO_CLIENT)


@dataclass
class Touched:
    """What `touch` did."""

    messages: int = 0
    bytes: int = 0


async def touch(session: Session, runs: Iterable[Run], *, whole: bool = True, step: int = PAGE) -> Touched:
    """Write guest memory's own content back over DMA_WRITE: QEMU then marks those pages dirty.

    With `whole` a message carries as much of a run as fits; otherwise one byte of every `step` bytes. Several messages
    are on their way at once: the guest stands still meanwhile.
    """
    done = Touched()
    waiting: deque[tuple[int, Task[None]]] = deque()
    on_their_way = 0
    limit = data_limit(session)
    for iova, length in runs:
        end = iova + length
        pieces = range(iova, end, limit) if whole else [iova, *range((iova // step + 1) * step, end, step)]
        for place in pieces:
            data = read_memory(session, place, min(limit, end - place) if whole else 1)
            waiting.append((len(data), Task(dma_write(session, place, data))))
            done.messages += 1
            done.bytes += len(data)
            on_their_way += len(data)
            while len(waiting) > AT_ONCE or on_their_way > BYTES_AT_ONCE:
                size_of_first, first = waiting.popleft()
                await first
                on_their_way -= size_of_first
    for _, task in waiting:
        await task
    return done
