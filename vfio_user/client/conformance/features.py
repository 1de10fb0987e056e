"""DEVICE_FEATURE: the container that features travel in."""

from __future__ import annotations

import errno

from userdev.conformance.check import Group, Level, Skip, require
from vfio_user.client.conformance.bench import Bench
from vfio_user.client.conformance.dialects import MESSAGES
from vfio_user.client.conformance.refusals import Bad, enter
from vfio_user.client.reading import read_as
from vfio_user.wire import Command
from vfio_user.wire.constants import Feature, FeatureFlags, MigrationState, MigrationSupport
from vfio_user.wire.layouts import DEVICE_STATE, FEATURE, MIGRATION_FLAGS

feature = Group[Bench]("feature", "protocol.md 10.1: DEVICE_FEATURE", dialects=MESSAGES)

GET, SET, PROBE = FeatureFlags.GET, FeatureFlags.SET, FeatureFlags.PROBE
SET_LOOKED_AT = ("feature/impossible-set",)
"""Of a server that does not keep this rule what a SET comes to says nothing: whatever it is told is well done."""

S = MigrationState
_UNKNOWN = (errno.EINVAL, errno.ENOTTY)


def container(flags: int, data: bytes = b"", *, argsz: int | None = None) -> bytes:
    """A DEVICE_FEATURE request; argsz is what it carries unless it is to lie."""
    return FEATURE.pack(FEATURE.size + len(data) if argsz is None else argsz, flags, tail=data)


def _need(bench: Bench) -> None:
    bench.need_migration()


@feature.check("none-without-migration")
def none_without_migration(bench: Bench) -> None:
    """A device that does not migrate refuses every migration feature with EINVAL or ENOTTY."""
    if bench.client.has_feature(Feature.MIGRATION):
        raise Skip("the device migrates")
    for number in Feature:
        bench.refused(bench.ask(Command.DEVICE_FEATURE, container(number | PROBE)), _UNKNOWN, f"PROBE of {number.name}")


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
            request = container(flags)
            reply = bench.good(bench.ask(Command.DEVICE_FEATURE, request), f"PROBE with flags {flags:#x}")
            require(reply.payload == request, f"PROBE with flags {flags:#x} is answered with something else")


@feature.check("migration-flags", rule="linux/vfio.h: VFIO_DEVICE_FEATURE_MIGRATION")
def migration_flags(bench: Bench) -> None:
    """GET of MIGRATION says what is supported, STOP_COPY at least, and rewrites argsz."""
    bench.need_migration()
    room = FEATURE.size + MIGRATION_FLAGS.size
    for argsz in (room, room + 64):
        reply = bench.good(bench.ask(Command.DEVICE_FEATURE, container(Feature.MIGRATION | GET, argsz=argsz)), "GET")
        require(reply.size == 32, f"the reply has {reply.size} bytes instead of 32")
        answer = read_as(FEATURE, reply.payload, Command.DEVICE_FEATURE.value)
        require(answer.argsz == room, "argsz is not the reply's true size")
        flags = read_as(MIGRATION_FLAGS, reply.payload, Command.DEVICE_FEATURE.value, FEATURE.size).flags
        require(flags & MigrationSupport.STOP_COPY, f"STOP_COPY is not among the flags {flags:#x}")


@feature.check("set-echoes", rule="spec: VFIO_USER_DEVICE_FEATURE, Reply")
def set_echoes(bench: Bench) -> None:
    """SET is answered with its own request."""
    bench.need_migration()
    request = container(Feature.MIG_DEVICE_STATE | SET, DEVICE_STATE.pack(S.RUNNING, 0))
    reply = bench.good(bench.ask(Command.DEVICE_FEATURE, request), "SET of the state that the device is in")
    require(reply.payload == request, "SET is answered with something else")


@feature.check("impossible-set", level=Level.REFERENCE)
def impossible_set(bench: Bench) -> None:
    """A SET that no device could do is refused."""
    bench.need_migration()
    request = container(Feature.MIGRATION | SET | 1 << 19, bytes(8), argsz=0)
    require(
        bench.failed(bench.ask(Command.DEVICE_FEATURE, request)),
        "SET of MIGRATION, which can only be asked for, with argsz 0 and an unknown flag succeeded",
    )


_STATE_ROOM = FEATURE.size + DEVICE_STATE.size

enter(
    feature,
    Command.DEVICE_FEATURE,
    [
        Bad("payload-too-short", "a request of 7 bytes", container(Feature.MIGRATION | GET)[:-1]),
        *(
            Bad(f"unknown-{number}", f"PROBE of feature {number}", container(number | PROBE), _UNKNOWN)
            for number in (0, 3, 9, 0xFFFF)
        ),
        Bad("unknown-get", "GET of an unknown feature", container(9 | GET, argsz=64), _UNKNOWN),
        Bad(
            "set-migration",
            "SET of MIGRATION",
            container(Feature.MIGRATION | SET, bytes(8)),
            _UNKNOWN,
            needs=SET_LOOKED_AT,
        ),
        Bad("get-logging-start", "GET of DMA_LOGGING_START", container(6 | GET, bytes(16), argsz=64), _UNKNOWN),
        Bad(
            "set-logging-report",
            "SET of DMA_LOGGING_REPORT",
            container(8 | SET, bytes(24)),
            _UNKNOWN,
            needs=SET_LOOKED_AT,
        ),
        Bad(
            "probe-wrong-operation",
            "PROBE of SET on MIGRATION",
            container(Feature.MIGRATION | PROBE | SET),
            _UNKNOWN,
        ),
        Bad("unknown-flag", "an unknown flag", container(Feature.MIGRATION | GET | 1 << 19, argsz=32)),
        Bad("unknown-high-flag", "an unknown high flag", container(Feature.MIGRATION | PROBE | 1 << 31)),
        Bad("no-operation", "no operation", container(Feature.MIGRATION, argsz=32)),
        Bad(
            "get-and-set",
            "GET and SET at once",
            container(Feature.MIG_DEVICE_STATE | GET | SET, DEVICE_STATE.pack(S.RUNNING, 0)),
            needs=SET_LOOKED_AT,
        ),
        Bad("get-argsz", "GET with too little room", container(Feature.MIGRATION | GET, argsz=15)),
        Bad("get-state-argsz", "GET of the state with too little room", container(2 | GET, argsz=_STATE_ROOM - 1)),
        Bad("probe-argsz", "PROBE with an argsz below its payload", container(Feature.MIGRATION | PROBE, argsz=7)),
        Bad(
            "set-argsz",
            "SET with an argsz below its payload",
            container(2 | SET, DEVICE_STATE.pack(S.STOP, 0), argsz=_STATE_ROOM - 1),
            needs=SET_LOOKED_AT,
        ),
        Bad(
            "set-too-short",
            "SET of the state with half a state",
            container(2 | SET, DEVICE_STATE.pack(S.RUNNING, 0)[:-1]),
            needs=SET_LOOKED_AT,
        ),
    ],
    need=_need,
)
