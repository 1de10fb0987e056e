"""Counts a trace: per place and per interrupt, and what goes with what."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from userdev.relay.direction import Direction
from userdev.trace.exchanges import Event, Exchange, Exchanges, Place, Reading
from userdev.trace.format import Note, Raw, View
from userdev.trace.reader import TraceReader
from userdev.trace.stats.tally import EXAMPLES, Answers, Followed, Pending, Tally, Vector

MOST_CIRCUMSTANCES = 256
"""Writes that are told apart before the reads of one register: beyond, what is written is data, and no cause."""
MOST_PENDING = 64
"""Registers whose last write is waited for to be followed by an interrupt."""


class Stats:
    """What has been counted of a trace; `take` goes on from where its file ended the last time.

    `asked` and `told` are for who wants to see each request as it comes, and what `Exchanges.events` has, in the same
    pass.
    """

    def __init__(
        self,
        reader: TraceReader[Any],
        reading: Reading,
        *,
        asked: Callable[[Exchange], None] | None = None,
        told: Callable[[Event], None] | None = None,
    ) -> None:
        self.reader = reader
        self.tallies: dict[Place, Tally] = {}
        self.vectors: dict[str, Vector] = {}
        self.followed: dict[Place, Followed] = {}
        self.notes: dict[str, int] = {}
        self.bytes_unframed = 0
        self.last_time = reader.header.time
        self.exchanges = Exchanges(reader, reading, asked=self._asked if asked is None else self._asked_before(asked))
        self._told = told
        self._interrupt = reading.interrupt
        self._writes = 0
        self._last_write: Exchange | None = None
        self._before: dict[int, Exchange | None] = {}
        """By the number of a read that has no answer yet: the write before it."""
        self._written: dict[tuple[str, int | None, int | None], Exchange] = {}
        self.pending: dict[Place, Pending] = {}
        """Each place's last write, behind which an interrupt may still come."""

    @property
    def seconds(self) -> float:
        """How long the trace is."""
        return (self.last_time - self.reader.header.time) / 1e9

    def take(self) -> None:
        """Count what the file has now."""
        counted, told = self._count, self._told
        for event in self.exchanges.events():
            if told is not None:
                told(event)
            if type(event) is Exchange:
                counted(event)
            else:
                self._beside(event)

    def _asked_before(self, asked: Callable[[Exchange], None]) -> Callable[[Exchange], None]:
        def both(exchange: Exchange) -> None:
            self._asked(exchange)
            asked(exchange)

        return both

    def _asked(self, exchange: Exchange) -> None:
        """A request has come: what else comes is behind it."""
        self.last_time = exchange.time
        place = exchange.place
        if place.offset is None or place.direction is not Direction.TO_SERVER or not exchange.view & View.RECEIVED:
            if place.interrupt:
                self._interrupted(place.interrupt, 1, exchange.time)
            return
        if not place.writes:
            self._before[exchange.number] = self._last_write
            return
        self._writes += 1
        self._last_write = exchange
        self._written[place.region, place.offset, place.size] = exchange
        if (pending := self.pending.pop(place, None)) is not None:
            self._judge(place, pending)
        self.pending[place] = Pending(exchange.number)
        if len(self.pending) > MOST_PENDING:
            del self.pending[next(iter(self.pending))]

    def _count(self, exchange: Exchange) -> None:
        place = exchange.place
        tally = self.tallies.get(place)
        if tally is None:
            tally = self.tallies[place] = Tally()
        tally.count += 1
        tally.last_number = exchange.number
        if exchange.error:
            tally.errors.add(exchange.error, exchange.number)
        elif exchange.value is not None:
            tally.last = exchange.value
        if exchange.latency is not None:
            tally.latencies.add(exchange.latency)
            if (answered := exchange.time + exchange.latency) > self.last_time:
                self.last_time = answered
        if place.offset is not None and not place.writes:
            tally.ran(exchange, self._writes)
            if (before := self._before.pop(exchange.number, None)) is not None and before is not tally.after:
                tally.after = before
                self._read_behind(tally, exchange, before)

    def _read_behind(self, tally: Tally, read: Exchange, write: Exchange) -> None:
        """Count what the first read behind a write gave."""
        place = read.place
        circumstance = write.place, write.value
        answers = tally.answers.get(circumstance)
        if answers is None and len(tally.answers) < MOST_CIRCUMSTANCES:
            answers = tally.answers[circumstance] = Answers()
        if answers is not None:
            answers.add(read.error or read.value, read.number)
        written = self._written.get((place.region, place.offset, place.size))
        if written is not None:
            tally.read_back.add(written.value == read.value, read.number)

    def _beside(self, event: Event) -> None:
        match event:
            case Note():
                self.notes[event.event] = self.notes.get(event.event, 0) + 1
                if (found := self._interrupt(event)) is not None:
                    self._interrupted(*found, event.time)
            case Raw():
                self.bytes_unframed += len(event.data)
            case Exchange():
                return
        self.last_time = event.time

    def _interrupted(self, name: str, count: int, time: int) -> None:
        vector = self.vectors.setdefault(name, Vector())
        vector.count += count
        if self._last_write is not None:
            vector.since_write.add(time - self._last_write.time)
            self.followed.setdefault(self._last_write.place, Followed()).nearest[name] += 1
        for pending in self.pending.values():
            pending.seen.add(name)

    def _judge(self, place: Place, pending: Pending) -> None:
        """The next write of the same place has come: what came behind the last one is known."""
        followed = self.followed.setdefault(place, Followed())
        followed.total += 1
        followed.by.update(pending.seen)
        for name in followed.by:
            if name not in pending.seen and len(missing := followed.missing.setdefault(name, [])) < EXAMPLES:
                missing.append(pending.number)
