"""Decides what becomes of a message: sans-IO, so that the same messages and the same seed give the same plans."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from userdev.relay.direction import DIRECTIONS, Direction
from vfio_user.interposer.faults import scenario as script
from vfio_user.interposer.faults.fields import place_of
from vfio_user.interposer.trace.decode import Decoded, describe
from vfio_user.wire import HEADER, HEADER_SIZE, Dialect, Message


@dataclass
class Piece:
    """Bytes to send at one go, `pause` seconds after the piece before."""

    data: bytes
    pause: float = 0.0


@dataclass
class FaultPlan:
    """The plan for one message."""

    rules: list[str]
    """Names of the rules that matched, for trace and counters."""
    acts: list[str]
    pieces: list[Piece]
    keep_fds: list[int] | None = None
    """Indexes of the message's descriptors to send; None: all."""
    extra_fds: int = 0
    copies: int = 1
    delay: float = 0.0
    overtake: bool = False
    reorder: script.Reorder | None = None
    stall: float | None = None
    """Seconds during which nothing more is sent behind it; infinity for ever."""
    reply: Message | None = None
    """To be sent back to where the message came from."""
    closes: list[script.Close] = field(default_factory=list)
    signals: list[script.Signal] = field(default_factory=list)

    @property
    def data(self) -> bytes:
        """The bytes that go on, all pieces together."""
        return b"".join(piece.data for piece in self.pieces)


@dataclass
class _Count:
    """How often one rule has matched, its probability aside, and how often it has acted."""

    matched: int = 0
    acted: int = 0


class FaultEngine:
    """Applies a scenario to the messages of one session, in the order they come."""

    def __init__(self, scenario: script.Scenario, dialect: Dialect) -> None:
        self._dialect = dialect
        self._rules = scenario.rules
        self._counts = [_Count() for _ in scenario.rules]
        # One source of chance per rule: what one rule draws does not depend on what another has matched.
        self._chances = [random.Random(f"{scenario.seed}:{number}") for number in range(len(scenario.rules))]
        self._asked: dict[tuple[Direction, int], Decoded] = {}

    def plan(self, direction: Direction, message: Message, state: str, seconds: float) -> FaultPlan | None:
        """Plan what becomes of `message`; None: it goes on as it is.

        state: `SessionModel.state`. seconds: since the session began.
        """
        decoded = self._decode(direction, message)
        plan: FaultPlan | None = None
        for number, rule in enumerate(self._rules):
            if not self._applies(number, rule, direction, decoded, state, seconds):
                continue
            plan = plan or FaultPlan([], [], [Piece(message.encode())])
            plan.rules.append(rule.name or f"rule {number + 1}")
            for act in rule.act:
                plan.acts.append(act.name)
                _ACTS[type(act.what)](self, plan, act.what, message, self._chances[number])
        return plan

    def _decode(self, direction: Direction, message: Message) -> Decoded:
        if message.is_reply:
            request = self._asked.get((direction.opposite, message.id))
            return describe(self._dialect, message, None, request)
        decoded = describe(self._dialect, message)
        self._asked[direction, message.id] = decoded
        return decoded

    def _applies(
        self, number: int, rule: script.Rule, direction: Direction, decoded: Decoded, state: str, seconds: float
    ) -> bool:
        match, count = rule.match, self._counts[number]
        if not _matches(match, direction, decoded, state, seconds):
            return False
        count.matched += 1
        if not match.includes(count.matched) or (rule.times is not None and count.acted >= rule.times):
            return False
        if match.probability < 1 and self._chances[number].random() >= match.probability:
            return False
        count.acted += 1
        return True

    # the acts: each changes the plan

    def _drop(self, plan: FaultPlan, act: Any, message: Message, chance: random.Random) -> None:
        plan.pieces = []

    def _delay(self, plan: FaultPlan, act: script.Delay, message: Message, chance: random.Random) -> None:
        plan.delay += act.seconds + (chance.uniform(0, act.jitter) if act.jitter else 0.0)
        plan.overtake = plan.overtake or act.overtake

    def _duplicate(self, plan: FaultPlan, act: script.Duplicate, message: Message, chance: random.Random) -> None:
        plan.copies += act.times

    def _reorder(self, plan: FaultPlan, act: script.Reorder, message: Message, chance: random.Random) -> None:
        plan.reorder = act

    def _corrupt(self, plan: FaultPlan, act: script.Corrupt, message: Message, chance: random.Random) -> None:
        data = bytearray(plan.data)
        offset, width = self._place(act, message, len(data))
        old = bytes(data[offset : offset + width])
        data[offset : offset + len(old)] = _corrupted(act, old, chance)
        plan.pieces = [Piece(bytes(data))]

    def _truncate(self, plan: FaultPlan, act: script.Truncate, message: Message, chance: random.Random) -> None:
        data = bytearray(plan.data[: act.to])
        if act.size == "adjust" and len(data) >= HEADER_SIZE:
            struct.pack_into("<I", data, 4, len(data))
        plan.pieces = [Piece(bytes(data))] if data else []

    def _wrong_id(self, plan: FaultPlan, act: script.WrongId, message: Message, chance: random.Random) -> None:
        id = act.id if act.id is not None else (message.id + chance.randrange(1, 1 << 16)) & 0xFFFF
        _set(plan, "<H", 0, id)

    def _wrong_size(self, plan: FaultPlan, act: script.WrongSize, message: Message, chance: random.Random) -> None:
        size = act.size if act.size is not None else max(0, message.size + (act.by or 0))
        _set(plan, "<I", 4, size & 0xFFFFFFFF)

    def _extra_fd(self, plan: FaultPlan, act: script.ExtraFd, message: Message, chance: random.Random) -> None:
        plan.extra_fds += act.count

    def _missing_fd(self, plan: FaultPlan, act: script.MissingFd, message: Message, chance: random.Random) -> None:
        left = plan.keep_fds if plan.keep_fds is not None else list(range(len(message.fds)))
        plan.keep_fds = [] if act.index is None else [index for index in left if index != act.index]

    def _reply(self, plan: FaultPlan, act: script.ErrorReply, message: Message, chance: random.Random) -> None:
        if message.wants_reply:
            plan.reply = message.error(act.errno)
        plan.pieces = []

    def _stall(self, plan: FaultPlan, act: script.Stall, message: Message, chance: random.Random) -> None:
        data = plan.data
        plan.stall = act.seconds if act.seconds is not None else float("inf")
        plan.pieces = [Piece(data[:HEADER_SIZE])]
        if act.seconds is not None and len(data) > HEADER_SIZE:
            plan.pieces.append(Piece(data[HEADER_SIZE:], act.seconds))

    def _split(self, plan: FaultPlan, act: script.Split, message: Message, chance: random.Random) -> None:
        data = plan.data
        if len(data) > act.at:
            plan.pieces = [Piece(data[: act.at]), Piece(data[act.at :], act.seconds)]

    def _close(self, plan: FaultPlan, act: script.Close, message: Message, chance: random.Random) -> None:
        plan.closes.append(act)

    def _signal(self, plan: FaultPlan, act: script.Signal, message: Message, chance: random.Random) -> None:
        plan.signals.append(act)

    def _place(self, act: script.Corrupt, message: Message, size: int) -> tuple[int, int]:
        """Offset and width of what is to be corrupted; an empty place where the message does not have it."""
        if act.at is not None:
            wanted = len(act.bytes) if act.bytes is not None else 1
            return min(act.at, size), wanted
        found = place_of(self._dialect, message, act.field or "")
        return found if found is not None and sum(found) <= size else (size, 0)


