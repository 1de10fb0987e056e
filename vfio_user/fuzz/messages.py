"""Steps about messages and connections: what is cut, lies or is no command; clients that leave, and a second one."""

from __future__ import annotations

from functools import lru_cache

from userdev.conformance import Level
from userdev.errors import ProtocolError, UserError
from userdev.fuzz import Blob, Found, Kind, Number, Pick, Several
from userdev.fuzz.levels import LEVELS
from vfio_user.client import Client
from vfio_user.client.conformance import CATALOGUE, Bench, Check
from vfio_user.client.conformance.bench import closed
from vfio_user.client.errors import Disconnected, NoAnswer, RemoteError
from vfio_user.fuzz.encounter import Encounter
from vfio_user.fuzz.ground import Ground
from vfio_user.fuzz.oracles import ALIVE
from vfio_user.wire import HEADER, REPLY, Command, Message
from vfio_user.wire.layouts import DEVICE_INFO, DMA_MAP, DMA_UNMAP, IRQ_INFO, IRQ_SET, REGION_ACCESS, REGION_INFO

_READ = REGION_ACCESS.pack(0, 7, 4)
_WHOLE: dict[Command, bytes] = {
    Command.DMA_MAP: DMA_MAP.pack(DMA_MAP.size, 3, 0, 1 << 40, 0x1000),
    Command.DMA_UNMAP: DMA_UNMAP.pack(DMA_UNMAP.size, 0, 1 << 40, 0x1000),
    Command.GET_INFO: DEVICE_INFO.pack(DEVICE_INFO.size, 0, 0, 0),
    Command.GET_REGION_INFO: REGION_INFO.pack(REGION_INFO.size, 0, 7, 0, 0, 0),
    Command.GET_IRQ_INFO: IRQ_INFO.pack(IRQ_INFO.size, 0, 0, 0),
    Command.SET_IRQS: IRQ_SET.pack(IRQ_SET.size, 0x21, 0, 0, 1),
    Command.REGION_READ: _READ,
}
"""Requests that are right, to be cut."""
_NAMES = tuple(command.name for command in _WHOLE)
MOST_FDS = 4


def cut(encounter: Encounter, command: str, left: int, fds: int) -> None:
    """A request that is shorter than its structure is refused, and descriptors that came with it are not kept."""
    asked = Command[command]
    shape = encounter.client.dialect.shapes[asked]
    if shape.request is None and not shape.request_tail:  # the draft's GET_INFO has nothing that could be cut
        return
    if encounter.ground.does_dma or asked not in (Command.DMA_MAP, Command.DMA_UNMAP):
        payload = _WHOLE[asked]
        reply = encounter.ask(asked, payload[: left % len(payload)], _descriptors(encounter, fds))
        encounter.refused(reply, f"{asked.value} that is cut")


def with_descriptors(encounter: Encounter, command: str, fds: int) -> None:
    """Descriptors with a request that has no use for them are not kept, whatever it is answered."""
    asked = Command[command]
    if asked not in (Command.DMA_MAP, Command.DMA_UNMAP, Command.SET_IRQS):
        encounter.ask(asked, _WHOLE[asked], _descriptors(encounter, fds))


def send_rubbish(encounter: Encounter, command: int, flags: int, payload: str) -> None:
    """Messages of no type and commands that do not exist are refused."""
    known = {shape.number for shape in encounter.client.dialect.shapes.values()}
    if command in known and not flags & 0xE:
        return
    reply = encounter.client.raw(command, bytes.fromhex(payload), flags=flags | 2 if command in known else flags)
    assert reply is not None
    encounter.refused(closed(reply), "a message that is none")


