"""Garbage to every entrance of migration: the one protocol error, and a device that can still be migrated."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tests.migration_device import LIMIT, Adder, load, save, set_state
from userdev.errors import ProtocolError
from vfio_user.migration import Migration, MigrationRegion
from vfio_user.migration.machine import V1_VALUES
from vfio_user.server.dirty_pages import handle_dirty_pages, take_bitmap
from vfio_user.server.migration_commands import device_feature, mig_data_read, mig_data_write
from vfio_user.wire import DRAFT_V6, REGION_MIGRATION
from vfio_user.wire.constants import FeatureFlags, MigrationState

SMALL = st.integers(0, 16) | st.sampled_from([0x1000, 0x100000, 1 << 31, (1 << 32) - 1])
WORDS = st.lists(SMALL, max_size=12).map(lambda words: struct.pack(f"<{len(words)}I", *words))
PAYLOADS = st.binary(max_size=64) | WORDS
FLAGS = st.sets(st.sampled_from(list(FeatureFlags))).map(sum)
REQUESTS = st.builds(
    lambda argsz, feature, flags, data: struct.pack("<II", argsz, feature | flags) + data,
    SMALL,
    st.integers(0, 10),
    FLAGS,
    WORDS | st.binary(max_size=40),
)


class Clients(RuleBasedStateMachine):
    """Clients that know the protocol by hearsay, on one device."""

    def __init__(self) -> None:
        super().__init__()
        self.device = Adder()
        self.device.dma.map(0x100000, 0x100000, 3)
        self.migration = Migration(self.device)
        self.region = MigrationRegion(self.migration)

    def call(self, function: Any, *arguments: Any) -> None:
        number = 1
        try:
            function(*arguments)
        except ProtocolError as error:
            number = error.errno
        assert 0 < number < 4096

    @rule(payload=REQUESTS | PAYLOADS)
    def feature(self, payload: bytes) -> None:
        self.call(device_feature, self.migration, payload)

    @rule(state=st.integers(0, 9))
    def go(self, state: int) -> None:
        self.call(set_state, self.migration, state)

    @rule(payload=PAYLOADS)
    def data_read(self, payload: bytes) -> None:
        self.call(mig_data_read, self.migration, payload, LIMIT)

    @rule(payload=PAYLOADS)
    def data_write(self, payload: bytes) -> None:
        self.call(mig_data_write, self.migration, payload, LIMIT)

    @rule(payload=PAYLOADS, dialect=st.sampled_from([DRAFT_V6, REGION_MIGRATION]))
    def dirty_pages(self, payload: bytes, dialect: Any) -> None:
        self.call(handle_dirty_pages, self.migration, payload, dialect)

    @rule(arguments=st.tuples(*[SMALL] * 4))
    def unmap_bitmap(self, arguments: tuple[int, int, int, int]) -> None:
        self.call(take_bitmap, self.migration, *arguments)

    @rule(offset=st.sampled_from([0, 4, 8, 16, 24, 4096]) | SMALL, count=st.sampled_from([4, 8, 1]))
    def region_read(self, offset: int, count: int) -> None:
        self.call(self.region.read, offset, count)

    @rule(offset=st.sampled_from([0, 4, 8, 16, 24, 4096]) | SMALL, data=st.binary(max_size=9) | WORDS)
    def region_write(self, offset: int, data: bytes) -> None:
        self.call(self.region.write, offset, data)

    @rule()
    def reset(self) -> None:
        self.migration.was_reset()

    @rule()
    def next_client(self) -> None:
        self.migration.detach()
        self.migration.attach()
        assert self.migration.state is MigrationState.RUNNING

    @invariant()
    def the_device_is_what_it_was(self) -> None:
        assert self.device.values == Adder().values
        assert not any(self.device.ram)
        assert "load" not in self.device.actions

    @invariant()
    def the_device_runs_exactly_in_the_states_for_it(self) -> None:
        moves = [action for action in self.device.actions if action in ("stop", "start")]
        runs = not moves or moves[-1] == "start"
        state = self.migration.state
        if state is not MigrationState.ERROR:
            assert runs is (state in (MigrationState.RUNNING, MigrationState.PRE_COPY))
        assert int.from_bytes(self.region.read(0, 4), "little") == V1_VALUES[state]

    def teardown(self) -> None:
        self.migration.detach()
        self.migration.attach()
        load(Adder(), save(self.device))
        self.region.close()
        self.migration.close()


TestClients = pytest.mark.filterwarnings("error")(Clients.TestCase)
TestClients.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


@given(st.lists(st.binary(min_size=1, max_size=40), max_size=8))
def test_no_bytes_but_a_state_make_a_state(pieces: list[bytes]) -> None:
    migration = Migration(Adder())
    set_state(migration, MigrationState.RESUMING)
    for piece in pieces:
        try:
            migration.write_state(piece)
        except ProtocolError:
            break
    with pytest.raises(ProtocolError):
        set_state(migration, MigrationState.STOP)
