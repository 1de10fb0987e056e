"""Migration by messages: the state machine, MIG_DATA_READ and MIG_DATA_WRITE."""

from __future__ import annotations

import errno
from contextlib import suppress
from functools import partial

from userdev.conformance.check import Group, Level, Skip, require
from vfio_user.client.conformance.access import reset
from vfio_user.client.conformance.bench import Bench
from vfio_user.client.conformance.dialects import MESSAGES
from vfio_user.client.conformance.features import SET, SET_LOOKED_AT, container
from vfio_user.client.errors import RemoteError
from vfio_user.client.reading import read_as
from vfio_user.wire import Command
from vfio_user.wire.constants import MigrationState, MigrationSupport
from vfio_user.wire.layouts import DEVICE_INFO, DEVICE_STATE, MIGRATION_DATA

migration = Group[Bench]("migration", "protocol.md 10.3: state machine", dialects=MESSAGES)
mig_data = Group[Bench]("mig_data", "protocol.md 10.2: MIG_DATA_READ / WRITE", dialects=MESSAGES)

S = MigrationState

_INVALID = (S.ERROR, S.RUNNING_P2P, S.PRE_COPY_P2P, 8, 0xFFFF_FFFF)

_STATES = (S.RUNNING, S.STOP, S.STOP_COPY, S.RESUMING, S.PRE_COPY)


class _Visit:
    """A visit to a state, from RUNNING and back to it whatever happens there; with the state to resume from.

    That the device comes back is the rule of other checks.
    """

    def __init__(self, bench: Bench, state: MigrationState) -> None:
        _need_state(bench, state)
        self._bench = bench
        self._state = state
        self.saved = b""

    def __enter__(self) -> _Visit:
        client = self._bench.client
        if client.migration_state() is not S.RUNNING:
            client.set_migration_state(S.RUNNING)
        if self._state is S.RESUMING:
            self.saved = client.save()
            client.set_migration_state(S.RUNNING)
        if self._state is not S.RUNNING:
            client.set_migration_state(self._state)
        return self

    def write_state(self) -> None:
        """Give a device in RESUMING the state it may leave with."""
        self._bench.client.write_state(self.saved)

    def __exit__(self, *_: object) -> None:
        client = self._bench.client
        with suppress(RemoteError):
            found = client.migration_state()
            if found is S.RESUMING:
                self.write_state()
            if found is not S.RUNNING:
                client.set_migration_state(S.RUNNING)


def _arrived(*states: MigrationState) -> tuple[str, ...]:
    """The checks that a device gets from RUNNING to these states; what resumes has been saved before, and has run."""
    wanted = dict.fromkeys((*states, S.STOP_COPY, S.RUNNING) if S.RESUMING in states else states)
    return tuple(_arc_id(S.RUNNING, state) for state in wanted)


def _arc_id(start: MigrationState, end: MigrationState) -> str:
    return f"migration/{start.name}-to-{end.name}".lower().replace("_", "-")


MOVES = "migration/running-to-stop"
LEAVES = "migration/resuming-to-running"
"""What a SET does, and what a write of state does: without these rules nothing is known of others."""


def _arc_needs(start: MigrationState, end: MigrationState) -> tuple[str, ...]:
    id = _arc_id(start, end)
    first = () if start is end is S.RUNNING else (*SET_LOOKED_AT, MOVES)
    resumed = (LEAVES,) if start is S.RESUMING else ()
    return tuple(need for need in (*first, *_arrived(start, end), *resumed) if need != id)


def _need_state(bench: Bench, state: MigrationState) -> None:
    bench.need_migration()
    if state is S.PRE_COPY and not bench.client.migration_support() & MigrationSupport.PRE_COPY:
        raise Skip("the device has no pre-copy")


def _arc(start: MigrationState, end: MigrationState, bench: Bench) -> None:
    _need_state(bench, end)
    client = bench.client
    with _Visit(bench, start) as visit:
        if (start, end) == (S.STOP_COPY, S.PRE_COPY):
            reply = bench.ask(Command.DEVICE_FEATURE, container(2 | SET, DEVICE_STATE.pack(end, 0)))
            bench.refused(reply, (errno.EINVAL,), "STOP_COPY to PRE_COPY")
            end = start
        else:
            if start is S.RESUMING and end is not S.RESUMING:
                visit.write_state()
            client.set_migration_state(end)
        found = client.migration_state()
        require(found is end, f"the state is {found.name} instead of {end.name}")


for start in _STATES:
    for end in _STATES:
        allowed = "is refused" if (start, end) == (S.STOP_COPY, S.PRE_COPY) else "is allowed"
        migration.add(
            _arc_id(start, end).removeprefix("migration/"),
            f"{start.name} to {end.name} {allowed}",
            partial(_arc, start, end),
            level=Level.REFERENCE,
            needs=_arc_needs(start, end),
        )


