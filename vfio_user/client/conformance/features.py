"""DEVICE_FEATURE, MIG_DATA_READ, MIG_DATA_WRITE and dirty logging: migration by messages."""

from __future__ import annotations

import errno
from collections.abc import Callable
from functools import partial

from vfio_user.client.bitmap import bitmap_size
from vfio_user.client.conformance.bench import UNUSED_IOVA, Bench
from vfio_user.client.conformance.check import MESSAGES, Group, Level, Skip, require
from vfio_user.client.conformance.refusals import Bad, enter
from vfio_user.wire import Command
from vfio_user.wire.constants import Feature, FeatureFlags, MigrationState, MigrationSupport
from vfio_user.wire.layouts import (
    DEVICE_INFO,
    DEVICE_STATE,
    FEATURE,
    LOGGING_CONTROL,
    LOGGING_REPORT,
    MIGRATION_DATA,
    MIGRATION_FLAGS,
)

feature = Group("feature", "dialects 10.1: DEVICE_FEATURE", dialects=MESSAGES)
migration = Group("migration", "dialects 10.3: state machine", dialects=MESSAGES)
mig_data = Group("mig_data", "dialects 10.2: MIG_DATA_READ / WRITE", dialects=MESSAGES)
dirty_logging = Group("dirty_logging", "dialects 10.4: DMA_LOGGING_REPORT", dialects=MESSAGES)

GET, SET, PROBE = FeatureFlags.GET, FeatureFlags.SET, FeatureFlags.PROBE
S = MigrationState
_UNKNOWN = (errno.EINVAL, errno.ENOTTY)


def _request(flags: int, data: bytes = b"", *, argsz: int | None = None) -> bytes:
    return FEATURE.pack(FEATURE.size + len(data) if argsz is None else argsz, flags, tail=data)


def _need(bench: Bench) -> None:
    bench.need_migration()


# the container


@feature.check("none-without-migration")
def none_without_migration(bench: Bench) -> None:
    """A device that does not migrate refuses every migration feature with EINVAL or ENOTTY."""
    if bench.client.has_feature(Feature.MIGRATION):
        raise Skip("the device migrates")
    for number in Feature:
        bench.refused(bench.ask(Command.DEVICE_FEATURE, _request(number | PROBE)), _UNKNOWN, f"PROBE of {number.name}")


@feature.check("probe", rule="linux/vfio.h: VFIO_DEVICE_FEATURE_PROBE")
def probe(bench: Bench) -> None:
    """PROBE succeeds for what the device has, alone and with its operations, and echoes the request."""
    bench.need_migration()
    for number, operations in (
        (Feature.MIGRATION, GET),
        (Feature.MIG_DEVICE_STATE, GET),
        (Feature.MIG_DEVICE_STATE, SET),
        (Feature.MIG_DEVICE_STATE, GET | SET),
    ):
        for flags in (number | PROBE, number | PROBE | operations):
            request = _request(flags)
            reply = bench.good(bench.ask(Command.DEVICE_FEATURE, request), f"PROBE with flags {flags:#x}")
            require(reply.payload == request, f"PROBE with flags {flags:#x} is answered with something else")


@feature.check("migration-flags", rule="linux/vfio.h: VFIO_DEVICE_FEATURE_MIGRATION")
def migration_flags(bench: Bench) -> None:
    """GET of MIGRATION says what is supported, STOP_COPY at least, and rewrites argsz."""
    bench.need_migration()
    room = FEATURE.size + MIGRATION_FLAGS.size
    for argsz in (room, room + 64):
        reply = bench.good(bench.ask(Command.DEVICE_FEATURE, _request(Feature.MIGRATION | GET, argsz=argsz)), "GET")
        require(reply.size == 32, f"the reply has {reply.size} bytes instead of 32")
        require(FEATURE.unpack(reply.payload).argsz == room, "argsz is not the reply's true size")
        flags = MIGRATION_FLAGS.unpack(reply.payload, FEATURE.size).flags
        require(flags & MigrationSupport.STOP_COPY, f"STOP_COPY is not among the flags {flags:#x}")


_STATE_ROOM = FEATURE.size + DEVICE_STATE.size

