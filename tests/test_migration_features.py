"""DEVICE_FEATURE and MIG_DATA_*: what each answers, and what is refused with the state and the log unchanged."""

from __future__ import annotations

import errno
import struct

import pytest

from tests.cases import for_each, for_each_row
from tests.migration_device import (
    LIMIT,
    Adder,
    get_state,
    load,
    read_all,
    read_data,
    save,
    set_state,
    write_data,
)
from userdev.errors import ProtocolError
from vfio_user.migration import Migration
from vfio_user.server.gate import check_command, has_registers
from vfio_user.server.migration_commands import device_feature, mig_data_read, mig_data_write
from vfio_user.wire import Command
from vfio_user.wire.constants import DmaFlags, Feature, FeatureFlags, MigrationState

GET, SET, PROBE = FeatureFlags
ERROR, STOP, RUNNING, STOP_COPY, RESUMING, RUNNING_P2P, PRE_COPY, PRE_COPY_P2P = MigrationState
STATES = (STOP, RUNNING, STOP_COPY, RESUMING, PRE_COPY)
BASE, SIZE = 0x100000, 0x40000


def mapped(device: Adder | None = None) -> Migration:
    """A device with client memory; the log is off."""
    device = device or Adder()
    device.dma.map(BASE, SIZE, DmaFlags.READ | DmaFlags.WRITE)
    return Migration(device)


def marked(*pages: int) -> Migration:
    """A device that has written these pages of its client's memory."""
    migration = mapped()
    device_feature(migration, start(4096))
    for page in pages:
        migration.device.dma.mark_dirty(BASE + page * 4096, 1)  # type: ignore[attr-defined]
    return migration


def feature(number: int, flags: int, data: bytes = b"", argsz: int | None = None) -> bytes:
    return struct.pack("<II", 8 + len(data) if argsz is None else argsz, number | flags) + data


def start(page_size: int, *ranges: tuple[int, int], num_ranges: int | None = None) -> bytes:
    data = struct.pack("<QII", page_size, len(ranges) if num_ranges is None else num_ranges, 0)
    return feature(Feature.DMA_LOGGING_START, SET, data + b"".join(struct.pack("<QQ", *range_) for range_ in ranges))


def report(iova: int, length: int, page_size: int = 4096, argsz: int = 1 << 16) -> bytes:
    return feature(Feature.DMA_LOGGING_REPORT, GET, struct.pack("<QQQ", iova, length, page_size), argsz)


def bits(reply: bytes) -> set[int]:
    number = int.from_bytes(reply[32:], "little")
    return {bit for bit in range(number.bit_length()) if number >> bit & 1}


def test_the_device_offers_stop_copy_and_pre_copy() -> None:
    assert device_feature(mapped(), feature(Feature.MIGRATION, GET, argsz=16)) == struct.pack("<IIQ", 16, 1 | GET, 5)


@for_each(list(Feature))
def test_every_feature_can_be_probed(number: Feature) -> None:
    probe = feature(number, PROBE)
    assert device_feature(mapped(), probe) == probe


OPERATIONS = {
    Feature.MIGRATION: GET,
    Feature.MIG_DEVICE_STATE: GET | SET,
    Feature.DMA_LOGGING_START: SET,
    Feature.DMA_LOGGING_STOP: SET,
    Feature.DMA_LOGGING_REPORT: GET,
}


@for_each(list(Feature), [GET, SET, GET | SET])
def test_operations_can_be_probed(number: Feature, operation: int) -> None:
    probe = feature(number, PROBE | operation)
    if operation & ~OPERATIONS[number]:
        with pytest.raises(ProtocolError):
            device_feature(mapped(), probe)
    else:
        assert device_feature(mapped(), probe) == probe


def test_get_state_tells_the_state() -> None:
    migration = mapped()
    request = feature(Feature.MIG_DEVICE_STATE, GET, argsz=16)
    assert device_feature(migration, request) == struct.pack("<IIII", 16, 2 | GET, 2, 0)
    set_state(migration, STOP)
    assert device_feature(migration, request) == struct.pack("<IIII", 16, 2 | GET, 1, 0)


REFUSED = {
    "no payload": b"",
    "seven bytes": bytes(7),
    "feature 0": feature(0, PROBE),
    "feature 3": feature(3, PROBE),
    "feature 9": feature(9, PROBE),
    "feature 65535": feature(0xFFFF, GET),
    "no operation": feature(1, 0),
    "get and set": feature(2, GET | SET, bytes(8)),
    "set of MIGRATION": feature(1, SET, bytes(8)),
    "get of LOGGING_START": feature(6, GET, bytes(16)),
    "set of LOGGING_REPORT": feature(8, SET, bytes(24)),
    "flag 19": feature(1, GET | 1 << 19, argsz=64),
    "flag 31": feature(1, GET | 1 << 31, argsz=64),
    "probe with small argsz": feature(1, PROBE, bytes(8), argsz=15),
    "set with small argsz": feature(2, SET, struct.pack("<II", STOP, 0), argsz=15),
    "get with small argsz": feature(1, GET, argsz=15),
    "get state with small argsz": feature(2, GET, argsz=8),
    "set state without data": feature(2, SET),
    "set state with half of the data": feature(2, SET, bytes(4)),
    "start without data": feature(6, SET),
    "start with page size 0": start(0),
    "start with page size 4095": start(4095),
    "start with fewer ranges than said": start(4096, (0, 4096), num_ranges=2),
    "start with 4 billion ranges": start(4096, num_ranges=0xFFFFFFFF),
    "report without data": feature(8, GET, argsz=64),
    "report while no log is kept": report(BASE, SIZE),
}


