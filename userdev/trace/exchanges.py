"""A trace as exchanges: what was asked with what was answered, fast enough for millions of records.

Nothing is taken apart twice: requests that are about the same share one `Place`, which a protocol makes of the bytes
that say so.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from userdev.descriptors import FdKind
from userdev.errors import ProtocolError
from userdev.relay.direction import Direction
from userdev.trace.format import FD, PREFIX, Note, Raw, RecordKind, View, descriptor_kinds
from userdev.trace.reader import TraceReader

REQUEST, POSTED = "request", "posted"
MOST_PLACES = 1 << 16
"""Places that are kept apart; what is about others has none of its own (a frame buffer has one for each pixel)."""


@dataclass(frozen=True, eq=False, slots=True)
class Place:
    """What a request is about: one object for all that are about the same."""

    command: str
    kind: str
    """`request`, or `posted`: nobody answers it."""
    direction: Direction
    channel: str = ""
    region: str = ""
    """`BAR0`, of an access."""
    offset: int | None = None
    size: int | None = None
    """Bytes accessed."""
    register: str = ""
    """The name of what is there: `compute`, `queue[3]+2`."""
    writes: bool = False
    """Whether the access writes."""
    ring: int | None = None
    detail: str = ""
    """What it is about otherwise: `MSIX 0-3`, `MIG_DEVICE_STATE SET`."""
    interrupt: str = ""
    """The interrupt that the message itself is, where it is one."""
    carries: bool = False
    """Whether the message is a list of accesses, each of which is an exchange of its own beside that of the message."""
    carried: bool = False
    """Whether it is one of such a list: `posted`, as only the message is answered."""
    common: bool = False
    """Whether it reaches what any device has, whatever it is for: PCI's configuration space."""
    unknown: bool = False
    """Whether registers of its region have names, and there is none where it reaches."""

    @property
    def is_access(self) -> bool:
        """Whether it reads or writes a register, named or not."""
        return self.offset is not None

    @property
    def subject(self) -> str:
        """What it is about: a register's name, or where one would be."""
        if self.register or self.offset is None:
            return self.register or self.detail or self.region
        return self.where

    @property
    def where(self) -> str:
        """Region and offset of an access."""
        return f"{self.region}+{self.offset:#x}" if self.offset is not None else self.region

    @property
    def title(self) -> str:
        """Its command, and what it is about."""
        return f"{self.command} {self.subject}" if self.subject else self.command


@dataclass(eq=False, slots=True)
class Exchange:
    """A request and its answer, as far as that is known yet."""

    place: Place
    number: int
    """Of the request's record."""
    time: int
    """The request's, ns of the trace's clock."""
    view: int
    """Where the request was seen, bits of `View`: one that was only received did not go on as it was."""
    value: int | None = None
    """What was written, or what was read: that is in the reply."""
    reply: int = 0
    """The number of the reply's record; 0 while there is none."""
    latency: int | None = None
    """ns between the two; of the interposer's own requests too."""
    error: str = ""
    """What the reply says instead of what was asked for, by its name (`EINVAL`)."""
    asked: bytes = b""
    answered: bytes = b""
    """The messages; kept only where that is wanted."""
    asked_fds: tuple[FdKind, ...] = ()
    answered_fds: tuple[FdKind, ...] = ()
    """What their descriptors were, kept with them."""


Event = Exchange | Note | Raw


class Reading(Protocol):
    """What a protocol's messages say, from the bytes of their records: the message begins at `at`.

    The first three raise struct.error, IndexError, ValueError or ProtocolError for what is cut.
    """

    def asked(self, record: bytes, at: int, towards: int) -> tuple[Place, int | None] | None:
        """What a request is about, and the number that it writes; None for a reply."""

    def carried(self, record: bytes, at: int, towards: int) -> list[tuple[Place, int | None]]:
        """The accesses that a request `carries`, each as `asked` has it."""

    def answer(self, exchange: Exchange, record: bytes, at: int) -> None:
        """Put down what a reply says: `value` and `error`."""

    def interrupt(self, note: Note) -> tuple[str, int] | None:
        """The interrupt that a note tells of, and how often it came at once; None for other notes."""

    def without_id(self, message: bytes) -> bytes:
        """A message without what only tells it apart from others that say the same."""

    def fields(self, message: bytes, exchange: Exchange) -> dict[str, Any]:
        """What a message of an exchange says, by the names of its fields; its data too."""


class Exchanges:
    """Pairs the records of a reader. A growing file's can be taken from time to time.

    `asked` is told of each request as it comes, before anything else that comes later; `events` has it once it is
    answered. `keep` has exchanges keep their messages.
    """

    def __init__(
        self,
        reader: TraceReader[Any],
        reading: Reading,
        *,
        asked: Callable[[Exchange], None] | None = None,
        keep: bool = False,
    ) -> None:
        self.reader = reader
        self._reading, self._asked, self._keep = reading, asked, keep
        self._open: dict[int, Exchange] = {}
        """By the number of the request's record."""

    def events(self) -> Iterator[Event]:
        """What the file has now: exchanges as they are complete, and all else in between."""
        unpack, prefix, descriptor = PREFIX.unpack_from, PREFIX.size, FD.size
        reader, asked, answer, keep = self.reader, self._reading.asked, self._reading.answer, self._keep
        waiting, tell = self._open, self._asked
        for record in reader.records():
            _, kind, towards, view, count, time, pair = unpack(record)
            if kind != RecordKind.MESSAGE:
                entry = reader.decoded(record)
                if isinstance(entry, Note | Raw):
                    yield entry
                continue
            at = prefix + count * descriptor
            try:
                found = asked(record, at, towards)
                if found is not None:
                    place, value = found
                    exchange = Exchange(place, reader.number, time, view, value)
                    if keep:
                        exchange.asked, exchange.asked_fds = record[at:], descriptor_kinds(record, count)
                    if tell is not None:
                        tell(exchange)
                    if place.kind == POSTED and view != View.RECEIVED:
                        yield exchange
                    else:
                        waiting[exchange.number] = exchange
                    if place.carries:
                        yield from self._carried(exchange, record, at, towards)
                elif (request := waiting.get(pair)) is not None:
                    answer(request, record, at)
                    request.reply, request.latency = reader.number, time - request.time
                    if keep:
                        request.answered, request.answered_fds = record[at:], descriptor_kinds(record, count)
                    # A reply that was changed on the way comes again as it was sent on; to the interposer's own it is
                    # the only one.
                    if view != View.RECEIVED or request.view == View.SENT:
                        del waiting[pair]
                        yield request
            except (struct.error, IndexError, ValueError, ProtocolError):
                if (whole := reader.decoded(record)) is None:
                    return
                del whole  # it can be read, and says nothing that could be told

    def _carried(self, exchange: Exchange, record: bytes, at: int, towards: int) -> Iterator[Exchange]:
        """The accesses within a request, as if each had come by itself."""
        for place, value in self._reading.carried(record, at, towards):
            part = Exchange(place, exchange.number, exchange.time, exchange.view, value)
            if self._asked is not None:
                self._asked(part)
            if exchange.view != View.RECEIVED:
                yield part

    def rest(self) -> list[Exchange]:
        """Those without an answer, at the end of a trace."""
        return list(self._open.values())