enter(
    feature,
    Command.DEVICE_FEATURE,
    [
        Bad("payload-too-short", "a request of 7 bytes", _request(Feature.MIGRATION | GET)[:-1]),
        *(
            Bad(f"unknown-{number}", f"PROBE of feature {number}", _request(number | PROBE), _UNKNOWN)
            for number in (0, 3, 9, 0xFFFF)
        ),
        Bad("unknown-get", "GET of an unknown feature", _request(9 | GET, argsz=64), _UNKNOWN),
        Bad("set-migration", "SET of MIGRATION", _request(Feature.MIGRATION | SET, bytes(8)), _UNKNOWN),
        Bad("get-logging-start", "GET of DMA_LOGGING_START", _request(6 | GET, bytes(16), argsz=64), _UNKNOWN),
        Bad("set-logging-report", "SET of DMA_LOGGING_REPORT", _request(8 | SET, bytes(24)), _UNKNOWN),
        Bad("probe-wrong-operation", "PROBE of SET on MIGRATION", _request(Feature.MIGRATION | PROBE | SET), _UNKNOWN),
        Bad("unknown-flag", "an unknown flag", _request(Feature.MIGRATION | GET | 1 << 19, argsz=32)),
        Bad("unknown-high-flag", "an unknown high flag", _request(Feature.MIGRATION | PROBE | 1 << 31)),
        Bad("no-operation", "no operation", _request(Feature.MIGRATION, argsz=32)),
        Bad(
            "get-and-set",
            "GET and SET at once",
            _request(Feature.MIG_DEVICE_STATE | GET | SET, DEVICE_STATE.pack(S.RUNNING, 0)),
        ),
        Bad("get-argsz", "GET with too little room", _request(Feature.MIGRATION | GET, argsz=15)),
        Bad("get-state-argsz", "GET of the state with too little room", _request(2 | GET, argsz=_STATE_ROOM - 1)),
        Bad("probe-argsz", "PROBE with an argsz below its payload", _request(Feature.MIGRATION | PROBE, argsz=7)),
        Bad(
            "set-argsz",
            "SET with an argsz below its payload",
            _request(2 | SET, DEVICE_STATE.pack(S.STOP, 0), argsz=_STATE_ROOM - 1),
        ),
        Bad("set-too-short", "SET of the state without a state", _request(2 | SET)),
    ],
    need=_need,
)


# the state machine

_INVALID = (S.ERROR, S.RUNNING_P2P, S.PRE_COPY_P2P, 8, 0xFFFF_FFFF)

_STATES = (S.RUNNING, S.STOP, S.STOP_COPY, S.RESUMING, S.PRE_COPY)


class _Visit:
    """A visit to a state, from RUNNING and back to it whatever happens there; with the state to resume from."""

    def __init__(self, bench: Bench, state: MigrationState) -> None:
        _need_state(bench, state)
        self._bench = bench
        self._state = state
        self.saved = b""

    def __enter__(self) -> _Visit:
        client = self._bench.client
        self.saved = client.save()
        client.set_migration_state(S.RUNNING)
        if self._state is not S.RUNNING:
            client.set_migration_state(self._state)
        return self

    def write_state(self) -> None:
        """Give a device in RESUMING the state it may leave with."""
        self._bench.client.mig_data_write(self.saved)

    def __exit__(self, *_: object) -> None:
        client = self._bench.client
        found = client.migration_state()
        if found is S.RESUMING:
            self.write_state()
        if found is not S.RUNNING:
            client.set_migration_state(S.RUNNING)


def _need_state(bench: Bench, state: MigrationState) -> None:
    bench.need_migration()
    if state is S.PRE_COPY and not bench.client.migration_support() & MigrationSupport.PRE_COPY:
        raise Skip("the device has no pre-copy")


def _arc(start: MigrationState, end: MigrationState, bench: Bench) -> None:
    _need_state(bench, end)
    client = bench.client
    with _Visit(bench, start) as visit:
        if (start, end) == (S.STOP_COPY, S.PRE_COPY):
            reply = bench.ask(Command.DEVICE_FEATURE, _request(2 | SET, DEVICE_STATE.pack(end, 0)))
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
            f"{start.name.lower()}-to-{end.name.lower()}".replace("_", "-"),
            f"{start.name} to {end.name} {allowed}",
            partial(_arc, start, end),
            level=Level.REFERENCE,
        )


@migration.check("initial-state", rule="linux/vfio.h: the initial state is RUNNING")
def initial_state(bench: Bench) -> None:
    """A device that nobody has migrated is in RUNNING."""
    bench.need_migration()
    found = bench.client.migration_state()
    require(found is S.RUNNING, f"the state is {found.name}")


