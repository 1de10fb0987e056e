"""The trace file, byte by byte. Integers are little-endian.

The file starts with the 8 bytes of `MAGIC`; records follow to the end, each::

    0   4   length of what follows this field
    4   1   kind: 1 header, 2 message, 3 bytes that are no message, 4 note
    5   1   direction: 0 to the server, 1 to the client
    6   1   view: 1 received, 2 sent, 3 both (received, and sent on unchanged)
    7   1   count of descriptors
    8   8   time, nanoseconds of CLOCK_MONOTONIC
    16  4   number of the request's record, in a reply; else 0

then 20 bytes for each descriptor (kind 4, size 8, inode 8), then the body: the message as it was on the wire, the
bytes, or JSON for header and note. Records are numbered from 1, the header being record 1.

A file that ends within a record is readable up to there; nothing else has to be there for that, no index and no end.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import IntEnum, IntFlag
from math import isfinite
from typing import Any, Generic, Protocol, Self, TypeVar

from userdev.descriptors import FdInfo, FdKind
from userdev.errors import ProtocolError
from userdev.relay.direction import Direction

MAGIC = b"vfutrc1\n"
FORMAT = 1
PREFIX = struct.Struct("<IBBBBQI")
LENGTH = struct.Struct("<I")
FD = struct.Struct("<IQQ")
MAX_FDS = 255
"""Descriptors that a record describes: their count is one byte."""
MAX_TIME_NS = 1 << 62
"""Nanoseconds: 146 years."""
MAX_RECORD = 80 << 20
"""A length above this is not one: the file is damaged there."""


OLDEST = "vfio-user"
"""The protocol of traces that name none: they are of before there was another."""


class Traced(Protocol):
    """A message, as far as a trace has to know it."""

    fds: list[int]

    def encode(self) -> bytes:
        """Its bytes, as they are on the wire."""


class Kept(Traced, Protocol):
    """One that can be read back."""

    @classmethod
    def decode(cls, buffer: bytes, at: int, payload: bytes, fds: list[int]) -> Self:
        """The message whose header is at `at`, and what follows it.

        Raises:
            struct.error, ValueError: it is cut, or says what cannot be.
        """


M = TypeVar("M", bound=Traced)


class RecordKind(IntEnum):
    """The kinds of record."""

    HEADER = 1
    MESSAGE = 2
    BYTES = 3
    NOTE = 4


class View(IntFlag):
    """The side of the interposer that a message was seen on; `RECEIVED | SENT` is one that passed unchanged."""

    RECEIVED = 1
    SENT = 2


BOTH = View.RECEIVED | View.SENT
_VIEWS = tuple(View(bits) for bits in range(4))
_DIRECTIONS = tuple(Direction)
_KINDS = {int(kind): kind for kind in RecordKind}
"""By their numbers: a look-up is a tenth of what an enumeration's call costs, and is made for each record."""


@dataclass(frozen=True)
class TraceFrame:
    """The fields that all records have."""

    number: int
    time: int
    """Nanoseconds of CLOCK_MONOTONIC."""
    direction: Direction
    view: View
    channel: str = field(default="", kw_only=True)
    """The connection that it was seen on, where there are several; "" is the one that the client made."""


@dataclass(frozen=True)
class Header(TraceFrame):
    """The first record: `format`, `protocol`, `program`, `dialect`, `realtime` (ns since 1970 at `time`), addresses."""

    about: dict[str, Any]

    @property
    def protocol(self) -> str:
        """Whose messages these are."""
        return str(self.about.get("protocol", OLDEST))

    @property
    def dialect(self) -> str:
        """The form of the protocol, where it has several."""
        return str(self.about.get("dialect", "current"))

    @property
    def realtime(self) -> int:
        """Nanoseconds since 1970 at `time`."""
        return int(self.about.get("realtime", self.time))


@dataclass(frozen=True)
class TraceRecord(TraceFrame, Generic[M]):
    """A message."""

    message: M
    """Its `fds` are empty: descriptors do not outlive their process."""
    fds: tuple[FdInfo, ...] = ()
    pair: int = 0
    """In a reply, the number of the request's record; 0 where nobody asked."""

    @property
    def unchanged(self) -> bool:
        """Whether it was sent on as it came."""
        return self.view == BOTH


@dataclass(frozen=True)
class Raw(TraceFrame):
    """Bytes that are no message."""

    data: bytes


@dataclass(frozen=True)
class Note(TraceFrame):
    """Something that happened: `event` says what, `details` the rest."""

    event: str
    details: dict[str, Any] = field(default_factory=dict)


R = TypeVar("R", bound=TraceRecord[Any])


@dataclass(frozen=True)
class TracedProtocol(Generic[R]):
    """A protocol, as far as a reader of traces has to know it."""

    name: str
    """As headers have it."""
    kind: type[Kept]
    """Its messages, which are what `record` is of."""
    header_size: int
    record: type[R]
    channels: tuple[str, ...] = ("",)
    """The connections of one session, in the order of their numbers; the first is the one that the client made."""


