"""Bringing a new server to where the old one was: the conversation that a client has with it, had again."""

from __future__ import annotations

import os
from collections.abc import Coroutine, Iterable, Iterator
from typing import Any

from userdev.descriptors import FileKey, file_key
from userdev.errors import ProtocolError
from userdev.eventfd import signal_eventfd
from userdev.relay.loop import Future, Task
from userdev.whole import write_whole
from vfio_user.interposer import own_calls
from vfio_user.interposer.errors import IncompatibleServer
from vfio_user.interposer.migration import migration_of
from vfio_user.interposer.session import ForwardedSession
from vfio_user.interposer.session_model import DmaMapping, SessionModel
from vfio_user.wire import Command
from vfio_user.wire import layouts as at
from vfio_user.wire.constants import IrqIndex, IrqSetFlags, MigrationState, RegionIndex
from vfio_user.wire.region_info import RegionDescription, decode_region_info

WINDOW = 64
"""Requests sent without waiting, as QEMU does with DMA_MAP."""
ENTRIES_PER_MESSAGE = 16


async def save_state(session: ForwardedSession) -> int:
    """Stop the device and take its state; a descriptor with all of it, from its beginning."""
    migration = await migration_of(session)
    await migration.set_state(MigrationState.STOP_COPY)
    limit = own_calls.data_limit(session)
    state = os.memfd_create("device-state")
    try:
        while piece := await migration.read(limit):
            write_whole(state, piece)
    except BaseException:
        os.close(state)
        raise
    os.lseek(state, 0, os.SEEK_SET)
    return state


async def restore(
    session: ForwardedSession, state: int | None = None, starts_in: float = own_calls.TIMEOUT_SECONDS
) -> None:
    """Tell the session's new server what the old one knew; hand it the device's state where there is one.

    Its first answer may take `starts_in` seconds: one that has inherited its socket is connected before it has started.

    Raises:
        IncompatibleServer: it cannot take the old one's place.
        RequestRefused, PeerLost, TimeoutError: it does not take part.
    """
    model = session.model
    if model.incomplete:
        raise IncompatibleServer(f"it cannot be told all that the old one knew: {model.incomplete}")
    await _version(session, model, max(starts_in, own_calls.TIMEOUT_SECONDS))
    await _same_regions(session, model)
    await in_windows(_map(session, maps) for maps in _map_messages(session, model))
    if state is not None:
        migration = await migration_of(session)
        await migration.set_state(MigrationState.RESUMING)
        while piece := os.read(state, migration.piece_size):
            await migration.write(piece)
    for offset, data in list(model.config_to_restore()):
        await own_calls.region_write(session, RegionIndex.CONFIG, offset, data)
    for payload, fds in list(irq_messages(model, fds_per_message(session))):
        await own_calls.request(session, Command.SET_IRQS, payload, fds=fds)
    if state is not None:
        await (await migration_of(session)).set_state(MigrationState.RUNNING)
    else:
        model.set_migration_state(MigrationState.RUNNING)


def fds_per_message(session: ForwardedSession) -> int:
    """Descriptors that both sides agreed to take in one message."""
    sides = [side.capabilities.fds_per_message for side in (session.model.client, session.model.server) if side]
    return max(1, min([16, *sides]))


def kick(model: SessionModel) -> int:
    """Trigger every MSI and MSI-X vector that is set up: one may have been lost, and drivers bear one too many.

    INTx is a level that a device raises again for as long as it has a cause; without one nobody would lower it, and the
    guest would do nothing but ask whose it is. ERR and REQ are for the client: QEMU stops the guest, or unplugs the
    device.
    """
    kicked = 0
    for index in (IrqIndex.MSI, IrqIndex.MSIX):
        if index not in model.irqs:
            continue
        for fd in model.irqs[index].eventfds.values():
            signal_eventfd(fd)
            kicked += 1
    return kicked


async def in_windows(coroutines: Iterable[Coroutine[Future[Any], None, Any]]) -> None:
    """Run them, at most WINDOW at a time; the first error is raised once all of its window are done."""
    window: list[Task[Any]] = []
    for coroutine in coroutines:
        window.append(Task(coroutine))
        if len(window) >= WINDOW:
            await _all(window)
            window = []
    await _all(window)


