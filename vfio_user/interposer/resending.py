"""Guest memory written once more to the client as it is: QEMU then takes its pages for dirty, and migrates them again.

A byte is enough for a page, and a page costs a few microseconds: many messages go out at once, and only the last of
them is answered.
"""

from __future__ import annotations

import os
import sys
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import chain, islice

from userdev.errors import UserError
from userdev.relay.direction import Direction
from userdev.relay.loop import Task
from vfio_user.interposer.errors import RequestRefused
from vfio_user.interposer.guest_memory import read_bytes
from vfio_user.interposer.own_calls import PAGE, TIMEOUT_SECONDS, exchange_all
from vfio_user.interposer.session import ForwardedSession
from vfio_user.interposer.unmapped import UnmappedMemory
from vfio_user.wire import Command

AT_ONCE = 512
"""Messages that are answered together. Two such batches are on their way at a time, so that nobody waits for us."""

MAX_PAGES = 1 << 24
"""Pages of memory that was unmapped, each of which is looked for: 64 GiB of the smallest."""


async def resend(session: ForwardedSession, pages: Iterable[int]) -> int:
    """Write the first byte of each page (an IOVA) again; returns how many there were. The guest must stand still.

    Raises:
        RequestRefused: the client refused one, QEMU with ENODEV while the device is no bus master; or one cannot be
            read.
    """
    sent = 0
    under_way: list[Task[None]] = []
    try:
        for some in _batches(iter(pages)):
            payloads = _writes(session, some)
            under_way.append(Task(_write_all(session, payloads)))
            sent += len(payloads)
            if len(under_way) > 1:
                await under_way[0]
                del under_way[0]
        for batch in under_way:
            await batch
    except Exception:  # once this is told, the guest may run, and what is on its way would write over what it has then
        for batch in under_way:
            with suppress(Exception):
                await batch
        raise
    finally:
        for batch in under_way:
            batch.cancel()
    return sent


def pages_in(start: int, size: int) -> Iterator[int]:
    """The first byte in each page of a client's that a run of bytes has something of."""
    return chain((start,), range(start - start % PAGE + PAGE, start + size, PAGE))


def unmapped_pages(session: ForwardedSession) -> tuple[set[int], set[int]]:
    """What the server may have written and had unmapped since it logs: an IOVA in each page that is mapped elsewhere by
    now, and the offsets in the guest's memory file of those that are not.

    Raises:
        UserError: it is more than is kept, or than can be written again.
    """
    unmapped = session.model.unmapped if session.model.unmapped is not None else UnmappedMemory()
    if not unmapped.is_whole or sum(gone.size for gone in unmapped) > MAX_PAGES * PAGE:
        raise UserError(
            "more memory was unmapped while the server logged its writes than can be written again",
            hint="what it wrote there is lost to a migration: try again while the guest maps less",
        )
    maps = [mapping for mapping in session.model.maps if mapping.written_directly]
    mapped = sorted((os.fstat(one.fd).st_ino, one.offset, one.size, one.iova) for one in maps)
    iovas, offsets = set(), set()
    for inode, start, length in unmapped:
        for place in pages_in(start, length):
            before = bisect_right(mapped, (inode, place, sys.maxsize)) - 1
            there, offset, size, iova = mapped[before] if before >= 0 else (0, 0, 0, 0)
            if there == inode and place < offset + size:
                iovas.add(iova + place - offset)
            else:
                offsets.add(place - place % PAGE)
    return iovas, offsets


async def _write_all(session: ForwardedSession, payloads: list[bytes]) -> None:
    number = session.dialect.number(Command.DMA_WRITE)
    reply = await exchange_all(session, Direction.TO_CLIENT, number, payloads, timeout=TIMEOUT_SECONDS)
    if reply.failed:
        raise RequestRefused(Command.DMA_WRITE.value, reply.errno)


def _writes(session: ForwardedSession, pages: list[int]) -> list[bytes]:
    """A DMA_WRITE for each."""
    shape = session.dialect.shapes.get(Command.DMA_WRITE)
    if shape is None or shape.request is None:
        raise UserError(f"dialect {session.dialect.name} has no DMA_WRITE")
    pack = shape.request.struct.pack
    return [pack(iova, 1) + byte for iova, byte in zip(pages, read_bytes(session, pages), strict=True)]


def _batches(pages: Iterator[int]) -> Iterator[list[int]]:
    while batch := list(islice(pages, AT_ONCE)):
        yield batch
