"""The v1 migration region: its registers in each state, its two iterations, and its equality with v2."""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.cases import for_each, for_each_row
from tests.migration_device import Adder, get_state, read_all, save, set_state
from userdev.errors import ProtocolError
from vfio_user.migration import Migration, MigrationRegion
from vfio_user.migration.machine import V1_STATES, V1_VALUES
from vfio_user.migration.region import WINDOW, WINDOW_SIZE
from vfio_user.wire.constants import MigrationState

STATE, RESERVED, PENDING, OFFSET, SIZE = 0, 4, 8, 16, 24
STOPPED, RUNNING, STOP_AND_COPY, PRE_COPY, RESUMING, ERROR = 0, 1, 2, 3, 4, 6
SAVING = (STOP_AND_COPY, PRE_COPY)


def load_register(region: MigrationRegion, offset: int) -> int:
    return int.from_bytes(region.read(offset, 4 if offset < PENDING else 8), "little")


def store(region: MigrationRegion, offset: int, value: int) -> None:
    region.write(offset, value.to_bytes(4 if offset < PENDING else 8, "little"))


def in_state(value: int, device: Adder | None = None) -> MigrationRegion:
    migration = Migration(device or Adder())
    set_state(migration, V1_STATES[value] if value != ERROR else MigrationState.RUNNING)
    if value == ERROR:
        migration.set_v1_state(ERROR)
    return MigrationRegion(migration)


def refused(call: Any, *arguments: Any) -> None:
    with pytest.raises(ProtocolError) as error:
        call(*arguments)
    assert error.value.errno == errno.EINVAL


def test_no_client_can_make_the_file_smaller_that_the_server_has_mapped() -> None:
    region = in_state(STOP_AND_COPY)
    for size in (0, WINDOW + WINDOW_SIZE - 1, WINDOW + WINDOW_SIZE + 1):
        with pytest.raises(PermissionError):
            os.ftruncate(region.fd, size)
    assert save_pieces(region)
    region.close()


def save_pieces(region: MigrationRegion, mapping: mmap.mmap | None = None) -> list[bytes]:
    """The iterations of saving, until nothing is pending; data by messages, or from the client's own mapping."""
    pieces = []
    while load_register(region, PENDING):
        offset, size = load_register(region, OFFSET), load_register(region, SIZE)
        pieces.append(mapping[offset : offset + size] if mapping else region.read(offset, size))
    return pieces


def load_pieces(region: MigrationRegion, pieces: list[bytes], mapping: mmap.mmap | None = None) -> None:
    for piece in pieces:
        offset = load_register(region, OFFSET)
        if mapping:
            mapping[offset : offset + len(piece)] = piece
        else:
            region.write(offset, piece)
        store(region, SIZE, len(piece))


def test_the_region_is_described_as_the_specification_has_it() -> None:
    region = in_state(RUNNING)
    assert (region.type, region.sparse, region.size) == ((3, 1), ((4096, WINDOW_SIZE),), 4096 + WINDOW_SIZE)
    assert mmap.mmap(region.fd, region.size)[:4] == bytes(4)


@for_each(V1_STATES)
def test_device_state_is_the_machine_s(value: int) -> None:
    region = in_state(value)
    assert load_register(region, STATE) == value


@for_each([5, 7, 8, 0xFFFFFFFF])
def test_invalid_states_are_refused_and_change_nothing(value: int) -> None:
    region = in_state(RUNNING)
    refused(store, region, STATE, value)
    assert load_register(region, STATE) == RUNNING


@for_each(SAVING, [5, 7, 8, 0xFFFFFFFF])
def test_a_state_that_is_refused_leaves_the_piece_in_the_window(saving: int, value: int) -> None:
    """The client reads back the state that there is, and goes on: its piece comes only once."""
    region = in_state(saving, Adder(0x3000))
    load_register(region, PENDING), load_register(region, OFFSET)
    size = load_register(region, SIZE)
    refused(store, region, STATE, value)
    assert load_register(region, STATE) == saving
    assert load_register(region, SIZE) == size > 0
    assert len(region.read(WINDOW, size)) == size


