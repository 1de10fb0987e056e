"""Migration as `current` has it: DEVICE_FEATURE, MIG_DATA_READ, MIG_DATA_WRITE (linux/vfio.h, v2)."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence

from userdev.errors import ProtocolError
from userdev.memory.bitmap import DirtyBitmap, bitmap_size
from vfio_user.client.connection import ClientConnection
from vfio_user.client.errors import NoEnd, RemoteError
from vfio_user.client.reading import read_as
from vfio_user.wire import Command
from vfio_user.wire.constants import Feature, FeatureFlags, MigrationState, MigrationSupport
from vfio_user.wire.layouts import (
    DEVICE_STATE,
    FEATURE,
    LOGGING_CONTROL,
    LOGGING_RANGE,
    LOGGING_REPORT,
    MIGRATION_DATA,
    MIGRATION_FLAGS,
)
from vfio_user.wire.state_pieces import StatePieces, write_of

MOST_STATE = 1 << 30
"""Bytes of a state that is read, unless told: a server that gives without an end is stopped there."""


class FeatureCalls(ClientConnection):
    """The device's features, and what QEMU's vfio migration code does with them."""

    def device_feature(self, feature: int, operation: int, data: bytes = b"", *, room: int = 0) -> bytes:
        """DEVICE_FEATURE as it is on the wire; `room` is the size of the answer's data. The answer's data."""
        argsz = FEATURE.size + max(len(data), room)
        reply = self.request(Command.DEVICE_FEATURE, FEATURE.pack(argsz, feature | operation, tail=data))
        read_as(FEATURE, reply.payload, Command.DEVICE_FEATURE.value)
        return reply.payload[FEATURE.size :]

    def has_feature(self, feature: int, operation: int = 0) -> bool:
        """Whether the device has the feature (and the operation): PROBE, which changes nothing."""
        try:
            self.device_feature(feature, FeatureFlags.PROBE | operation)
        except RemoteError as error:
            if error.errno in (errno.EINVAL, errno.ENOTTY):
                return False
            raise
        return True

    def migration_support(self) -> MigrationSupport:
        """The device's abilities (GET of the MIGRATION feature)."""
        data = self.device_feature(Feature.MIGRATION, FeatureFlags.GET, room=MIGRATION_FLAGS.size)
        return MigrationSupport(read_as(MIGRATION_FLAGS, data, "GET of MIGRATION").flags)

    def migration_state(self) -> MigrationState:
        """The device's state (GET of MIG_DEVICE_STATE)."""
        data = self.device_feature(Feature.MIG_DEVICE_STATE, FeatureFlags.GET, room=DEVICE_STATE.size)
        return _state(read_as(DEVICE_STATE, data, "GET of MIG_DEVICE_STATE").state)

    def set_migration_state(self, state: int) -> None:
        """Take the device to another state; a number, so that one can ask for what does not exist."""
        data = DEVICE_STATE.pack(state, 0)
        self.device_feature(Feature.MIG_DEVICE_STATE, FeatureFlags.SET, data)

    # the state itself

    def mig_data_read(self, size: int) -> bytes:
        """At most `size` bytes of the device's state; none at its end, or where there is nothing yet."""
        request = MIGRATION_DATA.pack(MIGRATION_DATA.size + size, size)
        payload = self.request(Command.MIG_DATA_READ, request).payload
        got = read_as(MIGRATION_DATA, payload, Command.MIG_DATA_READ.value).size
        if got > size or got > len(payload) - MIGRATION_DATA.size:
            raise ProtocolError(f"MIG_DATA_READ of {size} bytes answered with size {got} in {len(payload)} bytes")
        return payload[MIGRATION_DATA.size : MIGRATION_DATA.size + got]

    def mig_data_write(self, data: bytes) -> None:
        """One message with a piece of state. What a server takes at once is told in `vfio_user.wire.state_pieces`."""
        payload = MIGRATION_DATA.pack(MIGRATION_DATA.size + len(data), len(data), tail=data)
        self.request(Command.MIG_DATA_WRITE, payload, what=write_of(Command.MIG_DATA_WRITE.value, len(data)))

    def saved_state(self, *, chunk: int = 1 << 20, most: int | None = None) -> Iterator[bytes]:
        """The state that is left, piece by piece; the device is to be in PRE_COPY or STOP_COPY.

        Raises:
            NoEnd: it has more than `most` bytes; None: than `MOST_STATE`.
        """
        chunk = min(chunk, self.data_limit)
        most = MOST_STATE if most is None else most
        got = 0
        while data := self.mig_data_read(chunk):
            got += len(data)
            if got > most:
                raise NoEnd(Command.MIG_DATA_READ.value, most)
            yield data

    def save(self, *, most: int | None = None) -> bytes:
        """Stop the device and take its whole state; it stays in STOP_COPY. Raises as `saved_state`."""
        self.set_migration_state(MigrationState.STOP_COPY)
        return b"".join(self.saved_state(most=most))

    def load_state(self, state: bytes, *, chunk: int | None = None) -> None:
        """Put a saved state in; the device is in STOP afterwards. `chunk` as `write_state` has it."""
        self.set_migration_state(MigrationState.RESUMING)
        self.write_state(state, chunk=chunk)
        self.set_migration_state(MigrationState.STOP)

    def write_state(self, state: bytes, *, chunk: int | None = None) -> None:
        """Give a device in RESUMING a saved state, which stays there.

        `chunk`: bytes in each message, at most; None: as many as the server is known to take.
        """
        pieces, left = StatePieces(), memoryview(state)
        while left:
            piece = bytes(left[: min(chunk, self.data_limit) if chunk else pieces.size(self.data_limit)])
            self.mig_data_write(piece)
            pieces.taken(piece)
            left = left[len(piece) :]

    # dirty logging

    def start_logging(self, page_size: int, ranges: Sequence[tuple[int, int]] = ()) -> None:
        """Log which pages the device writes, in these (iova, length) ranges; none means everywhere."""
        tail = b"".join(LOGGING_RANGE.pack(*range_) for range_ in ranges)
        data = LOGGING_CONTROL.pack(page_size, len(ranges), 0, tail=tail)
        self.device_feature(Feature.DMA_LOGGING_START, FeatureFlags.SET, data)

    def stop_logging(self) -> None:
        """End the dirty log (DMA_LOGGING_STOP)."""
        self.device_feature(Feature.DMA_LOGGING_STOP, FeatureFlags.SET, LOGGING_CONTROL.pack(0, 0, 0))

    def report_logging(self, iova: int, length: int, page_size: int) -> DirtyBitmap:
        """The pages of a range that were written since it was last asked; asking clears them."""
        bits = bitmap_size(length, page_size)
        request = LOGGING_REPORT.pack(iova, length, page_size)
        room = LOGGING_REPORT.size + bits
        data = self.device_feature(Feature.DMA_LOGGING_REPORT, FeatureFlags.GET, request, room=room)
        if len(data) != room:
            raise ProtocolError(f"DMA_LOGGING_REPORT: {len(data)} bytes of data where {room} are right")
        return DirtyBitmap(iova, page_size, data[LOGGING_REPORT.size :])


def _state(value: int) -> MigrationState:
    try:
        return MigrationState(value)
    except ValueError:
        raise ProtocolError(f"migration state {value} is none") from None