_Act = Callable[[FaultEngine, FaultPlan, Any, Message, random.Random], None]
_ACTS: dict[type[script.ScenarioModel], _Act] = {
    script.Nothing: FaultEngine._drop,
    script.Delay: FaultEngine._delay,
    script.Duplicate: FaultEngine._duplicate,
    script.Reorder: FaultEngine._reorder,
    script.Corrupt: FaultEngine._corrupt,
    script.Truncate: FaultEngine._truncate,
    script.WrongId: FaultEngine._wrong_id,
    script.WrongSize: FaultEngine._wrong_size,
    script.ExtraFd: FaultEngine._extra_fd,
    script.MissingFd: FaultEngine._missing_fd,
    script.ErrorReply: FaultEngine._reply,
    script.Stall: FaultEngine._stall,
    script.Split: FaultEngine._split,
    script.Close: FaultEngine._close,
    script.Signal: FaultEngine._signal,
}


def _matches(match: script.Match, direction: Direction, decoded: Decoded, state: str, seconds: float) -> bool:
    if match.direction is not None and DIRECTIONS[match.direction] is not direction:
        return False
    if match.command is not None and decoded.command not in [command.value for command in match.command]:
        return False
    if match.kind is not None and decoded.kind not in match.kind:
        return False
    if match.region is not None and decoded.region != match.region:
        return False
    if match.offset is not None:
        first, last = match.offset
        if decoded.offset is None or not (decoded.offset <= last and decoded.offset + (decoded.size or 1) > first):
            return False
    if match.state is not None and state not in match.state:
        return False
    return seconds >= match.time.after and (match.time.before is None or seconds < match.time.before)


def _corrupted(act: script.Corrupt, old: bytes, chance: random.Random) -> bytes:
    """As many bytes as there were."""
    width = len(old)
    if act.bytes is not None:
        return (act.bytes + old[len(act.bytes) :])[:width]
    number = int.from_bytes(old, "little")
    if act.value is not None:
        number = act.value
    elif act.xor is not None:
        number ^= act.xor
    else:
        number ^= chance.randrange(1, 1 << 8 * width) if width else 0
    return (number & (1 << 8 * width) - 1).to_bytes(width, "little")


def _set(plan: FaultPlan, format: str, offset: int, value: int) -> None:
    data = bytearray(plan.data)
    if len(data) >= HEADER_SIZE:
        struct.pack_into(format, data, offset, value)
        plan.pieces = [Piece(bytes(data))]


def as_message(data: bytes) -> Message | None:
    """The message that these bytes are, if they are exactly one."""
    if len(data) < HEADER_SIZE:
        return None
    id, command, size, flags, errno = HEADER.unpack_from(data)
    return Message(id, command, flags, errno, data[HEADER_SIZE:]) if size == len(data) else None