def send_reply(encounter: Encounter, id: int) -> None:
    """A reply that answers nothing is passed over, or refused."""
    if not encounter.accessible:
        return
    channel, dialect = encounter.client.channel, encounter.client.dialect
    number = dialect.number(Command.REGION_READ)
    stray = channel.expect(id, "a reply that answers nothing")
    channel.send_bytes(Message(id, number, REPLY, 0, _READ).encode())
    asked = channel.expect(id, "REGION_READ")
    channel.send_bytes(Message(id, number, payload=_READ).encode())
    reply = encounter.client.wait(stray)  # whichever comes first: it has the id of both
    if reply.failed:
        encounter.refused(reply, "a reply that answers nothing")
        reply = encounter.client.wait(asked)
        encounter.good(reply, "a read behind a reply that answers nothing")
    else:
        encounter.rejoin()  # the channel waits for one reply more than comes


def leave(encounter: Encounter, size: int, fds: int) -> None:
    """A client that leaves, perhaps in the middle of a message, leaves the server ready for the next one."""
    number = encounter.client.dialect.number(Command.REGION_WRITE)
    header = HEADER.pack(1, number, HEADER.size + REGION_ACCESS.size + 64, 0, 0)
    half = (header + REGION_ACCESS.pack(0, 7, 64))[:size]
    if half:
        encounter.client.channel.send_bytes(half, _descriptors(encounter, fds))
    encounter.rejoin()


def second(encounter: Encounter, unless: int) -> None:
    """A second client is served, or refused, and disturbs the first in neither case; seldom, as that may take long."""
    if unless or encounter.bench.target.pid is None:
        return
    try:
        stream = encounter.bench.target.connect()
    except UserError:
        return  # nobody listens: that is an answer
    other = Client(stream, dialect=encounter.client.dialect, timeout=encounter.bench.timeout)
    try:
        other.negotiate(minor=0)
    except NoAnswer:
        if Level.REFERENCE in LEVELS[encounter.level]:  # as `second-at-once`: the specification leaves it to the server
            raise Found(ALIVE, "second client", "a second client is neither served nor refused") from None
    except (RemoteError, Disconnected, ProtocolError):
        pass
    finally:
        other.close()
    encounter.ask(Command.REGION_READ, _READ)


def greet(encounter: Encounter, ids: tuple[str, ...]) -> None:
    """Checks of how versions are agreed on, each by a client of its own, who may ask what a device says of itself."""
    if not encounter.accessible:
        return
    encounter.leave()
    try:
        for id in ids:
            encounter.judge(id, lambda check: _greet(encounter, check))
    finally:
        encounter.rejoin()


def _greet(encounter: Encounter, check: Check[Bench]) -> None:
    bench = Bench(encounter.bench.target, encounter.client.dialect, timeout=encounter.bench.timeout)
    try:
        check.run(bench)
    finally:
        bench.close()


@lru_cache(1)
def _greetings() -> dict[str, Check[Bench]]:
    return {check.id: check for check in CATALOGUE if check.group == "version"}


def _descriptors(encounter: Encounter, count: int) -> list[int]:
    """So many descriptors, which are closed with the encounter; none where the transport carries none."""
    if not encounter.client.channel.carries_fds:
        return []
    return [encounter.eventfd().fd for _ in range(count)]


def kinds(ground: Ground) -> list[Kind[Encounter]]:
    """The steps of this module."""
    dialect = ground.description.dialect
    greetings = [id for id, check in _greetings().items() if check.dialects is None or dialect in check.dialects]
    command, fds = Pick(_NAMES), Pick((0, 0, 1, MOST_FDS))
    return [
        Kind("cut", cut, {"command": command, "left": Number(0, 31), "fds": fds}),
        Kind("with_descriptors", with_descriptors, {"command": command, "fds": Number(1, MOST_FDS)}),
        Kind(
            "send_rubbish",
            send_rubbish,
            {"command": Number(14, 30), "flags": Pick((0, 0, 2, 0xF)), "payload": Blob(0, 40)},
        ),
        Kind("send_reply", send_reply, {"id": Number(0, 0xFFFF)}),
        Kind("leave", leave, {"size": Pick((0, 0, 1, 15, 16, 20, 31)), "fds": fds}),
        Kind("second", second, {"unless": Number(0, 63)}),
        Kind("greet", greet, {"ids": Several(Pick(greetings), 1, 4)}),
    ]