@migration.check("invalid-states", level=Level.REFERENCE)
def invalid_states(bench: Bench) -> None:
    """A state that does not exist, ERROR, and P2P states that are not supported are refused with EINVAL."""
    bench.need_migration()
    p2p = bench.client.migration_support() & MigrationSupport.P2P
    for state in _INVALID:
        if p2p and state in (S.RUNNING_P2P, S.PRE_COPY_P2P):
            continue
        reply = bench.ask(Command.DEVICE_FEATURE, _request(2 | SET, DEVICE_STATE.pack(state, 0)))
        bench.refused(reply, (errno.EINVAL,), f"state {state}")
        require(bench.client.migration_state() is S.RUNNING, f"the state changed after {state} was refused")


@migration.check("round-trip", rule="linux/vfio.h: STOP_COPY and RESUMING")
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


@migration.check("stopped-device", level=Level.REFERENCE, rule="dialects 4: command in state STOP or STOP_COPY")
def stopped_device(bench: Bench) -> None:
    """In STOP and STOP_COPY the state can be asked for and set; descriptions may be refused with EINVAL."""
    for state in (S.STOP, S.STOP_COPY):
        with _Visit(bench, state):
            require(bench.client.migration_state() is state, f"the state is not {state.name}")
            reply = bench.ask(Command.GET_INFO, DEVICE_INFO.pack(16, 0, 0, 0))
            if reply.failed:
                bench.refused(reply, (errno.EINVAL,), f"GET_INFO in {state.name}")


@migration.check("survives-client", level=Level.REFERENCE, rule="dialects 10.3: disconnect does not change the state")
def survives_client(bench: Bench) -> None:
    """A client that leaves in STOP_COPY leaves a device that the next client can set running."""
    bench.need_migration()
    bench.client.set_migration_state(S.STOP_COPY)
    bench.client.close()
    client = bench.connect()
    if client.migration_state() is not S.RUNNING:
        client.set_migration_state(S.RUNNING)
    client.device_info()


# the data


def _data(size: int, *, argsz: int | None = None, data: bytes = b"") -> bytes:
    return MIGRATION_DATA.pack(MIGRATION_DATA.size + size if argsz is None else argsz, size, tail=data)


@mig_data.check("reads-to-the-end", rule="dialects 10.2: size 0 = end of stream")
def reads_to_the_end(bench: Bench) -> None:
    """In STOP_COPY the state comes in pieces and ends with a piece of size 0."""
    with _Visit(bench, S.STOP_COPY):
        pieces = list(bench.client.saved_state(chunk=4096))
        require(pieces, "a device without any state")
        require(not bench.client.mig_data_read(4096), "data comes behind the end")


@mig_data.check("small-pieces", level=Level.REFERENCE)
def small_pieces(bench: Bench) -> None:
    """The state is the same in pieces of 7 bytes as in one."""
    with _Visit(bench, S.STOP_COPY) as visit:
        if len(visit.saved) > 1 << 16:
            raise Skip(f"the state has {len(visit.saved)} bytes")
        pieces = b"".join(bench.client.saved_state(chunk=7))
    whole = len(visit.saved)
    require(len(pieces) == whole, f"{whole} bytes in one piece and {len(pieces)} in pieces of 7")


def _bad_data(command: Command, name: str, what: str, state: MigrationState, payload: bytes) -> None:
    def run(bench: Bench) -> None:
        with _Visit(bench, state):
            bench.refused(bench.ask(command, payload), (errno.EINVAL,), what)
            require(bench.client.migration_state() is state, f"the state changed after {what} was refused")

    mig_data.add(name, f"{what} is refused with EINVAL", run, level=Level.REFERENCE)


_READ, _WRITE = Command.MIG_DATA_READ, Command.MIG_DATA_WRITE
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


# dirty logging

BASE = 0x10_0000
SIZE = 0x1_0000
PAGE = 0x1000


def _start(page_size: int, ranges: int = 0, tail: bytes = b"") -> bytes:
    return _request(Feature.DMA_LOGGING_START | SET, LOGGING_CONTROL.pack(page_size, ranges, 0, tail=tail))


def _report(iova: int, length: int, page_size: int, *, argsz: int | None = None) -> bytes:
    bits = bitmap_size(length, page_size) if page_size else 8
    room = FEATURE.size + LOGGING_REPORT.size + bits
    request = LOGGING_REPORT.pack(iova, length, page_size)
    return _request(Feature.DMA_LOGGING_REPORT | GET, request, argsz=room if argsz is None else argsz)


