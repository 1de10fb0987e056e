"""Steps that reset the device, and take it through the states of a migration and back."""

from __future__ import annotations

import errno
import hashlib
from contextlib import suppress

from userdev.conformance.check import require
from userdev.fuzz import Found, Kind, Number, Pick
from vfio_user.client.errors import RemoteError
from vfio_user.fuzz.encounter import Encounter
from vfio_user.fuzz.ground import Ground
from vfio_user.fuzz.memory import BASE, SLOT, SLOTS
from vfio_user.fuzz.observation import Observation
from vfio_user.fuzz.oracles import REPLIES, STATE
from vfio_user.wire import Command
from vfio_user.wire.constants import Feature, FeatureFlags, MigrationState
from vfio_user.wire.layouts import DEVICE_STATE, FEATURE, LOGGING_CONTROL, LOGGING_REPORT, MIGRATION_DATA

S = MigrationState
GET, SET, PROBE = FeatureFlags.GET, FeatureFlags.SET, FeatureFlags.PROBE
PAGE = 0x1000
MOST = 8 << 20
"""Bytes of state that are taken along: a device that has more is not moved at each step."""
_ALLOWED = {
    S.RUNNING: (S.STOP, S.STOP_COPY, S.PRE_COPY),
    S.PRE_COPY: (S.RUNNING, S.STOP_COPY),
    S.STOP: (S.RUNNING, S.STOP_COPY, S.RESUMING),
    S.STOP_COPY: (S.STOP, S.RUNNING),
}
"""Arcs that need no state to be written. From RESUMING a device goes where it can with what it was given."""
_NO_REPORT = (errno.EINVAL, errno.ENOTSUP)
"""Why there is none of what is mapped; whether it is may be looked at before the log is."""


def reset(encounter: Encounter) -> None:
    """A reset succeeds in every state, and leaves ERROR for RUNNING; what it makes of the others is not its rule."""
    if not encounter.ground.description.can_reset:
        return
    reply = encounter.ask(Command.DEVICE_RESET)
    if encounter.accessible or encounter.state is S.ERROR:
        encounter.good(reply, f"DEVICE_RESET in {encounter.state.name}")
    if not reply.failed:
        encounter.touched = encounter.masking = False
    if encounter.ground.migrates:
        before, encounter.state = encounter.state, encounter.client.migration_state()
        if before in (S.RUNNING, S.ERROR):
            found = encounter.state.name
            require(encounter.state is S.RUNNING, f"the state is {found} behind a reset in {before.name}, not RUNNING")


def change_state(encounter: Encounter, state: int) -> None:
    """Arcs that there are can be gone, and what is refused leaves the device where it was, or in ERROR."""
    flags = Feature.MIG_DEVICE_STATE | SET
    before = encounter.state
    data = DEVICE_STATE.pack(state, 0)
    reply = encounter.ask(Command.DEVICE_FEATURE, FEATURE.pack(FEATURE.size + len(data), flags, tail=data))
    if state in map(int, _ALLOWED.get(before, ())) and _has(encounter, state):
        encounter.good(reply, f"{before.name} to {S(state).name}")
    if not reply.failed and state not in map(int, S):
        encounter.refused(reply, f"migration state {state}")
    encounter.state = encounter.client.migration_state()
    if not reply.failed:
        require(encounter.state == state, f"the state is {encounter.state.name} and not {S(state).name}")
    elif encounter.state is not before and encounter.state is not S.ERROR:
        what = f"{before.name} to {state} was refused, and the state is {encounter.state.name}"
        raise Found(REPLIES, "refused and moved", what)


def _has(encounter: Encounter, state: int) -> bool:
    return state != S.PRE_COPY or "pre_copy" in encounter.ground.description.migration.support


def read_data(encounter: Encounter, size: int, argsz: int) -> None:
    """Saved state is read where there is some, and no more of it than there is room for."""
    request = MIGRATION_DATA.pack(max(0, MIGRATION_DATA.size + size + argsz), size)
    reply = encounter.ask(Command.MIG_DATA_READ, request)
    if argsz < 0 or encounter.state not in (S.STOP_COPY, S.PRE_COPY):
        encounter.refused(reply, "reading state that cannot be read")
        return
    encounter.good(reply, "reading state")
    got = MIGRATION_DATA.unpack(reply.payload).size
    require(got <= size and got == len(reply.payload) - MIGRATION_DATA.size, f"{got} bytes of state for {size}")