@for_each(REFUSED.values(), ids=REFUSED)
def test_malformed_requests_change_nothing(payload: bytes) -> None:
    migration = mapped()
    with pytest.raises(ProtocolError) as refused:
        device_feature(migration, payload)
    assert refused.value.errno == errno.EINVAL
    assert get_state(migration) is RUNNING
    assert migration.device.dma.log_page_size == 0


REFUSED_REPORTS = {
    "page size 0": (report(BASE, SIZE, 0), errno.EINVAL),
    "page size 4097": (report(BASE, SIZE, 4097), errno.EINVAL),
    "page size 12288": (report(BASE, SIZE, 12288), errno.EINVAL),
    "shorter than a page": (report(BASE, 4095), errno.EINVAL),
    "length 0": (report(BASE, 0), errno.EINVAL),
    "wrapping": (report((1 << 64) - 4096, 8192), errno.EINVAL),
    "a bitmap of petabytes": (report(0, 1 << 63, argsz=0xFFFFFFFF), errno.EINVAL),
    "no room": (report(BASE, SIZE, argsz=32 + 7), errno.EINVAL),
    "nothing mapped": (report(BASE + SIZE, SIZE), errno.ENOENT),
    "nothing mapped before": (report(0, BASE), errno.ENOENT),
}


@for_each_row(REFUSED_REPORTS.values(), ids=REFUSED_REPORTS)
def test_a_refused_report_loses_no_page(payload: bytes, number: int) -> None:
    migration = marked(1, 63)
    with pytest.raises(ProtocolError) as refused:
        device_feature(migration, payload)
    assert refused.value.errno == number
    assert bits(device_feature(migration, report(BASE, SIZE))) == {1, 63}


def test_a_report_is_its_request_and_the_bitmap_and_clears_it() -> None:
    migration = marked(0, 9)
    reply = device_feature(migration, report(BASE, SIZE))
    assert reply == struct.pack("<IIQQQQ", 40, 8 | GET, BASE, SIZE, 4096, 0x201)
    assert bits(device_feature(migration, report(BASE, SIZE))) == set()


@for_each_row(
    [
        (BASE, 16 * 4096, 4096, {0, 9}),
        (BASE + 9 * 4096, 4096, 4096, {0}),
        (BASE + 8 * 4096, 0x10000, 8192, {0}),
        (BASE - 0x10000, 0x200000, 4096, {16, 25, 44}),
        (0, 1 << 40, 1 << 30, {0}),
        (BASE, SIZE, 1 << 16, {0, 1}),
        (BASE + 4096, 8192, 2048, set()),
    ]
)
def test_any_range_and_page_size_is_reported(iova: int, length: int, page_size: int, found: set[int]) -> None:
    assert bits(device_feature(marked(0, 9, 28), report(iova, length, page_size))) == found


def test_neighbouring_regions_are_reported_as_one_range() -> None:
    migration = marked(0, 63)
    dma = migration.device.dma
    dma.map(BASE + SIZE, 0x3000, 3)  # type: ignore[attr-defined]
    dma.mark_dirty(BASE + SIZE + 0x2000, 1)  # type: ignore[attr-defined]
    assert bits(device_feature(migration, report(BASE, 2 * SIZE))) == {0, 63, 66}


def test_logging_starts_once_with_one_page_size() -> None:
    migration = marked(5)
    device_feature(migration, start(4096, (BASE, SIZE)))
    with pytest.raises(ProtocolError) as refused:
        device_feature(migration, start(8192))
    assert refused.value.errno == errno.EINVAL
    assert bits(device_feature(migration, report(BASE, SIZE))) == {5}


def test_logging_stops_and_forgets() -> None:
    migration = marked(5)
    stop = feature(Feature.DMA_LOGGING_STOP, SET)
    for _ in range(2):
        assert device_feature(migration, stop) == stop
    with pytest.raises(ProtocolError):
        device_feature(migration, report(BASE, SIZE))
    device_feature(migration, start(8192))
    assert bits(device_feature(migration, report(BASE, SIZE))) == set()


# MIG_DATA_READ and MIG_DATA_WRITE


@for_each(STATES)
def test_data_is_read_and_written_in_the_states_for_it(state: MigrationState) -> None:
    migration = mapped()
    set_state(migration, state)
    if state in (PRE_COPY, STOP_COPY):
        assert read_data(migration, 8) == b"VFUSTATE"
    else:
        with pytest.raises(ProtocolError) as refused:
            read_data(migration, 8)
        assert refused.value.errno == errno.EINVAL
    if state is RESUMING:
        write_data(migration, b"VFUSTATE")
    else:
        with pytest.raises(ProtocolError) as refused:
            write_data(migration, b"VFUSTATE")
        assert refused.value.errno == errno.EINVAL
    assert get_state(migration) is state


