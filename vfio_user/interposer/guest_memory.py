"""Guest memory: as it is, through the client's descriptors; or written over DMA_WRITE, so that the client sees it."""

from __future__ import annotations

import errno as errnos
import os
from collections.abc import Iterable

from userdev.memory.bitmap import IovaRange
from userdev.relay.direction import Direction
from userdev.whole import read_whole, write_whole
from vfio_user.interposer.errors import RequestRefused
from vfio_user.interposer.own_calls import data_limit, request
from vfio_user.interposer.session import ForwardedSession
from vfio_user.interposer.session_model import DmaMapping
from vfio_user.wire import Command


def read_memory(session: ForwardedSession, iova: int, size: int) -> bytes:
    """Guest memory as it is, through the descriptors the client mapped it with.

    Raises:
        RequestRefused: (EFAULT) some of it is not mapped, or was mapped without a descriptor.
    """
    found = bytearray()
    while len(found) < size:
        place = iova + len(found)
        mapping = session.memory.mapping(place)
        if mapping is None or mapping.fd < 0:
            raise RequestRefused(f"no memory can be read at IOVA {place:#x}", errnos.EFAULT)
        wanted = min(size - len(found), _left(mapping, place))
        data = read_whole(mapping.fd, wanted, _place(mapping, place))
        if len(data) < wanted:
            raise RequestRefused(f"the memory mapped at IOVA {mapping.iova:#x} ends before it", errnos.EFAULT)
        found += data
    return bytes(found)


def read_bytes(session: ForwardedSession, places: Iterable[int]) -> list[bytes]:
    """A byte at each of these addresses, as `read_memory` has it. Of neighbours the mapping is looked for once.

    Raises:
        RequestRefused: as `read_memory`.
    """
    found = []
    start = end = to_file = 0
    fd = -1
    for iova in places:
        if not start <= iova < end:
            mapping = session.memory.mapping(iova)
            if mapping is None or mapping.fd < 0:
                raise RequestRefused(f"no memory can be read at IOVA {iova:#x}", errnos.EFAULT)
            start, end, fd = mapping.iova, mapping.end, mapping.fd
            to_file = _place(mapping, end - 1) - end + 1
        byte = os.pread(fd, 1, iova + to_file)
        if not byte:
            raise RequestRefused(f"the memory mapped at IOVA {start:#x} ends before it", errnos.EFAULT)
        found.append(byte)
    return found


def write_memory(session: ForwardedSession, iova: int, data: bytes) -> None:
    """Write guest memory behind everyone's back; see `read_memory`."""
    view = memoryview(data)
    while view:
        mapping = session.memory.mapping(iova)
        if mapping is None or mapping.fd < 0:
            raise RequestRefused(f"no memory can be written at IOVA {iova:#x}", errnos.EFAULT)
        size = min(len(view), _left(mapping, iova))
        write_whole(mapping.fd, view[:size], _place(mapping, iova))
        view, iova = view[size:], iova + size


def _place(mapping: DmaMapping, iova: int) -> int:
    """Where that is in the mapped file."""
    place = mapping.offset + iova - mapping.iova
    if place >= 1 << 63:
        raise RequestRefused(
            f"the memory mapped at IOVA {mapping.iova:#x} is at no place that a file has", errnos.EFAULT
        )
    return place


def _left(mapping: DmaMapping, place: int) -> int:
    return mapping.iova + mapping.size - place


async def dma_write(session: ForwardedSession, iova: int, data: bytes) -> None:
    """DMA_WRITE to the client, as if the server did it."""
    number = Command.DMA_WRITE
    layout = session.dialect.shapes[number].request
    assert layout is not None
    await request(session, number, layout.pack(iova, len(data), tail=data), towards=Direction.TO_CLIENT)


async def write_back(session: ForwardedSession, runs: Iterable[IovaRange]) -> tuple[int, int]:
    """Write guest memory's own content back over DMA_WRITE; returns how many messages and bytes that took.

    Whatever else writes there meanwhile may be undone: the guest must stand still.
    """
    messages = written = 0
    for iova, length in runs:
        for place in range(iova, iova + length, limit := data_limit(session)):
            data = read_memory(session, place, min(limit, iova + length - place))
            await dma_write(session, place, data)
            messages, written = messages + 1, written + len(data)
    return messages, written