def write_data(encounter: Encounter, length: int, more: int) -> None:
    """State is taken in RESUMING alone, and not with fewer bytes than are said."""
    content = encounter.saved[:length]
    size = len(content) + more
    reply = encounter.ask(Command.MIG_DATA_WRITE, MIGRATION_DATA.pack(MIGRATION_DATA.size + size, size, tail=content))
    if more or encounter.state is not S.RESUMING:
        encounter.refused(reply, "writing state that cannot be written")
    encounter.state = encounter.client.migration_state()


def get_feature(encounter: Encounter, feature: int, room: int) -> None:
    """GET of a feature is answered with its true size, and refused without the room for it."""
    sizes = {int(Feature.MIGRATION): 8, int(Feature.MIG_DEVICE_STATE): 8}
    reply = encounter.ask(Command.DEVICE_FEATURE, FEATURE.pack(FEATURE.size + room, feature | GET))
    if feature not in sizes:
        encounter.refused(reply, f"GET of feature {feature}", (errno.EINVAL, errno.ENOTTY))
    elif room < sizes[feature]:
        encounter.refused(reply, f"GET of feature {feature} with too little room")
    else:
        encounter.good(reply, f"GET of feature {feature}")
        said = FEATURE.unpack(reply.payload).argsz
        require(said == len(reply.payload), f"GET of feature {feature} says argsz {said} of {len(reply.payload)} bytes")


def move(encounter: Encounter, reset_between: int, chunk: int, damage: str) -> None:
    """A state that was saved is loaded again, and is the same then: its digest, and what the registers say.

    With `damage` it is not what was saved; whatever becomes of that, the device can be reset behind it.
    """
    if encounter.state is not S.RUNNING or not encounter.ground.migrates:
        return
    client = encounter.client
    if damage:
        _load_damaged(encounter, damage)
        return
    before = Observation.of(encounter)
    saved = _saved(encounter)
    client.set_migration_state(S.RUNNING)
    if saved is None:
        return
    if reset_between and encounter.ground.description.can_reset:
        client.reset()
    client.set_migration_state(S.STOP)
    client.load_state(saved, chunk=chunk or None)
    again = _saved(encounter)
    client.set_migration_state(S.RUNNING)
    if encounter.stable and again is not None and hashlib.sha256(again).digest() != hashlib.sha256(saved).digest():
        at = next((at for at, (one, other) in enumerate(zip(saved, again, strict=False)) if one != other), -1)
        what = f"a state of {len(saved)} bytes, loaded and saved again, has {len(again)} and differs at {at}"
        raise Found(STATE, "digest", what)
    if difference := before.difference(Observation.of(encounter), but=encounter.volatile):
        raise Found(STATE, "registers", f"behind saving and loading, {difference}")


def _saved(encounter: Encounter) -> bytes | None:
    client = encounter.client
    client.set_migration_state(S.STOP_COPY)
    pieces, size = [], 0
    for piece in client.saved_state():
        pieces.append(piece)
        size += len(piece)
        if size > MOST:
            return None
    return b"".join(pieces)


def _load_damaged(encounter: Encounter, damage: str) -> None:
    client = encounter.client
    saved = _saved(encounter)
    client.set_migration_state(S.STOP)
    if saved:
        client.set_migration_state(S.RESUMING)
        with suppress(RemoteError):
            client.mig_data_write(_damaged(saved, damage)[: client.data_limit])
            client.set_migration_state(S.STOP)
    encounter.state = client.migration_state()
    reset(encounter)
    if encounter.state is not S.RUNNING:
        with suppress(RemoteError):
            client.set_migration_state(S.RUNNING)
        encounter.state = client.migration_state()
        reset(encounter)


