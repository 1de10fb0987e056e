"""A device is moved from one server to another by its client."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.test_client_session import SCRATCH, serving
from vfio_user.client.migration_region import PRE_COPY, RUNNING, STOPPED
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


@pytest.mark.parametrize("dialect", [DRAFT_V6, REGION_MIGRATION], ids=lambda d: d.name)
def test_a_device_is_moved_by_the_migration_region(tmp_path: Path, dialect: Dialect) -> None:
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
