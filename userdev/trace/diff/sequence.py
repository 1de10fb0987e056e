"""What one side of a session asked, as numbers that are the same where the same was asked and answered."""

from __future__ import annotations

from array import array
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from userdev.relay.direction import Direction
from userdev.trace.exchanges import Exchange, Exchanges, Place, Reading
from userdev.trace.format import Note, View
from userdev.trace.reader import TraceReader

Lane = tuple[Direction, str]
"""Who asks: the direction of requests, and their channel."""


@dataclass
class Tokens:
    """Numbers for what was asked and answered, of both traces."""

    examples: list[Exchange] = field(default_factory=list)
    """The first exchange of each number, with its messages."""
    places: array[int] = field(default_factory=lambda: array("L"))
    """What each is about, as a number."""
    _tokens: dict[tuple[object, ...], int] = field(default_factory=dict)
    _places: dict[tuple[object, ...], int] = field(default_factory=dict)

    def token(self, exchange: Exchange, asked: bytes, answered: bytes) -> int:
        """The number of an exchange; `asked` and `answered` are its messages without their ids."""
        place = exchange.place
        key = (place.direction, place.channel, asked, exchange.asked_fds, answered, exchange.answered_fds)
        token = self._tokens.get(key)
        if token is None:
            token = self._tokens[key] = len(self.examples)
            self.examples.append(exchange)
            where = (place.command, place.kind, place.region, place.offset, place.size, place.ring, place.detail)
            self.places.append(self._places.setdefault(where, len(self._places)))
        return token


@dataclass
class Sequence:
    """The exchanges of a lane, in the order in which they were asked for."""

    tokens: array[int] = field(default_factory=lambda: array("L"))
    numbers: array[int] = field(default_factory=lambda: array("L"))
    """Of the requests' records."""
    replies: array[int] = field(default_factory=lambda: array("L"))
    repeats: array[int] = field(default_factory=lambda: array("L"))
    """How often the same was read, one after the other: what is polled for is one."""


@dataclass
class Sequences:
    """All lanes of a trace, and its interrupts."""

    lanes: dict[Lane, Sequence] = field(default_factory=dict)
    interrupts: Counter[str] = field(default_factory=Counter)
    behind: dict[int, Counter[str]] = field(default_factory=dict)
    """By the number of a client's write: the interrupts that came before its next one."""


def read_sequences(reader: TraceReader[Any], reading: Reading, tokens: Tokens, ignored: frozenset[str]) -> Sequences:
    """A whole trace; what is about one of the `ignored` (commands, registers, interrupts) is left out."""
    found = Sequences()
    last_write = 0

    def asked(exchange: Exchange) -> None:
        nonlocal last_write
        if exchange.place.writes and exchange.place.direction is Direction.TO_SERVER:
            last_write = exchange.number

    exchanges = Exchanges(reader, reading, asked=asked, keep=True)
    complete: list[tuple[int, int, int, Place]] = []

    def put(exchange: Exchange) -> None:
        place = exchange.place
        if place.carried or (ignored and not ignored.isdisjoint(names_of(place))):
            return  # what a message carries is compared with it
        answered = reading.without_id(exchange.answered) if exchange.reply else b""
        token = tokens.token(exchange, reading.without_id(exchange.asked), answered)
        complete.append((exchange.number, exchange.reply, token, place))

    for event in exchanges.events():
        if isinstance(event, Exchange):
            put(event)
        elif isinstance(event, Note) and (interrupt := reading.interrupt(event)) is not None:
            name, count = interrupt
            if name not in ignored:
                found.interrupts[name] += count
                found.behind.setdefault(last_write, Counter())[name] += count
    for exchange in exchanges.rest():
        if exchange.reply or exchange.view != View.RECEIVED:
            put(exchange)
    complete.sort(key=lambda one: one[0])
    for number, reply, token, place in complete:
        lane = found.lanes.setdefault((place.direction, place.channel), Sequence())
        if lane.tokens and lane.tokens[-1] == token and place.is_access and not place.writes:
            lane.repeats[-1] += 1
            continue
        lane.tokens.append(token)
        lane.numbers.append(number)
        lane.replies.append(reply)
        lane.repeats.append(1)
    return found


def names_of(place: Place) -> tuple[str, ...]:
    """The names by which a place can be left out: its command, its register, where that is, its region."""
    element = place.register.partition("+")[0]
    return (place.command, place.register, element, element.partition("[")[0], place.where, place.region)