@migration.check("initial-state", rule="linux/vfio.h: the initial state is RUNNING")
def initial_state(bench: Bench) -> None:
    """A device that nobody has migrated is in RUNNING."""
    bench.need_migration()
    found = bench.client.migration_state()
    require(found is S.RUNNING, f"the state is {found.name}")


@migration.check("invalid-states", level=Level.REFERENCE, needs=(*SET_LOOKED_AT, MOVES))
def invalid_states(bench: Bench) -> None:
    """A state that does not exist, ERROR, and P2P states that are not supported are refused with EINVAL."""
    bench.need_migration()
    p2p = bench.client.migration_support() & MigrationSupport.P2P
    for state in _INVALID:
        if p2p and state in (S.RUNNING_P2P, S.PRE_COPY_P2P):
            continue
        reply = bench.ask(Command.DEVICE_FEATURE, container(2 | SET, DEVICE_STATE.pack(state, 0)))
        bench.refused(reply, (errno.EINVAL,), f"state {state}")
        require(bench.client.migration_state() is S.RUNNING, f"the state changed after {state} was refused")


_THERE_AND_BACK = (*_arrived(S.STOP_COPY, S.RESUMING, S.STOP), _arc_id(S.STOP_COPY, S.RUNNING), LEAVES)


@migration.check("round-trip", rule="linux/vfio.h: STOP_COPY and RESUMING", needs=_THERE_AND_BACK)
def round_trip(bench: Bench) -> None:
    """A state that was saved can be loaded into the same device, which then runs and looks as before."""
    bench.need_migration()
    client = bench.client
    before = bench.snapshot()
    with _Visit(bench, S.RUNNING):
        state = client.save()
        client.set_migration_state(S.STOP)
        client.load_state(state)
    bench.unchanged(before, "a migration to itself")


@migration.check(
    "stopped-device",
    level=Level.REFERENCE,
    rule="protocol.md 4: command in state STOP or STOP_COPY",
    needs=_arrived(S.STOP, S.STOP_COPY, S.RUNNING),
)
def stopped_device(bench: Bench) -> None:
    """In STOP and STOP_COPY the state can be asked for and set; descriptions may be refused with EINVAL."""
    for state in (S.STOP, S.STOP_COPY):
        with _Visit(bench, state):
            require(bench.client.migration_state() is state, f"the state is not {state.name}")
            reply = bench.ask(Command.GET_INFO, DEVICE_INFO.pack(16, 0, 0, 0))
            if reply.failed:
                bench.refused(reply, (errno.EINVAL,), f"GET_INFO in {state.name}")


@migration.check(
    "survives-client",
    level=Level.REFERENCE,
    rule="protocol.md 10.3: disconnect does not change the state",
    needs=_THERE_AND_BACK,
)
def survives_client(bench: Bench) -> None:
    """A client that leaves in STOP_COPY leaves a device that the next client can set running."""
    bench.need_migration()
    bench.client.set_migration_state(S.STOP_COPY)
    bench.client.close()
    client = bench.connect()
    if client.migration_state() is not S.RUNNING:
        client.set_migration_state(S.RUNNING)
    client.device_info()


@reset.check(
    "ends-error",
    dialects=MESSAGES,
    rule="spec: VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE, to recover from ERROR",
    needs=(*_THERE_AND_BACK, "reset/succeeds"),
)
def reset_ends_error(bench: Bench) -> None:
    """A device that half a state has brought to ERROR is RUNNING again after DEVICE_RESET."""
    client = bench.client
    with _Visit(bench, S.RESUMING) as visit:
        half = len(visit.saved) // 2
        client.write_state(visit.saved[:half])
        taken = not bench.ask(Command.DEVICE_FEATURE, container(2 | SET, DEVICE_STATE.pack(S.STOP, 0))).failed
        found = client.migration_state()
        if taken:
            client.load_state(visit.saved)
        elif found is S.RESUMING:
            client.write_state(visit.saved[half:])
            client.set_migration_state(S.STOP)
        if taken or found is not S.ERROR:
            raise Skip("half a state does not bring the device to ERROR")
        client.reset()
        found = client.migration_state()
        require(found is S.RUNNING, f"the state is {found.name} after a reset in ERROR")


# the data


def _data(size: int, *, argsz: int | None = None, data: bytes = b"") -> bytes:
    return MIGRATION_DATA.pack(MIGRATION_DATA.size + size if argsz is None else argsz, size, tail=data)


_READ, _WRITE = Command.MIG_DATA_READ, Command.MIG_DATA_WRITE
_SAVES = _arrived(S.STOP_COPY, S.RUNNING)


@mig_data.check("reads-to-the-end", rule="protocol.md 10.2: size 0 = end of stream", needs=_SAVES)
def reads_to_the_end(bench: Bench) -> None:
    """In STOP_COPY the state comes in pieces and ends with a piece of size 0."""
    with _Visit(bench, S.STOP_COPY):
        size = sum(map(len, bench.client.saved_state(chunk=4096)))
        require(size, "a device without any state")
        require(not bench.client.mig_data_read(min(4096, bench.client.data_limit)), "data comes behind the end")


