"""What vfio-user's messages say, from the bytes of a trace's records: see `userdev.trace.exchanges`."""

from __future__ import annotations

import errno as errnos
from dataclasses import replace
from typing import Any

from userdev.relay.direction import Direction
from userdev.trace.exchanges import MOST_PLACES, Exchange, Place
from userdev.trace.format import Note
from vfio_user.interposer.trace.decode import DecodedMessage, describe, name_of
from vfio_user.interposer.trace.registers import RegisterMap
from vfio_user.wire import ERROR, NO_REPLY, REPLY, Command, Dialect, Message, layouts
from vfio_user.wire.constants import IrqIndex, RegionIndex
from vfio_user.wire.header import HEADER_SIZE, TYPE_MASK

_COMMAND, _FLAGS, _ERRNO = 2, 8, 12
"""Offsets in a message's header."""
_DATA = HEADER_SIZE + 16
"""Where the data of a region access is: behind its offset, region and length."""
_NUMBERS = (1, 2, 4, 8)
"""Bytes of what is shown as a number."""
_TOLD_APART = frozenset(
    {
        Command.SET_IRQS,
        Command.GET_IRQ_INFO,
        Command.GET_REGION_INFO,
        Command.GET_REGION_IO_FDS,
        Command.DEVICE_FEATURE,
        Command.VM_INTERRUPT,
    }
)
"""Commands whose places say more than that: which index, region or feature."""


class VfioReading:
    """Reads the messages of one dialect; registers have their names."""

    def __init__(self, dialect: Dialect, registers: RegisterMap) -> None:
        self._dialect, self._registers = dialect, registers
        self._read = dialect.number(Command.REGION_READ)
        self._write = dialect.number(Command.REGION_WRITE)
        self._accesses = {self._read, self._write}
        self._told_apart = {dialect.number(command) for command in _TOLD_APART if command in dialect}
        self._places: dict[tuple[int, bytes, bytes, bytes], Place] = {}
        self._elsewhere: dict[tuple[str, str, Direction, str, bool], Place] = {}

    def asked(self, record: bytes, at: int, towards: int) -> tuple[Place, int | None] | None:
        """What a request is about, and the number that it writes; None for a reply."""
        if record[at + _FLAGS] & TYPE_MASK == REPLY:
            return None
        command = record[at + _COMMAND] | record[at + _COMMAND + 1] << 8
        if command in self._accesses:
            about = record[at + HEADER_SIZE : at + _DATA]
        elif command in self._told_apart:
            about = record[at + HEADER_SIZE : at + HEADER_SIZE + 20]
        else:
            about = b""
        flags = at + _FLAGS
        key = (towards, record[at + _COMMAND : at + _COMMAND + 2], record[flags : flags + 1], about)
        place = self._places.get(key) or self._new_place(key, record, at)
        if place.writes and len(record) - at - _DATA in _NUMBERS:
            return place, int.from_bytes(record[at + _DATA :], "little")
        return place, None

    def carried(self, record: bytes, at: int, towards: int) -> list[tuple[Place, int | None]]:
        """The writes of a REGION_WRITE_MULTI."""
        writes = layouts.WRITE_MULTI_ENTRY.unpack_all(record[at:], HEADER_SIZE + layouts.WRITE_MULTI.size)
        return [
            (self._written(write, towards), int.from_bytes(write.data[: write.length], "little")) for write in writes
        ]

    def _written(self, write: layouts.VfioUserWrite, towards: int) -> Place:
        """The place of one of several writes in a message."""
        key = (towards, b"", b"", layouts.REGION_ACCESS.pack(write.offset, write.region, write.length))
        place = self._places.get(key)
        if place is None:
            message = Message(0, self._write, NO_REPLY, payload=key[3])
            place = self._kept(key, replace(self._place(message, towards), carried=True))
        return place

    def answer(self, exchange: Exchange, record: bytes, at: int) -> None:
        """Put down what a reply says: an errno, or what was read."""
        if record[at + _FLAGS] & ERROR:
            number = int.from_bytes(record[at + _ERRNO : at + _ERRNO + 4], "little")
            exchange.error = errnos.errorcode.get(number, str(number))
        elif not exchange.place.writes and exchange.place.is_access and len(record) - at - _DATA in _NUMBERS:
            exchange.value = int.from_bytes(record[at + _DATA :], "little")

    def interrupt(self, note: Note) -> tuple[str, int] | None:
        """The interrupt that a note of `CaptureInterrupts` tells of, and how often it came at once."""
        if note.event != "interrupt":
            return None
        index, vector, count = (note.details.get(name) for name in ("index", "vector", "count"))
        name = name_of(IrqIndex, index) if isinstance(index, int) else index
        return f"{name} {vector}", count if isinstance(count, int) else 1

    def without_id(self, message: bytes) -> bytes:
        """All of it behind its ID."""
        return message[_COMMAND:]

    def fields(self, message: bytes, exchange: Exchange) -> dict[str, Any]:
        """What a message says, by the names of its fields; its data too."""
        decoded = describe(self._dialect, Message.decode(message, 0, message[HEADER_SIZE:], []), self._registers)
        return {**decoded.fields, **({"data": decoded.data.hex()} if decoded.data else {})}

    def _new_place(self, key: tuple[int, bytes, bytes, bytes], record: bytes, at: int) -> Place:
        return self._kept(key, self._place(Message.decode(record, at, record[at + HEADER_SIZE :], []), key[0]))

    def _kept(self, key: tuple[int, bytes, bytes, bytes], place: Place) -> Place:
        """A place that was not known: its own, or that of all that are too many."""
        if len(self._places) >= MOST_PLACES and place.is_access and not place.register:
            return self._elsewhere.setdefault(
                (place.command, place.kind, place.direction, place.region, place.carried),
                replace(place, offset=None, detail=f"{place.region} elsewhere"),
            )
        self._places[key] = place
        return place

    def _place(self, message: Message, towards: int) -> Place:
        decoded = describe(self._dialect, message, self._registers)
        return place_of(decoded, Direction(towards & 1), named=self._registers.names_of(decoded.region))


def place_of(decoded: DecodedMessage, direction: Direction, *, named: bool) -> Place:
    """What a request is about; `named` says whether registers of its region have names."""
    access = decoded.command in (Command.REGION_READ.value, Command.REGION_WRITE.value)
    is_place = access and decoded.region is not None and decoded.offset is not None
    return Place(
        decoded.command,
        decoded.kind,
        direction,
        region=str(name_of(RegionIndex, decoded.region)) if is_place and decoded.region is not None else "",
        offset=decoded.offset if is_place else None,
        size=decoded.size if is_place else None,
        register=decoded.register if is_place else "",
        writes=access and decoded.command == Command.REGION_WRITE.value,
        detail=decoded.detail,
        carries=decoded.command == Command.REGION_WRITE_MULTI.value,
        interrupt=decoded.detail if decoded.command == Command.VM_INTERRUPT.value else "",
        common=is_place and decoded.region == RegionIndex.CONFIG,
        unknown=is_place and named and not decoded.register,
    )
