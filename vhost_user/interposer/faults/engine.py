"""Decides what becomes of a message of vhost-user: `userdev.interposer.faults.engine`, with what its messages say."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from userdev.interposer.faults import engine
from userdev.relay.direction import Direction
from vhost_user.interposer.asker import Asker
from vhost_user.interposer.decode import DecodedMessage, describe, place_of
from vhost_user.interposer.faults.scenario import Scenario
from vhost_user.wire import HEADER, HEADER_SIZE, Message, acknowledge


class FaultEngine(engine.FaultEngine[Message]):
    """Applies a scenario to the messages of one channel, in the order they come."""

    header_size: ClassVar[int] = HEADER_SIZE
    size_at: ClassVar[int] = 8
    size_counts_header: ClassVar[bool] = False

    def __init__(self, scenario: Scenario, asker: Asker, is_answered: Callable[[Message], bool]) -> None:
        super().__init__(scenario)
        self._asker = asker
        self._is_answered = is_answered

    def decode(self, direction: Direction, message: Message) -> DecodedMessage:
        """What a message says."""
        return describe(self._asker, message)

    def place_of(self, message: Message, name: str) -> tuple[int, int] | None:
        """Offset in the message, and width, of a field; see `decode.place_of`."""
        return place_of(self._asker, message, name)

    def refusal(self, message: Message, errno: int) -> Message | None:
        """An acknowledgement with this number, to a request that is answered."""
        return acknowledge(message.request, errno) if not message.is_reply and self._is_answered(message) else None

    def as_message(self, data: bytes) -> Message | None:
        """The message that these bytes are, if they are exactly one."""
        if len(data) < HEADER_SIZE:
            return None
        request, flags, size = HEADER.unpack_from(data)
        return Message(request, flags, data[HEADER_SIZE:]) if HEADER_SIZE + size == len(data) else None
