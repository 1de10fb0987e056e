"""The v1 migration region: registers that move a device's state (draft-v6 and region-migration).

Source: specification of November 2020, "VFIO Device Migration Info"; hw/vfio/migration.c of QEMU before 8.0 for the
order in which a client touches the registers.
"""

from __future__ import annotations

from collections.abc import Iterator

from userdev.errors import ProtocolError, UserError
from vfio_user.client.errors import NoEnd
from vfio_user.client.features import MOST_STATE
from vfio_user.client.regions import RegionCalls
from vfio_user.wire.state_pieces import StatePieces

DEVICE_STATE = 0
RESERVED = 4
PENDING_BYTES = 8
DATA_OFFSET = 16
DATA_SIZE = 24

STOPPED, RUNNING, STOP_AND_COPY, PRE_COPY, RESUMING, ERROR = 0, 1, 2, 3, 4, 6
"""Values of `device_state`: bit 0 RUNNING, bit 1 SAVING, bit 2 RESUMING."""

_DATA = "the migration region"


class MigrationRegisters:
    """The registers of the migration region of one device."""

    def __init__(self, client: RegionCalls) -> None:
        """Find the region by its type.

        Raises:
            UserError: the device has none.
        """
        index = client.migration_region_index()
        if index is None:
            raise UserError("the device has no migration region")
        self.index = index
        self._client = client
        self._size = client.region_info(index).size
        self._pieces = StatePieces()

    @property
    def state(self) -> int:
        """The register device_state."""
        return self._client.load(self.index, DEVICE_STATE, 4)

    @state.setter
    def state(self, value: int) -> None:
        self._client.store(self.index, DEVICE_STATE, 4, value)

    @property
    def pending_bytes(self) -> int:
        """Read `pending_bytes`, which begins an iteration."""
        return self._client.load(self.index, PENDING_BYTES, 8)

    @property
    def data_offset(self) -> int:
        """Read `data_offset`: the server puts the next piece there, or says where to write it."""
        return self._client.load(self.index, DATA_OFFSET, 8)

    @property
    def data_size(self) -> int:
        """Bytes of the piece that is there to be read, or was written."""
        return self._client.load(self.index, DATA_SIZE, 8)

    @data_size.setter
    def data_size(self, value: int) -> None:
        self._client.store(self.index, DATA_SIZE, 8, value)

    def read_piece(self) -> bytes:
        """One iteration of saving; no bytes where nothing is pending."""
        if not self.pending_bytes:
            return b""
        offset, size = self.data_offset, self.data_size
        if not DATA_SIZE + 8 <= offset <= offset + size <= self._size:
            raise ProtocolError(f"migration data at {offset:#x}, {size} bytes, in a region of {self._size}")
        if size > MOST_STATE:
            raise NoEnd(_DATA, MOST_STATE)
        limit = self._client.data_limit
        return b"".join(
            self._client.region_read(self.index, offset + at, min(limit, size - at)) for at in range(0, size, limit)
        )

    def write_piece(self, data: bytes) -> None:
        """One iteration of resuming; the data in as many messages as the server is known to need."""
        offset, size = self.data_offset, self._pieces.size(self._client.data_limit)
        for at in range(0, len(data), size):
            self._client.region_write(self.index, offset + at, data[at : at + size])
        self.data_size = len(data)
        self._pieces.taken(data)

    def save(self) -> list[bytes]:
        """Stop the device and take its state, in pieces that have to be written back one by one; stays stopped."""
        self.state = STOP_AND_COPY
        return list(self.pieces())

    def pieces(self) -> Iterator[bytes]:
        """The pieces that are left, one by one.

        Raises:
            NoEnd: they have more than `MOST_STATE` bytes.
        """
        got = 0
        while piece := self.read_piece():
            got += len(piece)
            if got > MOST_STATE:
                raise NoEnd(_DATA, MOST_STATE)
            yield piece

    def load(self, pieces: list[bytes]) -> None:
        """Put a saved state in and let the device run."""
        self.state = RESUMING
        self._pieces = StatePieces()
        for piece in pieces:
            self.write_piece(piece)
        self.state = RUNNING