async def _all(tasks: list[Task[Any]]) -> None:
    errors = []
    for task in tasks:
        try:
            await task
        except Exception as error:  # raised below, once nothing is under way any more
            errors.append(error)
    if errors:
        raise errors[0]


async def _version(session: ForwardedSession, model: SessionModel, timeout: float) -> None:
    reply = await own_calls.request(session, Command.VERSION, model.version_request or b"", timeout=timeout)
    session.version_answered(reply)
    if reply.payload != model.version_reply:
        session.note("version-differs", before=(model.version_reply or b"").hex(), now=reply.payload.hex())


async def _same_regions(session: ForwardedSession, model: SessionModel) -> None:
    """What the client knows of the regions has to stay true."""
    for index, known in list(model.regions.items()):
        now, needed, file = await _region(session, index, at.REGION_INFO.size)
        if (now.size, now.flags & 7) != (known.size, known.flags & 7):
            raise IncompatibleServer(
                f"region {index} was {known.size:#x} bytes (flags {known.flags:#x}) "
                f"and is now {now.size:#x} (flags {now.flags:#x})"
            )
        mapped = model.region_files.get(index)
        if mapped is None:
            continue
        if file is None:
            _, _, file = await _region(session, index, needed)
        if file != mapped:
            raise IncompatibleServer(
                f"region {index}: what the client has mapped is memory of the old server, and not the new one's: "
                "only servers that map a file, and open it again, can be replaced"
            )


async def _region(session: ForwardedSession, index: int, room: int) -> tuple[RegionDescription, int, FileKey | None]:
    """What the new server says of a region, how many bytes that needs, and which file is to be mapped."""
    ask = at.REGION_INFO.pack(room, 0, index, 0, 0, 0)
    reply = await own_calls.request(session, Command.GET_REGION_INFO, ask)
    try:
        region, needed = decode_region_info(reply.payload)
        return region, needed, file_key(reply.fds[0]) if reply.fds else None
    except ProtocolError as error:
        raise IncompatibleServer(f"the new server's region {index} cannot be understood: {error}") from None


def _map_messages(session: ForwardedSession, model: SessionModel) -> Iterator[list[DmaMapping]]:
    """Which maps go in one message: one, or a table's worth in the draft."""
    maps = list(model.maps)
    step = ENTRIES_PER_MESSAGE if session.dialect.shapes[Command.DMA_MAP].request is None else 1
    step = min(step, fds_per_message(session))
    for start in range(0, len(maps), step):
        yield maps[start : start + step]


async def _map(session: ForwardedSession, maps: list[DmaMapping]) -> None:
    fds = [mapping.fd for mapping in maps if mapping.fd >= 0]
    if session.dialect.shapes[Command.DMA_MAP].request is None:
        payload = b"".join(
            at.DMA_ENTRY_V6.pack(map_.iova, map_.size, map_.offset, map_.protections, map_.flags) for map_ in maps
        )
    else:
        one = maps[0]
        payload = at.DMA_MAP.pack(at.DMA_MAP.size, one.flags, one.offset, one.iova, one.size)
    await own_calls.request(session, Command.DMA_MAP, payload, fds=fds)


def irq_messages(model: SessionModel, fds_each: int) -> Iterator[tuple[bytes, list[int]]]:
    """SET_IRQS messages that set every index up as it was."""
    trigger, unmask = IrqSetFlags.TRIGGER, IrqSetFlags.UNMASK
    for index, irqs in model.irqs.items():
        for action, fds in ((trigger, irqs.eventfds), (unmask, irqs.unmask)):
            for run in _runs(fds, fds_each):
                flags = IrqSetFlags.DATA_EVENTFD | action
                yield at.IRQ_SET.pack(at.IRQ_SET.size, flags, index, run[0], len(run)), [fds[vector] for vector in run]
        flags = IrqSetFlags.DATA_NONE | IrqSetFlags.MASK
        for run in _runs(irqs.masked):
            yield at.IRQ_SET.pack(at.IRQ_SET.size, flags, index, run[0], len(run)), []


def _runs(vectors: Iterable[int], most: int | None = None) -> Iterator[list[int]]:
    """Those that follow one another, at most so many together."""
    run: list[int] = []
    for vector in sorted(vectors):
        if run and (vector != run[-1] + 1 or len(run) == most):
            yield run
            run = []
        run.append(vector)
    if run:
        yield run
