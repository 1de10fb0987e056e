"""Servers that migrate by the v1 region and DIRTY_PAGES, asked in the terms of migration v2.

Whoever migrates knows states, one stream of bytes and logging, as v2 has them. Here that is done with the registers of
v1 (specification of November 2020, "VFIO Device Migration Info"), whose state comes in pieces that have to be written
as they were read: in the stream each piece has its length before it.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable

from userdev.memory.bitmap import IovaRange, bitmap_size
from vfio_user.interposer import own_calls
from vfio_user.interposer.errors import RequestRefused
from vfio_user.interposer.session import ForwardedSession
from vfio_user.wire import REGION_MIGRATION, Command, Message
from vfio_user.wire import layouts as at
from vfio_user.wire.constants import MIGRATION_REGION_TYPE, MOST_REGIONS, DirtyPagesFlags, MigrationSupport, RegionIndex
from vfio_user.wire.constants import MigrationState as State
from vfio_user.wire.region_info import decode_region_info
from vfio_user.wire.state_pieces import StatePieces

DEVICE_STATE, PENDING_BYTES, DATA_OFFSET, DATA_SIZE = (0, 4), (8, 8), (16, 8), (24, 8)
"""Registers: offset and width."""

_ROOM = 4096
"""Bytes for a region's description with its capabilities."""
_LENGTH = 8
"""Bytes of the length before each piece."""
MAX_PIECE = 256 << 20
"""Bytes of a piece, which is kept whole here: what a server says of its region and its state is any 64-bit number."""

_VALUES = {State.STOP: 0, State.RUNNING: 1, State.STOP_COPY: 2, State.PRE_COPY: 3, State.RESUMING: 4, State.ERROR: 6}
_STATES = {value: state for state, value in _VALUES.items()}

# Between these v1 has no direct way; all others are tried, and the server knows.
_BY_WAY_OF = {
    (State.STOP, State.PRE_COPY): State.RUNNING,
    (State.STOP, State.STOP_COPY): State.RUNNING,
    (State.STOP, State.RESUMING): State.RUNNING,
    (State.STOP_COPY, State.RESUMING): State.RUNNING,
    (State.PRE_COPY, State.RESUMING): State.RUNNING,
}


async def find(session: ForwardedSession) -> RegionMigration | None:
    """The migration of a server by a region; None where it has none."""
    info = at.DEVICE_INFO.unpack(await own_calls.device_info(session))
    for index in range(RegionIndex.VGA + 1, min(info.num_regions, MOST_REGIONS)):
        request = at.REGION_INFO.pack(_ROOM, 0, index, 0, 0, 0)
        region, _ = decode_region_info((await own_calls.request(session, Command.GET_REGION_INFO, request)).payload)
        if region.type == MIGRATION_REGION_TYPE and region.size:
            return RegionMigration(session, index, region.size)
    return None


