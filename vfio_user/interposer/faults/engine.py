"""Decides what becomes of a message of vfio-user: `userdev.interposer.faults.engine`, with what its messages say."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any, ClassVar

from userdev.interposer.faults import engine
from userdev.interposer.faults.engine import FaultPlan
from userdev.relay.direction import Direction
from vfio_user.interposer.faults.fields import place_of
from vfio_user.interposer.faults.scenario import Scenario, WrongId
from vfio_user.interposer.trace.decode import DecodedMessage, describe
from vfio_user.wire import HEADER, HEADER_SIZE, Dialect, Message


class FaultEngine(engine.FaultEngine[Message]):
    """Applies a scenario to the messages of one session, in the order they come."""

    header_size: ClassVar[int] = HEADER_SIZE
    size_at: ClassVar[int] = 4
    size_counts_header: ClassVar[bool] = True

    def __init__(self, scenario: Scenario, dialect: Dialect) -> None:
        super().__init__(scenario)
        self._dialect = dialect
        self._asked: dict[tuple[Direction, int], DecodedMessage] = {}

    def decode(self, direction: Direction, message: Message) -> DecodedMessage:
        """What a message says; a reply, by its id, where its request was."""
        if message.is_reply:
            request = self._asked.get((direction.opposite, message.id))
            return describe(self._dialect, message, None, request)
        decoded = describe(self._dialect, message)
        self._asked[direction, message.id] = decoded
        return decoded

    def place_of(self, message: Message, name: str) -> tuple[int, int] | None:
        """Offset in the message, and width, of a field; see `fields.place_of`."""
        return place_of(self._dialect, message, name)

    def refusal(self, message: Message, errno: int) -> Message | None:
        """The error reply to a command that wants one."""
        return message.error(errno) if message.wants_reply else None

    def as_message(self, data: bytes) -> Message | None:
        """The message that these bytes are, if they are exactly one."""
        if len(data) < HEADER_SIZE:
            return None
        id, command, size, flags, errno = HEADER.unpack_from(data)
        return Message(id, command, flags, errno, data[HEADER_SIZE:]) if size == len(data) else None

    def _wrong_id(self, plan: FaultPlan[Message], act: WrongId, message: Message, chance: random.Random) -> None:
        id = act.id if act.id is not None else (message.id + chance.randrange(1, 1 << 16)) & 0xFFFF
        self._put(plan, 0, id.to_bytes(2, "little"))

    acts: ClassVar[Mapping[str, Any]] = {**engine.FaultEngine.acts, "wrong-id": _wrong_id}