def _damaged(saved: bytes, damage: str) -> bytes:
    match damage:
        case "cut":
            return saved[: len(saved) // 2]
        case "flipped":
            middle = len(saved) // 2
            return saved[:middle] + bytes([saved[middle] ^ 1]) + saved[middle + 1 :]
    return b"\xff" * 64


def start_logging(encounter: Encounter, page_size: int) -> None:
    """A log is begun once, and with pages that there are."""
    data = LOGGING_CONTROL.pack(page_size, 0, 0)
    flags = Feature.DMA_LOGGING_START | SET
    reply = encounter.ask(Command.DEVICE_FEATURE, FEATURE.pack(FEATURE.size + len(data), flags, tail=data))
    if page_size == PAGE and not encounter.logging:
        encounter.good(reply, "starting the log")
    elif page_size == 0:
        encounter.refused(reply, "a log of pages of 0 bytes")
    encounter.logging = encounter.logging or not reply.failed


def stop_logging(encounter: Encounter) -> None:
    """A log that was begun is ended."""
    data = LOGGING_CONTROL.pack(0, 0, 0)
    flags = Feature.DMA_LOGGING_STOP | SET
    reply = encounter.ask(Command.DEVICE_FEATURE, FEATURE.pack(FEATURE.size + len(data), flags, tail=data))
    if encounter.logging:
        encounter.good(reply, "stopping the log")
    encounter.logging = encounter.logging and reply.failed


def report_log(encounter: Encounter, slots: int, less: int) -> None:
    """A report of what is mapped whole is as large as it has to be, and clean when it is asked for again."""
    length = slots * SLOT
    covered = sum(max(0, min(known.end, BASE + length) - max(known.iova, BASE)) for known in encounter.maps.values())
    bits = max(8, -(-length // PAGE // 64) * 8)
    data = LOGGING_REPORT.pack(BASE, length, PAGE)
    argsz = FEATURE.size + LOGGING_REPORT.size + bits - less
    flags = Feature.DMA_LOGGING_REPORT | GET
    for turn in range(2):
        reply = encounter.ask(Command.DEVICE_FEATURE, FEATURE.pack(argsz, flags, tail=data))
        if less or not encounter.logging:
            accepted = _NO_REPORT if less or covered == length else (*_NO_REPORT, errno.ENOENT)
            encounter.refused(reply, "a report without a log, or without room for it", accepted)
            return
        if covered != length:
            return
        encounter.good(reply, "a report of the log")
        found = reply.payload[FEATURE.size + LOGGING_REPORT.size :]
        require(len(found) == bits, f"a report of {length:#x} bytes has {len(found)} bytes of bits, not {bits}")
        require(not turn or not any(found), "a page is dirty that was reported a moment ago, and nothing was done")


def kinds(ground: Ground) -> list[Kind[Encounter]]:
    """The steps of this module that the device can be asked for."""
    found: list[Kind[Encounter]] = [Kind("reset", reset, {})]
    if not ground.migrates:
        return found
    states = (1, 2, 2, 2, 3, 4, 6, 0, 5, 7, 8)
    features = Pick((1, 2, 1, 2, 0, 3, 9))
    found += [
        Kind("change_state", change_state, {"state": Pick(states)}),
        Kind("read_data", read_data, {"size": Pick((0, 1, 7, 64, 4096)), "argsz": Pick((0, 0, -1, 8))}),
        Kind("write_data", write_data, {"length": Pick((0, 1, 16, 64)), "more": Pick((0, 1, 1, 8))}),
        Kind("get_feature", get_feature, {"feature": features, "room": Pick((8, 8, 16, 0, 7))}),
        Kind(
            "move",
            move,
            {
                "reset_between": Pick((0, 1)),
                "chunk": Pick((0, 0, 7, 100)),
                "damage": Pick(("", "", "", "cut", "flipped", "noise")),
            },
            weight=2,
        ),
    ]
    if ground.description.migration.dirty_logging and ground.does_dma:
        found += [
            Kind("start_logging", start_logging, {"page_size": Pick((PAGE, PAGE, 0, 2 * PAGE))}),
            Kind("stop_logging", stop_logging, {}),
            Kind("report_log", report_log, {"slots": Number(1, SLOTS), "less": Pick((0, 0, 0, 1))}),
        ]
    return found