class RegionMigration:
    """A form of `ServerMigration`."""

    def __init__(self, session: ForwardedSession, region: int, size: int) -> None:
        """Migrate by this region, of `size` bytes."""
        self._session = session
        self._region, self._size = region, size
        self._pieces = StatePieces()
        self._to_read = bytearray()
        self._to_write = bytearray()
        self._loaded = False
        """All of the state has been written, and v1 has no other end of RESUMING than RUNNING."""

    async def support(self) -> MigrationSupport:
        """The flags of v2 that v1 has: STOP_COPY and PRE_COPY. Nobody is asked."""
        return MigrationSupport.STOP_COPY | MigrationSupport.PRE_COPY

    async def state(self) -> State:
        """Read `device_state`, translated into v2's states.

        Raises:
            RequestRefused: a value that is none (EIO), or when the server refuses.
        """
        value = await self._load(DEVICE_STATE)
        state = _STATES.get(value)
        if state is None:
            raise RequestRefused(f"migration state {value}, which there is not", errno.EIO)
        if state == State.RESUMING and self._loaded:
            state = State.STOP
        self._session.model.set_migration_state(state)
        return state

    async def set_state(self, state: State, *, timeout: float = own_calls.TIMEOUT_SECONDS) -> None:
        """Write `device_state`, by way of the states in between that v1 demands; `timeout` is for each.

        Raises:
            RequestRefused: EINVAL for a state that v1 has not got, or for saved state whose end is missing; or the
                server's errno.
        """
        if state not in _VALUES:
            raise RequestRefused(f"{state.name}, which is no state of a migration region", errno.EINVAL)
        now = await self.state()
        if state == now:
            return
        if state == State.RESUMING:
            self._pieces = StatePieces()
        if self._to_write and state in (State.STOP, State.RUNNING):
            raise RequestRefused("a state whose end is missing", errno.EINVAL)
        if now == State.RESUMING and state == State.STOP:
            self._loaded = True
        else:
            self._to_read, self._to_write = bytearray(), bytearray()
            self._loaded = False
            for step in (_BY_WAY_OF.get((now, state)), state):
                if step is not None:
                    await self._store(DEVICE_STATE, _VALUES[step], timeout=timeout)
        self._session.model.set_migration_state(state)

    async def read(self, size: int) -> bytes:
        """Read at most `size` bytes of v1's pieces, each with its length (8 bytes, little-endian) before it.

        Raises:
            RequestRefused: EIO, the server announces state that does not come, or more than its region has; or the
                server's errno.
        """
        if not self._to_read:
            piece = await self._read_piece()
            self._to_read += len(piece).to_bytes(_LENGTH, "little") + piece if piece else b""
        found = bytes(self._to_read[:size])
        del self._to_read[:size]
        return found

    @property
    def piece_size(self) -> int:
        """Bytes of state in the next write of the region, within what the session's data may be."""
        return self._pieces.size(own_calls.data_limit(self._session))

    async def write(self, data: bytes) -> None:
        """Take a part of the stream that `read` gives, and write each piece that is whole now.

        Raises:
            RequestRefused: EINVAL, a piece that the region has no room for; or the server's errno.
        """
        self._to_write += data
        while len(self._to_write) >= _LENGTH:
            size = int.from_bytes(self._to_write[:_LENGTH], "little")
            if size > min(self._size, MAX_PIECE):
                del self._to_write[_LENGTH:]
                raise RequestRefused(f"a piece of {size:,} bytes of state", errno.EINVAL)
            end = _LENGTH + size
            if len(self._to_write) < end:
                return
            piece = bytes(self._to_write[_LENGTH:end])
            del self._to_write[:end]
            await self._write_piece(piece)

    async def start_logging(self, page_size: int, ranges: Iterable[IovaRange] | None = None) -> None:
        """DIRTY_PAGES with START: v1 logs everywhere that is mapped, in its own page size.

        Raises:
            RequestRefused: the server refuses.
        """
        await self._dirty_pages(DirtyPagesFlags.START)

    async def stop_logging(self) -> None:
        """DIRTY_PAGES with STOP.

        Raises:
            RequestRefused: the server refuses.
        """
        await self._dirty_pages(DirtyPagesFlags.STOP)

    async def report(self, page_size: int, run: IovaRange) -> bytes:
        """DIRTY_PAGES with GET_BITMAP: a bit per page of the range, the first one lowest.

        Raises:
            RequestRefused: the server refuses.
        """
        iova, length = run
        size = bitmap_size(length, page_size)
        if self._session.dialect.shapes[Command.DMA_MAP].request is None:
            tail, room = at.DIRTY_RANGE_V6.pack(iova, length, page_size, size, 0), 0
        else:
            tail, room = at.DIRTY_RANGE.pack(iova, length, page_size, size), size
        payload = await self._dirty_pages(DirtyPagesFlags.GET_BITMAP, tail, room=room)
        return payload[-size:]

    async def _read_piece(self) -> bytearray:
        if not await self._load(PENDING_BYTES):
            return bytearray()
        offset = await self._load(DATA_OFFSET)
        left = await self._load(DATA_SIZE)
        if not left and await self.state() != State.PRE_COPY:
            raise RequestRefused("state that is pending and does not come", errno.EIO)
        if left > MAX_PIECE or offset + left > self._size:
            where = f"{left:,} bytes at {offset:#x} of its migration region"
            raise RequestRefused(f"{where}, which has {self._size:,}", errno.EIO)
        piece, limit = bytearray(), own_calls.data_limit(self._session)
        while left:
            asked = min(left, limit)
            data = await own_calls.region_read(self._session, self._region, offset + len(piece), asked)
            if not 0 < len(data) <= asked:
                raise RequestRefused(f"{asked:,} bytes of state, answered with {len(data):,}", errno.EIO)
            piece += data
            left -= len(data)
        return piece

    async def _write_piece(self, piece: bytes) -> None:
        offset, size = await self._load(DATA_OFFSET), self.piece_size
        for start in range(0, len(piece), size):
            await own_calls.region_write(self._session, self._region, offset + start, piece[start : start + size])
        await self._store(DATA_SIZE, len(piece))
        self._pieces.taken(piece)

    async def _load(self, register: tuple[int, int]) -> int:
        return int.from_bytes(await own_calls.region_read(self._session, self._region, *register), "little")

    async def _store(
        self, register: tuple[int, int], value: int, *, timeout: float = own_calls.TIMEOUT_SECONDS
    ) -> None:
        offset, width = register
        data = value.to_bytes(width, "little")
        access = at.REGION_ACCESS.pack(offset, self._region, width, tail=data)
        await own_calls.request(self._session, Command.REGION_WRITE, access, timeout=timeout)

    async def _dirty_pages(self, flag: DirtyPagesFlags, tail: bytes = b"", *, room: int = 0) -> bytes:
        """DIRTY_PAGES, also where the session's dialect has not got it: its number is free there."""
        payload = at.DIRTY_PAGES.pack(at.DIRTY_PAGES.size + len(tail) + room, flag, tail=tail)
        request = Message(0, REGION_MIGRATION.number(Command.DIRTY_PAGES), payload=payload)
        return (await own_calls.ask(self._session, Command.DIRTY_PAGES.value, request)).payload