def _need_logging(bench: Bench) -> None:
    bench.need_migration()
    bench.need_dma()
    if not bench.client.has_feature(Feature.DMA_LOGGING_START):
        raise Skip("the device does not log what it writes")


def _logging(bench: Bench) -> Callable[[], None]:
    """A range is mapped and logged; afterwards the log can still be read."""
    client = bench.client
    bench.need_fds()
    client.dma_map(BASE, bench.memory(SIZE))
    client.start_logging(PAGE)

    def check() -> None:
        client.report_logging(BASE, SIZE, PAGE)
        client.stop_logging()

    return check


@dirty_logging.check("clean-at-first")
def clean_at_first(bench: Bench) -> None:
    """A range that the device did not touch is reported without dirty pages."""
    _need_logging(bench)
    bench.need_fds()
    client = bench.client
    client.dma_map(BASE, bench.memory(SIZE))
    client.start_logging(PAGE)
    try:
        dirty = client.report_logging(BASE, SIZE, PAGE).pages()
        require(not dirty, f"{len(dirty)} pages are dirty that nobody wrote")
        client.report_logging(BASE, SIZE // 2, PAGE)
    finally:
        client.stop_logging()


@dirty_logging.check("start-twice", level=Level.REFERENCE, rule="dialects 10.1: LOGGING_START")
def start_twice(bench: Bench) -> None:
    """Starting again with the same page size succeeds; with another it is refused with EINVAL."""
    _need_logging(bench)
    bench.client.start_logging(PAGE)
    try:
        bench.client.start_logging(PAGE)
        reply = bench.ask(Command.DEVICE_FEATURE, _start(2 * PAGE))
        bench.refused(reply, (errno.EINVAL,), "starting again with another page size")
    finally:
        bench.client.stop_logging()


@dirty_logging.check("stop-twice", level=Level.REFERENCE, rule="dialects 10.1: LOGGING_STOP when off")
def stop_twice(bench: Bench) -> None:
    """Stopping what was not started succeeds."""
    _need_logging(bench)
    bench.client.stop_logging()
    bench.client.stop_logging()


@dirty_logging.check("unmap-with-bitmap", rule="spec: DMA_UNMAP, GET_DIRTY_BITMAP")
def unmap_with_bitmap(bench: Bench) -> None:
    """A range is unmapped with its bitmap while logging is on."""
    _need_logging(bench)
    bench.need_fds()
    client = bench.client
    client.dma_map(BASE, bench.memory(SIZE))
    client.start_logging(PAGE)
    try:
        found = client.dma_unmap(BASE, SIZE, page_size=PAGE)
        require(found is not None and not found.pages(), "pages are dirty that nobody wrote")
    finally:
        client.stop_logging()


@dirty_logging.check("off", level=Level.REFERENCE)
def report_when_off(bench: Bench) -> None:
    """A report while nothing is logged is refused with EINVAL."""
    _need_logging(bench)
    bench.need_fds()
    bench.client.dma_map(BASE, bench.memory(SIZE))
    reply = bench.ask(Command.DEVICE_FEATURE, _report(BASE, SIZE, PAGE))
    bench.refused(reply, (errno.EINVAL,), "a report while nothing is logged")


enter(
    dirty_logging,
    Command.DEVICE_FEATURE,
    [
        Bad("start-page-size-0", "starting with page size 0", _start(0)),
        Bad("start-ranges-missing", "starting with a range announced and none sent", _start(PAGE, ranges=1)),
        Bad("start-too-short", "starting without a structure", _request(Feature.DMA_LOGGING_START | SET, bytes(8))),
    ],
    need=_need_logging,
)
enter(
    dirty_logging,
    Command.DEVICE_FEATURE,
    [
        Bad("report-unmapped", "a report of what is not mapped", _report(UNUSED_IOVA, SIZE, PAGE), (errno.ENOENT,)),
        Bad("report-page-size-0", "a report with page size 0", _report(BASE, SIZE, 0)),
        Bad("report-page-size-odd", "a report with a page size of 4095", _report(BASE, SIZE, 4095)),
        Bad("report-length-0", "a report of no pages", _report(BASE, 0, PAGE)),
        Bad("report-argsz", "a report with too little room", _report(BASE, SIZE, PAGE, argsz=39)),
        Bad("report-too-short", "a report without a range", _request(Feature.DMA_LOGGING_REPORT | GET, argsz=64)),
    ],
    need=_need_logging,
    keep=_logging,
)