def towards(direction: int, channel: int) -> int:
    """The byte that says where a record goes: bit 0 the direction, above it the channel's number."""
    return direction | channel << 1


def encode_message(
    towards: int, view: int, time: int, pair: int, message: Traced, fds: tuple[FdInfo, ...] = ()
) -> bytes:
    """The record of one message."""
    data = message.encode()
    described = b"".join([FD.pack(*fd) for fd in fds]) if fds else b""
    length = PREFIX.size - LENGTH.size + len(described) + len(data)
    prefix = PREFIX.pack(length, RecordKind.MESSAGE, towards, view, len(fds), time, pair)
    return prefix + described + data


def encode_body(kind: RecordKind, towards: int, view: int, time: int, body: bytes) -> bytes:
    """The record of anything else."""
    return PREFIX.pack(PREFIX.size - LENGTH.size + len(body), kind, towards, view, 0, time, 0) + body


def encode_json(kind: RecordKind, time: int, content: dict[str, Any]) -> bytes:
    """The record of a header or a note."""
    return encode_body(kind, 0, 0, time, json.dumps(content, separators=(",", ":")).encode())


def decode(number: int, record: bytes, protocol: TracedProtocol[R]) -> Header | R | Raw | Note:
    """Take one whole record, its length included, apart.

    Raises:
        ProtocolError: it is malformed.
    """
    try:
        _, kind, place, view, count, time, pair = PREFIX.unpack_from(record)
        body = PREFIX.size + count * FD.size
        described = tuple(_descriptors(record, count)) if count else ()
        direction, seen = _DIRECTIONS[place & 1], _seen(kind, view, time)
        channel = channel_of(protocol, place)
        match _KINDS.get(kind) or RecordKind(kind):
            case RecordKind.MESSAGE:
                message = protocol.kind.decode(record, body, record[body + protocol.header_size :], [])
                return protocol.record(number, time, direction, seen, message, described, pair, channel=channel)
            case RecordKind.BYTES:
                return Raw(number, time, direction, seen, record[body:], channel=channel)
            case RecordKind.NOTE:
                content = _object(record[body:])
                event = str(content.pop("event", "?"))
                return Note(number, time, direction, seen, event, content, channel=channel)
            case RecordKind.HEADER:
                return Header(number, time, direction, seen, _checked(_object(record[body:])))
    except (struct.error, ValueError, TypeError, RecursionError) as error:
        raise ProtocolError(f"record {number} of the trace is malformed: {error}") from None


def _descriptors(record: bytes, count: int) -> Iterator[FdInfo]:
    for index in range(count):
        kind, size, inode = FD.unpack_from(record, PREFIX.size + index * FD.size)
        yield FdInfo(FdKind(kind), size, inode)


def descriptor_kinds(record: bytes, count: int) -> tuple[FdKind, ...]:
    """What the `count` descriptors of a message's record were.

    Raises:
        ValueError, struct.error: the record does not say.
    """
    return tuple(fd.kind for fd in _descriptors(record, count)) if count else ()


def channel_of(protocol: TracedProtocol[Any], towards: int) -> str:
    """The connection of a record, by its byte that says where it goes.

    Raises:
        ValueError: the protocol has not so many.
    """
    number = towards >> 1
    if number >= len(protocol.channels):
        raise ValueError(f"it is of channel {number}")
    return protocol.channels[number]


def _seen(kind: int, view: int, time: int) -> View:
    """Where a record was seen.

    Raises:
        ValueError: that is nowhere, or never.
    """
    if time >= MAX_TIME_NS:
        raise ValueError(f"its time is {time}")
    if kind == RecordKind.MESSAGE and not view & BOTH:
        raise ValueError("it was seen on no side")
    return _VIEWS[view & 3]


def _finite(number: str) -> float:
    if not isfinite(value := float(number)):
        raise ValueError(f"{number:.20} is no number")
    return value


_DECODER = json.JSONDecoder(parse_float=_finite, parse_constant=_finite)
"""Of what can be written again: numbers are numbers."""


def _object(text: bytes) -> dict[str, Any]:
    """The JSON object of a header or note.

    Raises:
        ValueError, TypeError: there is none, or one that cannot be written.
    """
    content = _DECODER.decode(text.decode())
    if not isinstance(content, dict):
        raise TypeError("its content is no object")
    if b"\\u" in text:
        json.dumps(content, ensure_ascii=False).encode()  # which half a character cannot be
    return content


def _checked(about: dict[str, Any]) -> dict[str, Any]:
    """What a header says.

    Raises:
        ValueError, TypeError: a field is missing, or says what cannot be.
    """
    if about.get("format", FORMAT) != FORMAT:
        raise ValueError(f"it is of format {about['format']!r:.40}, and this reads {FORMAT}")
    for name, kind in (("protocol", str), ("program", str), ("dialect", str), ("realtime", int)):
        if not isinstance(about.get(name, kind()), kind):
            raise TypeError(f"{name} is no {kind.__name__}")
    if not 0 <= about.get("realtime", 0) < MAX_TIME_NS:
        raise ValueError("realtime is out of range")
    return about
