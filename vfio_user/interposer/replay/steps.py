"""The steps of a session as a script has them: whose doing each is, and what it is about."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeGuard

from userdev.errors import ProtocolError
from userdev.relay.direction import Direction
from vfio_user.interposer.trace import Entry, MessageRecord, Note, Raw
from vfio_user.wire import Command, Dialect, Message
from vfio_user.wire import layouts as at

ScriptStep = MessageRecord | Raw | Note
"""A message, or bytes, that the server was sent or sent; or an interrupt (a note)."""


@dataclass(frozen=True)
class Place:
    """What a request is about: its command, and for an access to a register where."""

    command: int
    region: int = -1
    offset: int = -1

    def touches(self, other: Place) -> bool:
        """Whether an access of either reaches the same register."""
        return self.region >= 0 and (self.region, self.offset) == (other.region, other.offset)


def is_doing(step: ScriptStep) -> TypeGuard[MessageRecord | Raw]:
    """Whether the client does this of itself: a request, or bytes."""
    if step.direction is not Direction.TO_SERVER or isinstance(step, Note):
        return False
    return isinstance(step, Raw) or not step.message.is_reply


def is_servers_request(step: ScriptStep) -> TypeGuard[MessageRecord]:
    """Whether the server asks this of itself: DMA by message, or an interrupt of the draft's."""
    return isinstance(step, MessageRecord) and step.direction is Direction.TO_CLIENT and not step.message.is_reply


def is_interrupt(step: Entry) -> TypeGuard[Note]:
    """Whether this is an interrupt that came by eventfd, and says which."""
    return (
        isinstance(step, Note)
        and step.event == "interrupt"
        and all(isinstance(step.details.get(name), int) for name in ("index", "vector"))
    )


def vector_of(note: Note) -> tuple[int, int]:
    """(index, vector) of an interrupt."""
    return note.details["index"], note.details["vector"]


def count_of(note: Note) -> int:
    """How often an interrupt came at once: an eventfd counts what comes before somebody looks."""
    count = note.details.get("count")
    return count if type(count) is int and count > 0 else 1


def place_of(dialect: Dialect, message: Message) -> Place:
    """The place of a request; what cannot be read is about its command."""
    if message.command in (dialect.number(Command.REGION_READ), dialect.number(Command.REGION_WRITE)):
        try:
            access = at.REGION_ACCESS.unpack(message.payload)
        except ProtocolError:
            return Place(message.command)
        return Place(message.command, access.region, access.offset)
    return Place(message.command)
