"""What vhost-user's messages say, from the bytes of a trace's records: see `userdev.trace.exchanges`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from userdev.relay.direction import Direction
from userdev.trace.exchanges import MOST_PLACES, Exchange, Place
from userdev.trace.format import Note
from vhost_user.interposer.asker import ASKERS
from vhost_user.interposer.decode import DecodedMessage, describe
from vhost_user.wire import HEADER_SIZE, REPLY, Message

_FLAGS = 4
"""Offset in a message's header."""
_KEPT = 64
"""Bytes of a request that is taken apart once: those that are longer are tables, and each is another."""


class VhostReading:
    """Reads the messages of both connections."""

    def __init__(self) -> None:
        self._found: dict[tuple[int, bytes], tuple[Place, int | None]] = {}
        self._places: dict[tuple[object, ...], Place] = {}

    def asked(self, record: bytes, at: int, towards: int) -> tuple[Place, int | None] | None:
        """What a request is about, and the number that it is; None for a reply."""
        if record[at + _FLAGS] & REPLY:
            return None
        key = (towards, record[at:])
        found = self._found.get(key)
        if found is None:
            decoded = describe(list(ASKERS.values())[towards >> 1], _message(record, at))
            found = self._place(decoded, towards), decoded.value
            if len(record) - at <= _KEPT and len(self._found) < MOST_PLACES:
                self._found[key] = found
        return found

    def carried(self, record: bytes, at: int, towards: int) -> list[tuple[Place, int | None]]:
        """None: no message of vhost-user is several accesses."""
        return []

    def answer(self, exchange: Exchange, record: bytes, at: int) -> None:
        """Put down what a reply says: the number that it is, or that it refuses."""
        decoded = describe(ASKERS[exchange.place.channel], _message(record, at))
        if decoded.kind == "error":
            exchange.error = str(decoded.fields.get("result", "error"))
        elif decoded.value is not None and "result" not in decoded.fields:
            exchange.value = decoded.value

    def interrupt(self, note: Note) -> tuple[str, int] | None:
        """None: they pass in eventfds that go from one side to the other."""
        return None

    def without_id(self, message: bytes) -> bytes:
        """All of it: messages have no ids."""
        return message

    def fields(self, message: bytes, exchange: Exchange) -> dict[str, Any]:
        """What a message says, by the names of its fields; its data too."""
        decoded = describe(ASKERS[exchange.place.channel], _message(message, 0))
        return {**decoded.fields, **({"data": decoded.data.hex()} if decoded.data else {})}

    def _place(self, decoded: DecodedMessage, towards: int) -> Place:
        """The same one for all requests that are about the same."""
        direction, channel = Direction(towards & 1), list(ASKERS)[towards >> 1]
        asked = (decoded.command, decoded.kind, direction, channel)
        key: tuple[object, ...] = (*asked, decoded.ring, decoded.offset, decoded.size)
        place = self._places.get(key)
        if place is None:
            place = Place(
                decoded.command,
                decoded.kind,
                direction,
                channel,
                region="config" if decoded.offset is not None else "",
                offset=decoded.offset,
                size=decoded.size,
                writes=decoded.command == "SET_CONFIG",
                ring=decoded.ring,
                detail=decoded.detail,
            )
            if len(self._places) >= MOST_PLACES and place.is_access:
                key, place = asked, replace(place, offset=None, size=None, detail=f"{place.region} elsewhere")
            place = self._places.setdefault(key, place)
        return place


def _message(record: bytes, at: int) -> Message:
    return Message.decode(record, at, record[at + HEADER_SIZE :], [])