@for_each_row([(8 + LIMIT + 1, LIMIT + 1), (7, 0), (15, 8), (0, 1), (0xFFFFFFFF, 0xFFFFFFFF)])
def test_transfers_that_do_not_fit_are_refused_and_lose_nothing(argsz: int, size: int) -> None:
    migration = mapped()
    set_state(migration, STOP_COPY)
    with pytest.raises(ProtocolError) as refused:
        mig_data_read(migration, struct.pack("<II", argsz, size), LIMIT)
    assert refused.value.errno == errno.EINVAL
    assert read_data(migration, 8) == b"VFUSTATE"


@for_each(
    [b"", bytes(7), struct.pack("<II", 16, 9) + bytes(9), struct.pack("<II", 17, 9) + bytes(8)],
    ids=["empty", "no head", "argsz too small", "fewer bytes than said"],
)
def test_malformed_writes_are_refused_and_take_nothing(payload: bytes) -> None:
    data = save(Adder())
    migration = mapped()
    set_state(migration, RESUMING)
    with pytest.raises(ProtocolError) as refused:
        mig_data_write(migration, payload, LIMIT)
    assert refused.value.errno == errno.EINVAL
    write_data(migration, data)
    set_state(migration, RUNNING)


def test_of_a_write_as_many_bytes_are_taken_as_it_says() -> None:
    source, migration = Adder(), mapped()
    source.values["total"] = 7
    data = save(source)
    set_state(migration, RESUMING)
    for at in range(0, len(data), 100):
        piece = data[at : at + 100]
        mig_data_write(migration, struct.pack("<II", 8 + len(piece), len(piece)) + piece + b"no state", LIMIT)
    set_state(migration, RUNNING)
    assert migration.device.save_state() == source.values


def test_the_end_of_the_state_is_a_read_of_no_bytes() -> None:
    migration = mapped()
    set_state(migration, STOP_COPY)
    assert read_all(migration)
    assert read_data(migration) == b""


def test_pre_copy_has_data_while_the_device_runs_and_stop_copy_the_rest() -> None:
    source, target = Adder(0x40000), Adder(0x40000)
    source.ram[:] = b"\xaa" * len(source.ram)
    migration = Migration(source)
    set_state(migration, PRE_COPY)
    first = read_all(migration)
    assert len(first) > len(source.ram)
    assert "stop" not in source.actions
    assert read_data(migration) == b""
    source.ram[0x5000:0x5003] = b"new"
    source.values["total"] = 77
    again = read_all(migration)
    assert b"new" in again
    assert len(again) < 2 * 4096
    source.ram[0x3F000:0x3F003] = b"end"
    set_state(migration, STOP_COPY)
    last = read_all(migration)
    assert b"end" in last
    assert b"new" not in last
    load(target, first + again + last)
    assert (target.ram, target.values) == (source.ram, source.values)


def test_pre_copy_that_is_cancelled_leaves_the_device_running_and_can_begin_again() -> None:
    device = Adder()
    migration = Migration(device)
    set_state(migration, PRE_COPY)
    read_data(migration, 100)
    set_state(migration, RUNNING)
    assert device.actions == []
    assert device.entered == [PRE_COPY, RUNNING], "it may have prepared to be stopped"
    set_state(migration, PRE_COPY)
    stream = read_all(migration)
    set_state(migration, STOP_COPY)
    load(Adder(), stream + read_all(migration))


def test_a_stopped_device_can_be_saved_twice() -> None:
    migration = mapped()
    set_state(migration, STOP_COPY)
    first = read_all(migration)
    set_state(migration, STOP)
    set_state(migration, STOP_COPY)
    assert read_all(migration) == first


# The gate

PASS_WHILE_STOPPED = {
    Command.REGION_READ,
    Command.REGION_WRITE,
    Command.DEVICE_FEATURE,
    Command.MIG_DATA_READ,
    Command.DIRTY_PAGES,
}


@for_each(STATES, Command)
def test_the_gate_refuses_what_a_stopped_device_cannot_take(state: MigrationState, command: Command) -> None:
    if state not in (STOP, STOP_COPY) or command in PASS_WHILE_STOPPED:
        check_command(state, command)
    else:
        with pytest.raises(ProtocolError) as refused:
            check_command(state, command)
        assert refused.value.errno == errno.EINVAL
    assert has_registers(state) is (state is not STOP_COPY)


@for_each(list(Command), ids=lambda command: command.name)
def test_everything_passes_in_error_because_a_reset_leaves_it(command: Command) -> None:
    migration = Migration(Adder())
    set_state(migration, RESUMING)
    with pytest.raises(ProtocolError):
        set_state(migration, STOP)
    assert get_state(migration) is ERROR
    check_command(migration.state, command)