@mig_data.check("small-pieces", level=Level.REFERENCE, needs=(*_SAVES, "mig_data/reads-to-the-end"))
def small_pieces(bench: Bench) -> None:
    """The state is the same in pieces of 7 bytes as in one."""
    with _Visit(bench, S.STOP_COPY):
        whole = sum(map(len, bench.client.saved_state()))
        if whole > 1 << 16:
            raise Skip(f"the state has {whole} bytes")
    with _Visit(bench, S.STOP_COPY):
        pieces = sum(map(len, bench.client.saved_state(chunk=7)))
    require(pieces == whole, f"{whole} bytes in one piece and {pieces} in pieces of 7")


_PIECE, _MOST_PIECES = 64, 64


@mig_data.check(
    "less-is-the-end",
    rule="spec: VFIO_USER_MIG_DATA_READ, argsz and size",
    needs=(*_SAVES, "mig_data/reads-to-the-end"),
)
def less_is_the_end(bench: Bench) -> None:
    """In STOP_COPY only the last piece is smaller than what was asked for, and argsz is what a piece takes."""
    with _Visit(bench, S.STOP_COPY):
        ended = False
        for _ in range(_MOST_PIECES):
            reply = bench.good(bench.ask(_READ, _data(_PIECE)), "a read of the state")
            told = read_as(MIGRATION_DATA, reply.payload, _READ.value)
            require(told.argsz == MIGRATION_DATA.size + told.size, f"{told.size} bytes come with argsz {told.argsz}")
            require(
                not ended or not told.size, f"{told.size} bytes come behind a piece that was smaller than asked for"
            )
            ended = told.size < _PIECE
            if not told.size:
                break


@mig_data.check(
    "write-reply-is-header", rule="spec: VFIO_USER_MIG_DATA_WRITE, Reply", needs=(*_arrived(S.RESUMING, S.STOP), LEAVES)
)
def write_reply_is_header(bench: Bench) -> None:
    """A write of state is answered with a header and nothing else."""
    with _Visit(bench, S.RESUMING) as visit:
        piece = visit.saved[: bench.client.data_limit]
        reply = bench.good(bench.ask(_WRITE, _data(len(piece), data=piece)), "a write of the state that was saved")
        bench.client.write_state(visit.saved[len(piece) :])
        bench.client.set_migration_state(S.STOP)
        require(reply.size == 16, f"the reply has {reply.size} bytes instead of 16")


def _bad_data(command: Command, name: str, what: str, state: MigrationState, payload: bytes) -> None:
    def run(bench: Bench) -> None:
        with _Visit(bench, state):
            bench.refused(bench.ask(command, payload), (errno.EINVAL,), what)
            require(bench.client.migration_state() is state, f"the state changed after {what} was refused")

    title = f"{what} is refused with EINVAL"
    done = (LEAVES,) if command is _WRITE else ()
    mig_data.add(name, title, run, level=Level.REFERENCE, needs=(*_arrived(state), *done))


for command, name, what, state, payload in (
    (_READ, "read-running", "reading in RUNNING", S.RUNNING, _data(16)),
    (_READ, "read-stop", "reading in STOP", S.STOP, _data(16)),
    (_READ, "read-resuming", "reading in RESUMING", S.RESUMING, _data(16)),
    (_READ, "read-payload", "a read of 7 bytes of request", S.STOP_COPY, _data(16)[:-1]),
    (_READ, "read-argsz", "a read whose argsz does not hold it", S.STOP_COPY, _data(16, argsz=23)),
    (_READ, "read-too-large", "a read of more than max_data_xfer_size", S.STOP_COPY, _data((1 << 20) + 1)),
    (_READ, "read-huge", "a read of 4 GiB", S.STOP_COPY, _data(0xFFFF_FFFF, argsz=0xFFFF_FFFF)),
    (_WRITE, "write-running", "writing in RUNNING", S.RUNNING, _data(4, data=b"abcd")),
    (_WRITE, "write-stop-copy", "writing in STOP_COPY", S.STOP_COPY, _data(4, data=b"abcd")),
    (_WRITE, "write-payload", "a write of 7 bytes of request", S.RESUMING, _data(4)[:-1]),
    (_WRITE, "write-argsz", "a write whose argsz does not hold it", S.RESUMING, _data(4, argsz=11, data=b"abcd")),
    (_WRITE, "write-data-missing", "a write with less data than it says", S.RESUMING, _data(5, data=b"abcd")),
    (_WRITE, "write-too-large", "a write of 4 GiB", S.RESUMING, _data(0xFFFF_FFFF, argsz=0xFFFF_FFFF)),
):
    _bad_data(command, name, what, state, payload)
