"""Guest memory: as it is, through the client's descriptors; or written over DMA_WRITE, so that the client sees it."""

from __future__ import annotations

import errno as errnos
import os
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from vfio_user.interposer.asking import PAGE, Refused, data_limit, request
from vfio_user.interposer.direction import Direction
from vfio_user.interposer.dirty_bitmap import Run
from vfio_user.interposer.loop import Task
from vfio_user.interposer.picture import Mapping
from vfio_user.interposer.session import Session
from vfio_user.wire import Command

AT_ONCE = 64
BYTES_AT_ONCE = 1 << 20
"""Messages to a peer that are not answered yet, and what they carry."""


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
