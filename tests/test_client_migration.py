"""A device is moved from one server to another by its client."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

from tests.cases import for_each, for_each_row
from tests.test_client_session import SCRATCH, serving
from userdev.errors import ProtocolError
from vfio_user.client.migration_region import (
    DATA_OFFSET,
    DATA_SIZE,
    PENDING_BYTES,
    PRE_COPY,
    RUNNING,
    STOPPED,
    MigrationRegisters,
)
from vfio_user.client.regions import Region
from vfio_user.wire import DRAFT_V6, REGION_MIGRATION, Dialect
from vfio_user.wire.constants import (
    MigrationState,
    MigrationSupport,
)


def test_a_device_is_moved_by_messages(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    with (
        serving(tmp_path) as connect_a,
        serving(tmp_path / "b") as connect_b,
        connect_a() as source,
        connect_b() as target,
    ):
        source.store(0, SCRATCH, 4, 0xCAFE)
        source.region_write(2, 0x1000, b"memory")
        assert MigrationSupport.STOP_COPY in source.migration_support()
        state = source.save()
        assert source.migration_state() is MigrationState.STOP_COPY
        target.load_state(state, chunk=100)
        target.set_migration_state(MigrationState.RUNNING)
        assert target.load(0, SCRATCH, 4) == 0xCAFE
        assert target.region_read(2, 0x1000, 6) == b"memory"


@for_each([DRAFT_V6, REGION_MIGRATION], ids=lambda d: d.name)
def test_a_device_is_moved_by_the_migration_region(dialect: Dialect, tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    with (
        serving(tmp_path, dialect) as connect_a,
        serving(tmp_path / "b", dialect) as connect_b,
        connect_a() as source,
        connect_b() as target,
    ):
        source.store(0, SCRATCH, 4, 0xBEEF)
        region = source.migration_region()
        region.state = PRE_COPY
        pieces = region.save()
        region.state = STOPPED
        target.migration_region().load(pieces)
        assert target.migration_region().state == RUNNING
        assert target.load(0, SCRATCH, 4) == 0xBEEF


class SaysWhere:
    """A migration region of 0x1000 bytes whose server says of a piece where it is."""

    data_limit = 100

    def __init__(self, offset: int, size: int) -> None:
        self._says = {PENDING_BYTES: 1, DATA_OFFSET: offset, DATA_SIZE: size}
        self.read: list[tuple[int, int]] = []

    def migration_region_index(self) -> int:
        return 9

    def region_info(self, index: int) -> Region:
        return Region(index, 0x1000, 3, 0)

    def load(self, index: int, offset: int, width: int) -> int:
        return self._says[offset]

    def region_read(self, index: int, offset: int, count: int) -> bytes:
        self.read.append((offset, count))
        return bytes(count)


@for_each_row(
    [
        (0x20, 0x64, [(0x20, 100)]),
        (0x20, 0x65, [(0x20, 100), (0x84, 1)]),
        (0xFFF, 1, [(0xFFF, 1)]),
        (0x1000, 0, []),
        (0x20, 0xFE0, [(at, min(100, 0x1000 - at)) for at in range(0x20, 0x1000, 100)]),
        (0x1F, 1, None),
        (0, 0x40, None),
        (0x20, 0xFE1, None),
        (0xFFF, 2, None),
        (0x1000, 1, None),
        (0x1001, 0, None),
        (0x20, 1 << 63, None),
        (1 << 63, 1, None),
    ]
)
def test_a_piece_is_read_where_it_is_said_to_be_if_that_is_behind_the_registers_and_within_the_region(
    offset: int, size: int, read: list[tuple[int, int]] | None
) -> None:
    """A server that says otherwise has the client ask for what is not there, or take registers for state."""
    server = SaysWhere(offset, size)
    registers = MigrationRegisters(cast(Any, server))
    if read is None:
        with pytest.raises(ProtocolError, match="migration data at"):
            registers.read_piece()
        assert server.read == []
    else:
        assert registers.read_piece() == bytes(size)
        assert server.read == read
