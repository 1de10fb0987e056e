"""Steps about messages: what is asked at any time, what cannot be right, memory that comes and goes, front-ends too."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial

from userdev.conformance import Check, Level
from userdev.fuzz import Answer, Blob, Found, Kind, Number, Pick
from userdev.fuzz.levels import judge
from vhost_user.frontend.conformance import CATALOGUE, Bench
from vhost_user.frontend.errors import BackEndError, Disconnected, NoAnswer, Refused
from vhost_user.fuzz.encounter import KINDS, Encounter, Offered
from vhost_user.fuzz.oracles import OFFER, REPLIES, STATE
from vhost_user.wire import NEED_REPLY, VERSION, FrontEndRequest, Message, ProtocolFeature
from vhost_user.wire.payloads import Region, VringState

R, P = FrontEndRequest, ProtocolFeature
_ASKED: tuple[tuple[FrontEndRequest, ProtocolFeature], ...] = (
    (R.GET_FEATURES, P(0)),
    (R.GET_PROTOCOL_FEATURES, P(0)),
    (R.GET_QUEUE_NUM, P.MQ),
    (R.GET_MAX_MEM_SLOTS, P.CONFIGURE_MEM_SLOTS),
    (R.GET_STATUS, P.STATUS),
)
_MANY = 9
"""Regions, one more than a message may have."""


def ask(encounter: Encounter, what: int) -> None:
    """What can be asked for at any time is answered, and features are the same as before."""
    request, feature = _ASKED[what % len(_ASKED)]
    if feature and not encounter.front_end.has(feature):
        return
    answer = encounter.front_end.ask(request)
    expected = {
        R.GET_FEATURES: int(encounter.offered.features),
        R.GET_PROTOCOL_FEATURES: int(encounter.offered.protocol_features),
        R.GET_QUEUE_NUM: encounter.offered.queues,
    }
    if expected.get(request, answer) != answer:
        raise Found(OFFER, request.name, f"{request.name} is answered with {answer:#x}, and was {expected[request]:#x}")


def read_config(encounter: Encounter, size: int) -> None:
    """Configuration space can be read, as much of it as there is."""
    if encounter.front_end.has(P.CONFIG) and encounter.offered.config_size:
        data = encounter.front_end.read_config(1 + size % encounter.offered.config_size)
        place = "configuration space"
        encounter.journal.append(Answer(f"{len(data)} bytes of {place}", "", bytes(data), place))


def wrong(encounter: Encounter, request: int, payload: str, fds: int) -> None:
    """A message that cannot be right is refused, or ends the connection; nothing of it is kept."""
    front_end = encounter.front_end
    if not front_end.has(P.REPLY_ACK):
        return
    given = [os.eventfd(0, os.EFD_CLOEXEC) for _ in range(fds)]
    try:
        front_end.send_message(Message(request, VERSION | NEED_REPLY, bytes.fromhex(payload), given))
        answer = front_end.receive(f"request {request}")
        said = int.from_bytes(answer.payload[:8], "little")
        front_end.settle()
    except Disconnected:
        encounter.rejoin()
        return
    finally:
        for fd in given:
            os.close(fd)
    taken = f"{_name(request)} with {len(payload) // 2} bytes is taken"
    encounter.require_refusal(said, f"wrong {_name(request)}", taken)


def _name(request: int) -> str:
    return R(request).name if request in map(int, R) else f"request {request}"


def ring_number(encounter: Encounter, request: int) -> None:
    """A ring that there is none of is refused, or ends the connection."""
    front_end = encounter.front_end
    if not front_end.has(P.REPLY_ACK):
        return
    asked = (R.SET_VRING_NUM, R.SET_VRING_BASE, R.SET_VRING_ENABLE)[request % 3]
    _refused(encounter, partial(front_end.tell, asked, VringState(250, 1)), f"{asked.name} of ring 250")


def memory_again(encounter: Encounter) -> None:
    """Memory that comes again as a table leaves the ring as it was."""
    if not encounter.front_end.has(P.CONFIGURE_MEM_SLOTS) or not encounter.running:
        encounter.front_end.share_memory(as_table=True)


def wrong_memory(encounter: Encounter, how: str) -> None:
    """Memory that cannot be is refused, or ends the connection, and none of it stays mapped."""
    front_end = encounter.front_end
    if not front_end.has(P.REPLY_ACK):
        return
    known, fd = front_end.memory.regions[0], front_end.memory.fd
    other = Region(1 << 40, 4096, 1 << 45, 0)
    tables: dict[str, list[Region]] = {
        "empty": [known, other._replace(size=0)],
        "overlap": [known, known._replace(user_address=1 << 45)],
        "beyond": [known, other._replace(size=4096, mmap_offset=1 << 40)],
        "wraps": [known, other._replace(guest_address=(1 << 64) - 4096, size=8192)],
        "pipe": [known, other],
    }
    regions = tables.get(how, [])
    if not regions:
        return
    reader, writer = os.pipe()
    try:
        fds = [fd, reader if how == "pipe" else fd]
        said = partial(front_end.tell, R.SET_MEM_TABLE, tuple(regions), fds)
        level = _BY_ID["memory/region-without-memory"].level if how == "empty" else Level.REFERENCE
        _refused(encounter, said, f"a memory table ({how})", level)
    finally:
        os.close(reader)
        os.close(writer)


def too_many_regions(encounter: Encounter) -> None:
    """More regions than a message may have are refused, or end the connection."""
    front_end = encounter.front_end
    if not front_end.has(P.REPLY_ACK):
        return
    fd = front_end.memory.fd
    entries = b"".join(
        b"".join(each.to_bytes(8, "little") for each in (at << 12, 4096, (1 << 45) + (at << 12), at << 12))
        for at in range(_MANY)
    )
    payload = _MANY.to_bytes(4, "little") + bytes(4) + entries

    def say() -> int:
        front_end.send_message(Message(R.SET_MEM_TABLE, VERSION | NEED_REPLY, payload, [fd] * 8))
        return int.from_bytes(front_end.receive("SET_MEM_TABLE").payload[:8], "little")

    _refused(encounter, say, f"{_MANY} regions")


def _refused(encounter: Encounter, say: Callable[[], int], what: str, level: Level = Level.REFERENCE) -> None:
    """Have something wrong be answered with an error, or end the connection."""
    try:
        answer = say()
        encounter.front_end.settle()
    except (Disconnected, Refused):
        encounter.rejoin()
        return
    encounter.require_refusal(answer, what, f"{what} is acknowledged as done", level=level)


def state(encounter: Encounter) -> None:
    """A state that is saved, loaded and saved again is the same."""
    front_end = encounter.front_end
    if not front_end.has(P.DEVICE_STATE):
        return
    encounter.stop()
    saved = front_end.save_state()
    front_end.load_state(saved)
    again = front_end.save_state()
    if saved != again:
        raise Found(STATE, "digest", f"a state of {len(saved)} bytes, loaded and saved again, is another one")


def reset(encounter: Encounter) -> None:
    """A device can be reset between two lives of its rings."""
    if encounter.front_end.has(P.RESET_DEVICE):
        encounter.stop()
        encounter.front_end.reset()
        encounter.front_end.share_memory(as_table=True)


def join(encounter: Encounter, kind: int, regions: int, as_table: int) -> None:
    """Another front-end comes, with another kind of ring."""
    encounter.rejoin(kind, regions, bool(as_table))


def leave_within(encounter: Encounter, size: int, fds: int) -> None:
    """A front-end that leaves in the middle of a message leaves the back-end ready for the next one."""
    given = [os.eventfd(0, os.EFD_CLOEXEC) for _ in range(fds)]
    try:
        whole = Message(R.SET_MEM_TABLE, VERSION, bytes(40)).encode()
        with suppress(BackEndError):
            encounter.front_end.send_bytes(whole[: max(1, size)], given)
    finally:
        for fd in given:
            os.close(fd)
    encounter.rejoin()


def check(encounter: Encounter, id: str) -> None:
    """A check of the conformance suite, with connections of its own, whatever was before."""

    def attempt(check: Check[Bench]) -> None:
        bench = Bench(encounter.target, encounter.device, timeout=encounter.timeout)
        try:
            check.run(bench)
        finally:
            bench.close()

    encounter.leave()
    try:
        judge(id, _BY_ID, attempt, level=encounter.level, oracle=REPLIES, silence=(Disconnected, NoAnswer))
    finally:
        encounter.join(0, 1, False)


_BY_ID = {check.id: check for check in CATALOGUE}
_NOT_OPEN = tuple(check.id for check in CATALOGUE if check.level is not Level.OPEN)


def kinds(offered: Offered) -> list[Kind[Encounter]]:
    """The steps of this module."""
    unknown: Sequence[int] = (0, 200, 0x7FFF, R.SET_VRING_NUM, R.SET_VRING_ADDR, R.SET_MEM_TABLE, R.SET_INFLIGHT_FD)
    how = Pick(("empty", "overlap", "beyond", "wraps", "pipe"))
    some = [
        Kind[Encounter]("ask", ask, {"what": Number(0, len(_ASKED) - 1)}),
        Kind[Encounter]("read_config", read_config, {"size": Number(0, 255)}),
        Kind[Encounter](
            "wrong", wrong, {"request": Pick([*map(int, unknown)]), "payload": Blob(0, 6), "fds": Number(0, 3)}
        ),
        Kind[Encounter]("ring_number", ring_number, {"request": Number(0, 2)}),
        Kind[Encounter]("memory_again", memory_again, {}),
        Kind[Encounter]("wrong_memory", wrong_memory, {"how": how}),
        Kind[Encounter]("too_many_regions", too_many_regions, {}),
        Kind[Encounter]("reset", reset, {}),
        Kind[Encounter](
            "join",
            join,
            {"kind": Number(0, len(KINDS) - 1), "regions": Pick((1, 1, 2, 4, 8)), "as_table": Pick((0, 1))},
            weight=2,
        ),
        Kind[Encounter]("leave_within", leave_within, {"size": Number(1, 51), "fds": Number(0, 3)}),
        Kind[Encounter](
            "check", check, {"id": Pick([id for id, check in _BY_ID.items() if check.level is not Level.OPEN])}
        ),
    ]
    if P.DEVICE_STATE in offered.protocol_features:
        some.append(Kind[Encounter]("state", state, {}))
    return some