@pytest.mark.parametrize("mapped", [False, True], ids=["messages", "mapped"])
@pytest.mark.parametrize("memory", [0, 0x3000, 3 << 20])
def test_a_state_goes_through_the_window(memory: int, mapped: bool) -> None:
    source, target = Adder(memory), Adder(memory)
    source.values["total"] = 12
    source.ram[:] = bytes(range(1, 256)) * (memory // 255) + bytes(memory % 255)
    regions = [MigrationRegion(Migration(device)) for device in (source, target)]
    mappings = [mmap.mmap(region.fd, region.size) if mapped else None for region in regions]
    store(regions[0], STATE, STOP_AND_COPY)
    pieces = save_pieces(regions[0], mappings[0])
    assert len(pieces) == 1 + memory // WINDOW_SIZE
    store(regions[1], STATE, RESUMING)
    load_pieces(regions[1], pieces, mappings[1])
    store(regions[1], STATE, RUNNING)
    assert (target.values, target.ram) == (source.values, source.ram)


def test_while_a_state_is_loaded_the_size_of_a_piece_is_for_the_client_to_say() -> None:
    region = in_state(RESUMING)
    for piece in save_pieces(in_state(STOP_AND_COPY)):
        assert load_register(region, SIZE) == 0
        load_pieces(region, [piece])
    assert load_register(region, SIZE) == 0


def test_a_state_saved_by_one_face_is_loaded_by_the_other() -> None:
    source, target = Adder(), Adder()
    source.values["total"] = 5
    region = in_state(STOP_AND_COPY, source)
    data = b"".join(save_pieces(region))
    assert data == save(source)
    target_region = in_state(RESUMING, target)
    load_pieces(target_region, [data])
    store(target_region, STATE, RUNNING)
    assert target.values["total"] == 5


def test_pending_bytes_says_when_it_is_over_and_stays_zero() -> None:
    region = in_state(STOP_AND_COPY)
    save_pieces(region)
    assert [load_register(region, PENDING) for _ in range(3)] == [0, 0, 0]


@for_each([RUNNING, RESUMING, STOPPED, ERROR])
def test_nothing_is_pending_where_nothing_is_saved(state: int) -> None:
    assert load_register(in_state(state, Adder(1 << 21)), PENDING) == 0


def test_reading_pending_bytes_again_changes_nothing() -> None:
    region = in_state(STOP_AND_COPY, Adder(1 << 21))
    assert load_register(region, PENDING) == load_register(region, PENDING) > 0
    once = in_state(STOP_AND_COPY, Adder(1 << 21))
    assert save_pieces(region) == save_pieces(once)


def test_reading_data_offset_again_skips_nothing() -> None:
    device = Adder(3 << 20)
    device.ram[:] = b"\1" * len(device.ram)
    whole = save(device)
    region = in_state(STOP_AND_COPY, device)
    pieces = []
    while load_register(region, PENDING):
        assert load_register(region, OFFSET) == load_register(region, OFFSET) == WINDOW
        pieces.append(region.read(WINDOW, load_register(region, SIZE)))
    assert len(pieces) > 3
    assert b"".join(pieces) == whole


def test_pre_copy_is_pending_again_after_memory_has_changed() -> None:
    device = Adder(0x10000)
    region = in_state(PRE_COPY, device)
    save_pieces(region)
    assert load_register(region, PENDING) == 0
    device.ram[0x4000] = 1
    assert load_register(region, PENDING) >= 4096
    store(region, STATE, STOP_AND_COPY)
    assert load_register(region, PENDING) > 4096


def test_pending_bytes_covers_memory_that_is_not_sent_yet() -> None:
    device = Adder(8 << 20)
    device.ram[:] = b"\1" * len(device.ram)
    assert load_register(in_state(PRE_COPY, device), PENDING) >= 8 << 20


def test_a_refused_state_leaves_the_error_state() -> None:
    region = in_state(RESUMING)
    refused(load_pieces, region, [b"no state at all"])
    refused(store, region, STATE, RUNNING)
    assert load_register(region, STATE) == ERROR


SEQUENCES: dict[str, tuple[int, list[tuple[str, int]]]] = {
    "data_offset before pending_bytes": (STOP_AND_COPY, [("read", OFFSET)]),
    "data_size before data_offset": (STOP_AND_COPY, [("read", PENDING), ("read", SIZE)]),
    "data_size before pending_bytes": (PRE_COPY, [("read", SIZE)]),
    "data_size of the piece before": (
        STOP_AND_COPY,
        [("read", PENDING), ("read", OFFSET), ("read", PENDING), ("read", SIZE)],
    ),
    "data_offset after another state": (
        PRE_COPY,
        [("read", PENDING), ("state", STOP_AND_COPY), ("read", OFFSET)],
    ),
    "data_size written while saving": (STOP_AND_COPY, [("read", PENDING), ("read", OFFSET), ("write", SIZE)]),
    **{
        f"{name} written in state {value}": (value, [("write", register)])
        for name, register in (("pending_bytes", PENDING), ("data_offset", OFFSET))
        for value in V1_STATES
    },
    **{f"data_offset in state {value}": (value, [("read", OFFSET)]) for value in (STOPPED, RUNNING, ERROR)},
    **{f"data_size in state {value}": (value, [("read", SIZE)]) for value in (STOPPED, RUNNING, ERROR)},
    **{f"data_size written in state {value}": (value, [("write", SIZE)]) for value in (STOPPED, RUNNING, ERROR)},
}


@for_each_row(SEQUENCES.values())
def test_registers_out_of_sequence_are_refused(value: int, accesses: list[tuple[str, int]]) -> None:
    region = in_state(value)
    does: dict[str, Callable[[int], object]] = {
        "read": lambda register: load_register(region, register),
        "write": lambda register: store(region, register, 0),
        "state": lambda new: store(region, STATE, new),
    }
    for name, argument in accesses[:-1]:
        does[name](argument)
    before = load_register(region, STATE)
    refused(does[accesses[-1][0]], accesses[-1][1])
    assert load_register(region, STATE) == before


def test_reserved_is_ignored() -> None:
    """Any access to it, as the draft says."""
    region = in_state(RUNNING)
    for offset, count in ((4, 4), (4, 1), (7, 1), (6, 2), (5, 3)):
        region.write(offset, b"\xff" * count)
        assert region.read(offset, count) == bytes(count), (offset, count)


@for_each(
    [(0, 1), (0, 8), (0, 32), (1, 4), (2, 2), (8, 4), (12, 4), (16, 4), (20, 8), (24, 4), (28, 8), (32, 8), (4088, 8)],
    V1_STATES,
)
def test_only_whole_registers_are_accessed(access: tuple[int, int], value: int) -> None:
    offset, count = access
    region = in_state(value)
    refused(region.read, offset, count)
    refused(region.write, offset, bytes(count))
    assert load_register(region, STATE) == value


@for_each(V1_STATES)
def test_the_window_is_read_while_saving_and_written_while_resuming(value: int) -> None:
    region = in_state(value)
    if value in SAVING:
        assert region.read(WINDOW, 3) == bytes(3)
    else:
        refused(region.read, WINDOW, 3)
    if value == RESUMING:
        region.write(WINDOW + WINDOW_SIZE - 3, b"end")
    else:
        refused(region.write, WINDOW, b"abc")


@for_each([WINDOW - 1, WINDOW + WINDOW_SIZE - 3, WINDOW + WINDOW_SIZE])
def test_accesses_beyond_the_window_are_refused(offset: int) -> None:
    refused(in_state(STOP_AND_COPY).read, offset, 4)
    refused(in_state(RESUMING).write, offset, bytes(4))


def test_more_data_than_the_window_holds_is_refused() -> None:
    refused(store, in_state(RESUMING), SIZE, WINDOW_SIZE + 1)


# Both faces

VALUES = st.lists(st.sampled_from([0, 1, 2, 3, 4]), max_size=12)


def drive(migration: Migration, value: int, by_region: bool) -> bool:
    """Ask for a state by one of the faces, as a client that has a state to load. Whether the device went there."""
    before = migration.state
    try:
        if by_region:
            store(MigrationRegion(migration), STATE, value)
        else:
            set_state(migration, V1_STATES[value])
    except ProtocolError:
        return False
    if migration.state is MigrationState.RESUMING is not before:
        migration.write_state(STREAM)
    return True


STREAM = save(Adder())


@given(VALUES, st.lists(st.booleans(), min_size=12, max_size=12))
def test_what_v1_allows_ends_the_same_by_either_face(values: list[int], faces: list[bool]) -> None:
    by_region, by_message, mixed = (Migration(Adder()) for _ in range(3))
    for value, face in zip(values, faces, strict=False):
        before = by_region.state
        if drive(by_region, value, True):
            assert drive(by_message, value, False)
            assert drive(mixed, value, face)
        else:
            assert by_region.state is before
        assert by_region.state is get_state(by_message) is mixed.state
        assert load_register(MigrationRegion(by_message), STATE) == V1_VALUES[by_region.state]
    assert by_region.device.actions == by_message.device.actions == mixed.device.actions  # type: ignore[attr-defined]


@given(st.integers(0, 200), st.booleans())
def test_a_stream_may_change_faces_in_the_middle(size: int, region_first: bool) -> None:
    device = Adder()
    device.values["label"] = "one stream"
    migration = Migration(device)
    region = MigrationRegion(migration)
    set_state(migration, MigrationState.PRE_COPY)
    if region_first:
        first = b"".join(save_pieces(region))
        set_state(migration, MigrationState.STOP_COPY)
        rest = read_all(migration)
    else:
        first = migration.read_state(size)
        store(region, STATE, STOP_AND_COPY)
        rest = b"".join(save_pieces(region))
    target = in_state(RESUMING, loaded := Adder())
    load_pieces(target, [first, rest])
    store(target, STATE, RUNNING)
    assert loaded.values == device.values
