"""How a server is migrated: one face, in the terms of migration v2, whatever the server has.

`migration_of` asks a session's server once which form it takes: v2's messages, or v1's region (`migration_region`).
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress

from userdev.errors import ProtocolError
from userdev.memory.bitmap import IovaRange, bitmap_size
from vfio_user.interposer import migration_region
from vfio_user.interposer.errors import RequestRefused
from vfio_user.interposer.own_calls import TIMEOUT_SECONDS, data_limit, feature, request
from vfio_user.interposer.server_migration import ServerMigration
from vfio_user.interposer.session import ForwardedSession
from vfio_user.wire import Command
from vfio_user.wire import layouts as at
from vfio_user.wire.constants import Feature, FeatureFlags, MigrationState, MigrationSupport
from vfio_user.wire.state_pieces import StatePieces, write_of


async def migration_of(session: ForwardedSession, *, timeout: float = TIMEOUT_SECONDS) -> ServerMigration:
    """The migration of the session's server; where it has to be asked it has `timeout` seconds for an answer.

    One that does not migrate is asked as v2 has it, and refuses.
    """
    if session.migration is None:
        session.migration, _ = await _choose(session, timeout)
    return session.migration


async def migration_support(session: ForwardedSession) -> MigrationSupport | None:
    """The server's abilities in terms of migration v2, whichever way; None: it cannot migrate."""
    if session.migration is not None:
        return await session.migration.support()
    session.migration, support = await _choose(session, TIMEOUT_SECONDS)
    return support


async def _choose(session: ForwardedSession, timeout: float) -> tuple[ServerMigration, MigrationSupport | None]:
    messages = MessageMigration(session)
    if (support := await messages.support(timeout=timeout)) is not None:
        return messages, support
    with suppress(RequestRefused, ProtocolError):
        if (region := await migration_region.find(session)) is not None:
            return region, await region.support()
    return messages, None


class MessageMigration:
    """Migration v2: features of the device, and messages for its state."""

    def __init__(self, session: ForwardedSession) -> None:
        self._session = session
        self._pieces = StatePieces()

    async def support(self, *, timeout: float = TIMEOUT_SECONDS) -> MigrationSupport | None:
        """Ask for the feature MIGRATION within `timeout` seconds; None where the server refuses."""
        size = at.MIGRATION_FLAGS.size
        with suppress(RequestRefused, ProtocolError):
            body = await feature(self._session, Feature.MIGRATION, FeatureFlags.GET, room=size, timeout=timeout)
            return MigrationSupport(at.MIGRATION_FLAGS.unpack(body).flags)
        return None

    async def state(self) -> MigrationState:
        """Ask for the feature MIG_DEVICE_STATE; the session's model learns it.

        Raises:
            RequestRefused: the server refuses.
        """
        body = await feature(self._session, Feature.MIG_DEVICE_STATE, FeatureFlags.GET, room=at.DEVICE_STATE.size)
        state = MigrationState(at.DEVICE_STATE.unpack(body).state)
        self._session.model.set_migration_state(state)
        return state

    async def set_state(self, state: MigrationState, *, timeout: float = TIMEOUT_SECONDS) -> None:
        """Set the feature MIG_DEVICE_STATE and wait up to `timeout` seconds.

        Raises:
            RequestRefused: the server refuses.
        """
        if state == MigrationState.RESUMING:
            self._pieces = StatePieces()
        body = at.DEVICE_STATE.pack(state, 0)
        await feature(self._session, Feature.MIG_DEVICE_STATE, FeatureFlags.SET, body, timeout=timeout)
        self._session.model.set_migration_state(state)

    async def read(self, size: int) -> bytes:
        """Send one MIG_DATA_READ for `size` bytes.

        Raises:
            RequestRefused: the server refuses.
        """
        payload = at.MIGRATION_DATA.pack(at.MIGRATION_DATA.size + size, size)
        reply = await request(self._session, Command.MIG_DATA_READ, payload)
        told = at.MIGRATION_DATA.unpack(reply.payload)
        return reply.payload[at.MIGRATION_DATA.size :][: told.size]

    @property
    def piece_size(self) -> int:
        """Bytes of state in the next MIG_DATA_WRITE, within what the session's data may be."""
        return self._pieces.size(data_limit(self._session))

    async def write(self, data: bytes) -> None:
        """Send state in as many MIG_DATA_WRITEs as it takes.

        Raises:
            RequestRefused: the server refuses.
        """
        view = memoryview(data)
        while view:
            piece = bytes(view[: self.piece_size])
            payload = at.MIGRATION_DATA.pack(at.MIGRATION_DATA.size + len(piece), len(piece), tail=piece)
            what = write_of(Command.MIG_DATA_WRITE.value, len(piece))
            await request(self._session, Command.MIG_DATA_WRITE, payload, what=what)
            self._pieces.taken(piece)
            view = view[len(piece) :]

    async def start_logging(self, page_size: int, ranges: Iterable[IovaRange] | None = None) -> None:
        """Set the feature DMA_LOGGING_START for `ranges`, or for all maps; pages have `page_size` bytes.

        Raises:
            RequestRefused: the server refuses.
        """
        maps = self._session.model.maps
        wanted = list(ranges) if ranges is not None else [(mapping.iova, mapping.size) for mapping in maps]
        body = at.LOGGING_CONTROL.pack(page_size, len(wanted), 0)
        body += b"".join(at.LOGGING_RANGE.pack(*run) for run in wanted)
        await feature(self._session, Feature.DMA_LOGGING_START, FeatureFlags.SET, body)

    async def stop_logging(self) -> None:
        """Set the feature DMA_LOGGING_STOP.

        Raises:
            RequestRefused: the server refuses.
        """
        body = at.LOGGING_CONTROL.pack(0, 0, 0)
        await feature(self._session, Feature.DMA_LOGGING_STOP, FeatureFlags.SET, body)

    async def report(self, page_size: int, run: IovaRange) -> bytes:
        """Ask for the feature DMA_LOGGING_REPORT: a bit per page of the range, the first one lowest.

        Raises:
            RequestRefused: the server refuses.
        """
        iova, length = run
        size = bitmap_size(length, page_size)
        body = at.LOGGING_REPORT.pack(iova, length, page_size)
        found = await feature(self._session, Feature.DMA_LOGGING_REPORT, FeatureFlags.GET, body, room=size)
        return found[at.LOGGING_REPORT.size :][:size]
