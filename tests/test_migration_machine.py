"""The migration state machine: every pair of states, what happens on the way, and what happens when that fails."""

from __future__ import annotations

import errno

import pytest

from tests.cases import for_each, for_each_row
from tests.migration_device import Adder, get_state, save, set_state, write_data
from userdev.errors import ProtocolError
from vfio_user.migration import Migration
from vfio_user.migration.machine import V1_STATES, StateMachine
from vfio_user.wire.constants import MigrationState

ERROR, STOP, RUNNING, STOP_COPY, RESUMING, RUNNING_P2P, PRE_COPY, PRE_COPY_P2P = MigrationState

STATES = (STOP, RUNNING, STOP_COPY, RESUMING, PRE_COPY)

# docs/protocol.md 10.3, row by row; None: EINVAL
PATHS: dict[MigrationState, tuple[str | None, ...]] = {
    #           STOP            RUNNING         STOP_COPY         RESUMING              PRE_COPY
    STOP:      ("",             "RUNNING",      "STOP_COPY",      "RESUMING",           "RUNNING PRE_COPY"),
    RUNNING:   ("STOP",         "",             "STOP STOP_COPY", "STOP RESUMING",      "PRE_COPY"),
    STOP_COPY: ("STOP",         "STOP RUNNING", "",               "STOP RESUMING",      None),
    RESUMING:  ("STOP",         "STOP RUNNING", "STOP STOP_COPY", "",                   "STOP RUNNING PRE_COPY"),
    PRE_COPY:  ("RUNNING STOP", "RUNNING",      "STOP_COPY",      "RUNNING STOP RESUMING", ""),
}  # fmt: skip
CELLS = [(start, end, path) for start, row in PATHS.items() for end, path in zip(STATES, row, strict=True)]


class Recorder:
    """A machine that writes down the arcs it takes; `broken` is one that fails."""

    def __init__(self, start: MigrationState = RUNNING, broken: tuple[int, int] | None = None) -> None:
        self.taken: list[MigrationState] = []
        self.broken = broken

        def step(here: MigrationState, there: MigrationState) -> None:
            if (here, there) == self.broken:
                raise OSError(errno.EBUSY, "no")
            self.taken.append(there)

        pairs = [(here, there) for here in STATES for there in STATES]
        self.machine = StateMachine({pair: lambda pair=pair: step(*pair) for pair in pairs})  # type: ignore[misc]
        self.machine.enter(start)


@for_each_row(CELLS, ids=lambda value: getattr(value, "name", None))
def test_a_request_takes_the_documented_path(start: MigrationState, end: MigrationState, path: str | None) -> None:
    recorder = Recorder(start)
    if path is None:
        with pytest.raises(ProtocolError) as refused:
            recorder.machine.request(end)
        assert refused.value.errno == errno.EINVAL
        assert recorder.machine.state is start
    else:
        recorder.machine.request(end)
        assert recorder.machine.state is end
    assert [state.name for state in recorder.taken] == (path or "").split()


@for_each(STATES, [ERROR, RUNNING_P2P, PRE_COPY_P2P, 8, 0xFFFFFFFF])
def test_states_that_are_not_offered_are_refused(start: MigrationState, end: int) -> None:
    recorder = Recorder(start)
    with pytest.raises(ProtocolError) as refused:
        recorder.machine.request(end)
    assert refused.value.errno == errno.EINVAL
    assert (recorder.machine.state, recorder.taken) == (start, [])


MULTI_ARC = [(start, end, path.split()) for start, end, path in CELLS if path and " " in path]


@for_each_row(MULTI_ARC)
def test_a_failing_arc_leaves_the_last_state_reached(
    start: MigrationState, end: MigrationState, path: list[str]
) -> None:
    before, last = MigrationState[path[-2]], MigrationState[path[-1]]
    recorder = Recorder(start, broken=(before, last))
    with pytest.raises(ProtocolError) as refused:
        recorder.machine.request(end)
    assert refused.value.errno == errno.EBUSY
    assert recorder.machine.state is before


# v1: rows from, columns to, in the order 0 1 2 3 4 6 (docs/protocol.md 10.5); y specified, + libvfio-user's extension
V1_TABLE = {
    0: "+++...",
    1: "y+yyy+",
    2: "y++..+",
    3: "++y+.+",
    4: ".y..++",
    6: "......",
}
V1_CELLS = [
    (start, end, mark != ".")
    for start, row in V1_TABLE.items()
    for end, mark in zip((0, 1, 2, 3, 4, 6), row, strict=True)
]


@for_each_row(V1_CELLS)
def test_v1_transitions_are_those_of_the_table(start: int, end: int, allowed: bool) -> None:
    recorder = Recorder(V1_STATES[start])
    if allowed:
        recorder.machine.request_v1(end)
        assert recorder.machine.state is V1_STATES[end]
    else:
        with pytest.raises(ProtocolError) as refused:
            recorder.machine.request_v1(end)
        assert refused.value.errno == errno.EINVAL
        assert recorder.machine.state is V1_STATES[start]


@for_each(V1_STATES, [5, 7, 8, 0x80000001])
def test_invalid_v1_values_are_refused(start: int, value: int) -> None:
    recorder = Recorder(V1_STATES[start])
    with pytest.raises(ProtocolError) as refused:
        recorder.machine.request_v1(value)
    assert refused.value.errno == errno.EINVAL
    assert recorder.machine.state is V1_STATES[start]


def test_a_device_is_stopped_and_started_when_it_runs() -> None:
    device = Adder()
    migration = Migration(device)
    set_state(migration, STOP)
    assert device.actions == ["stop"]
    set_state(migration, RUNNING)
    assert device.actions == ["stop", "start"]


def test_pre_copy_stops_the_device_only_when_it_ends_in_stop_copy() -> None:
    device = Adder()
    migration = Migration(device)
    set_state(migration, PRE_COPY)
    assert device.actions == []
    set_state(migration, STOP_COPY)
    assert device.actions == ["stop"]


def test_a_device_that_cannot_stand_still_goes_on_running() -> None:
    device = Adder()
    device.fails["stop"] = ProtocolError("busy", errno.EBUSY)
    migration = Migration(device)
    with pytest.raises(ProtocolError) as refused:
        set_state(migration, STOP_COPY)
    assert refused.value.errno == errno.EBUSY
    assert get_state(migration) is RUNNING


def test_a_session_replaces_the_way_to_stop_while_it_lasts() -> None:
    device, calls = Adder(), []
    migration = Migration(device)
    migration.attach(lambda: calls.append("session"))
    set_state(migration, STOP)
    migration.detach()
    migration.attach()
    set_state(migration, STOP)
    assert calls == ["session"]
    assert device.actions == ["start", "stop"]


def failed_load(device: Adder) -> Migration:
    migration = Migration(device)
    set_state(migration, RESUMING)
    with pytest.raises(ProtocolError):
        set_state(migration, STOP)
    return migration


def test_only_a_reset_leaves_error() -> None:
    migration = failed_load(Adder())
    assert get_state(migration) is ERROR
    for state in STATES:
        with pytest.raises(ProtocolError) as refused:
            set_state(migration, state)
        assert refused.value.errno == errno.EINVAL
    migration.was_reset()
    assert get_state(migration) is RUNNING
    set_state(migration, STOP_COPY)


@for_each(STATES)
def test_a_reset_does_not_touch_any_other_state(state: MigrationState) -> None:
    migration = Migration(Adder())
    set_state(migration, state)
    migration.was_reset()
    assert get_state(migration) is state


def test_a_guest_that_resets_its_device_in_pre_copy_migrates_it_as_reset() -> None:
    device, target = Adder(), Adder()
    device.values["total"] = 5
    device.ram[:4] = b"data"
    migration = Migration(device)
    set_state(migration, PRE_COPY)
    stream = migration.read_state(1 << 20)
    device.values["total"] = 0
    device.ram[:4] = bytes(4)
    migration.was_reset()
    set_state(migration, STOP_COPY)
    stream += migration.read_state(1 << 20)
    other = Migration(target)
    set_state(other, RESUMING)
    write_data(other, stream)
    set_state(other, RUNNING)
    assert (target.values, target.ram) == (device.values, device.ram)
    assert target.values["total"] == 0


@for_each(STATES)
def test_the_next_client_finds_the_device_running(state: MigrationState) -> None:
    device = Adder()
    migration = Migration(device)
    set_state(migration, state)
    migration.detach()
    migration.attach()
    assert get_state(migration) is RUNNING
    assert device.actions.count("stop") == device.actions.count("start")


def test_a_client_that_dies_in_stop_copy_leaves_the_device_stopped_until_another_comes() -> None:
    device = Adder()
    migration = Migration(device)
    set_state(migration, STOP_COPY)
    migration.detach()
    assert migration.state is STOP
    assert "start" not in device.actions


def test_a_client_that_dies_while_it_loads_leaves_the_device_as_it_was() -> None:
    source, device = Adder(), Adder()
    source.values["total"] = 9
    migration = Migration(device)
    set_state(migration, RESUMING)
    write_data(migration, save(source))
    migration.detach()
    migration.attach()
    assert device.values["total"] == 0


def test_a_client_that_goes_takes_its_log_along() -> None:
    device = Adder()
    migration = Migration(device)
    device.dma.start_log(4096)
    migration.detach()
    assert device.dma.log_page_size == 0


def test_whoever_watches_is_told_of_every_state_however_it_came_about() -> None:
    device = Adder()
    migration, seen = Migration(device), list[MigrationState]()
    end = migration.watch(lambda: seen.append(migration.state))
    set_state(migration, RESUMING)
    with pytest.raises(ProtocolError):
        set_state(migration, RUNNING)  # nothing was loaded
    migration.was_reset()
    migration.set_v1_state(2)
    with pytest.raises(ProtocolError):
        migration.set_v1_state(3)
    device.fails["start"] = OSError(errno.EBUSY, "no")
    with pytest.raises(ProtocolError):
        set_state(migration, RUNNING)
    del device.fails["start"]
    migration.detach()
    migration.attach()
    assert seen == [STOP, RESUMING, ERROR, RUNNING, STOP, STOP_COPY, STOP, RUNNING]
    end()
    set_state(migration, STOP)
    assert seen[-1] is RUNNING
