"""A trace on the axis: a request and its answer are one thing that took time.

Accesses of registers, of which there may be millions, are put there as their exchanges have them; whatever else passed
is taken apart as a whole.
"""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from userdev.counted import counted
from userdev.errors import ProtocolError
from userdev.printable import printable
from userdev.trace import Note, Raw, TraceLine, TraceReader, View, as_json, decoded_lines, text
from userdev.trace.exchanges import REQUEST, Event, Exchange, Place
from userdev.trace.format import TracedProtocol, decode
from userdev.trace.lines import Entry
from userdev.trace.stats import Finding, Stats, report
from userdev.trace.view import TraceView, opened
from vfio_user.interposer.trace.registers import RegisterMap
from vfio_user.page import noise
from vfio_user.page.axis import Axis, Kind
from vfio_user.traces import open_trace

_KINDS = {
    "fault": Kind.FAULT,
    "fault-failed": Kind.FAULT,
    "signal": Kind.FAULT,
    "cut": Kind.FAULT,
    "no-server": Kind.WRONG,
    "session-failed": Kind.WRONG,
    "unframed": Kind.WRONG,
    "server-failed": Kind.WRONG,
    "server-gone": Kind.WRONG,
    "server-hangs": Kind.WRONG,
    "given-up": Kind.WRONG,
    "attempt-failed": Kind.WRONG,
    "descriptors-lost": Kind.WRONG,
}
"""Of notes, by their events; the others are events, no more."""
_SEEN = ("record", "seconds", "direction", "request", "latency", "kind", "answer")
"""Fields of a record that the page has elsewhere."""
UNANSWERED = "never answered"
LAST_MESSAGES = 60
MOST_FINDINGS = 10
_MANY = "not modelled"
"""Findings that may be as many as registers."""
MOST_RECORDS = 2_000_000
"""Of a trace, on a page; of a longer one the beginning and the end, and of the rest what did not go as usual."""
_LEAST_RECORD = 48
"""Bytes of a message's record."""
_INTERPOSER = "interposer"


@dataclass(frozen=True)
class Seen:
    """What there is to say of a trace beside the axis."""

    name: str
    """The heading of its rows."""
    file: str
    truncated: str = ""
    """Where and why the file ends early; "" where it does not."""
    last: str = ""
    """Its last records, in words."""
    findings: Sequence[Finding] = ()
    """What is odd about it, but for known harmless noise."""


def put_trace(axis: Axis, path: Path, registers: RegisterMap | None = None) -> Seen:
    """Put a trace's records on the axis; `registers` have the names of registers, instead of the trace's own.

    Raises:
        UserError: there is no such file, or it is no trace.
    """
    view = open_trace(path, registers)
    wire = _Wire(axis, view, path.name.removesuffix(".trace"))
    with opened(path, view.shown.protocol, kind=_Remembering) as reader:
        return wire.put(reader)


class _Remembering(TraceReader[Any]):
    """A reader that has its last records behind its header, whatever they are and whoever is told of them."""

    def __init__(self, stream: io.BufferedIOBase, name: str, *protocols: TracedProtocol[Any]) -> None:
        self.last: deque[tuple[int, bytes]] = deque(maxlen=LAST_MESSAGES)
        super().__init__(stream, name, *protocols)
        self.last.clear()

    def records(self) -> Iterator[bytes]:
        """Each record, which is the last one now."""
        for record in super().records():
            self.last.append((self.number, record))
            yield record


class _Wire:
    """One trace on its way to the axis."""

    def __init__(self, axis: Axis, view: TraceView, group: str) -> None:
        self._axis, self._view, self._shown, self._group = axis, view, view.shown, group
        self._reader: TraceReader[Any]
        self._reading = view.shown.reading()
        self._zero = view.header.realtime - view.header.time
        self._ended = view.header.time
        self._asked: dict[int, bytes] = {}
        """The records of requests that wait for an answer, but for accesses."""
        self._rows: dict[Place, int] = {}
        self._accesses: dict[tuple[Place, int | None, str, int, bool], tuple[int, Kind]] = {}
        """Wordings of accesses that came before: the same again is a look."""
        self._noise: set[int] = set()
        """Records of known harmless noise."""
        self._gap = _gap(view)
        self._left_out: list[int] = []

    def put(self, reader: _Remembering) -> Seen:
        """Put all of it there."""
        self._reader = reader
        header = self._view.header
        about = {name: value for name, value in header.about.items() if name != "registers"}
        self._other(TraceLine(header, None), "trace begins", about, Kind.EVENT)
        stats = Stats(reader, self._reading, asked=self._hear, told=self._tell)
        stats.take()
        for left in stats.exchanges.rest():
            self._exchange(left)
        if self._left_out:
            self._tell_gap()
        odd = [one for one in report(stats).findings if not one.records or not self._noise.issuperset(one.records)]
        odd.sort(key=lambda one: one.kind == _MANY)
        words = "\n".join(text(line, header.time) for line in self._lines(reader.last))
        return Seen(self._group, self._view.path.name, reader.truncated, printable(words), odd[:MOST_FINDINGS])

    def _tell(self, event: Event) -> None:
        match event:
            case Exchange():
                self._ended = event.time + (event.latency or 0)
                self._exchange(event)
            case Note():
                self._note(self._shown.note(event))
            case Raw():
                line = TraceLine(event, None)
                self._other(line, "bytes that are no message", _fields(line), Kind.REFUSED)

    def _tell_gap(self) -> None:
        """Say on the axis what is not there."""
        first, last = self._left_out[0], self._left_out[-1]
        count = counted(len(self._left_out), "access that went as usual is", "accesses that went as usual are")
        title = f"{count} left out here"
        said = self._axis.said(title, {"records": f"{self._gap.start} to {self._gap.stop - 1}"})
        self._axis.add(self._axis.row(self._group, _INTERPOSER), first + self._zero, said, Kind.EVENT, last - first)

    def _hear(self, exchange: Exchange) -> None:
        """A request has come: what is no access is taken apart once it is answered."""
        self._ended = exchange.time
        if not exchange.place.is_access and not exchange.place.carried:
            self._asked[exchange.number] = self._reader.record

    def _exchange(self, exchange: Exchange) -> None:
        place = exchange.place
        lasted = exchange.latency
        if lasted is None:
            lasted = self._ended - exchange.time if place.kind == REQUEST and exchange.view != View.RECEIVED else 0
        if place.is_access:
            said, kind = self._access(exchange)
            if exchange.number in self._gap and kind < Kind.REFUSED:
                self._left_out.append(exchange.time)
                return
            row = self._row_of_access(place)
        elif place.carried:
            return  # one of too many places: its message says where
        else:
            row, said, kind = self._message(exchange)
        self._axis.add(row, exchange.time + self._zero, said, kind, lasted, exchange.number, exchange.reply)

    def _row_of_access(self, place: Place) -> int:
        row = self._rows.get(place)
        if row is None:
            register = place.register.partition("+")[0] or f"{place.offset:#x}"
            row = self._rows[place] = self._axis.row(f"{self._group} {place.region}", "", register)
        return row

    def _access(self, exchange: Exchange) -> tuple[int, Kind]:
        place, answered = exchange.place, exchange.reply != 0
        key = place, exchange.value, exchange.error, exchange.view, answered
        known = self._accesses.get(key)
        if known is None:
            value = hex(exchange.value) if exchange.value is not None else ""
            kind, short = _outcome(exchange, Kind.WRITE if place.writes else Kind.READ, value or place.command)
            details = {
                "command": place.command,
                "region": place.region,
                "offset": hex(place.offset or 0),
                "size": place.size,
                "register": place.register,
                "value": value,
                "error": exchange.error,
                "seen": _SIDES.get(exchange.view, ""),
            }
            kept = {name: value for name, value in details.items() if value not in ("", None)}
            side = f"<{kept['seen']}>" if "seen" in kept else ""
            words = [place.title, f"= {value}" if value else "", short if short not in (value, place.command) else ""]
            title = " ".join(filter(None, [*words, side]))
            known = self._accesses[key] = self._axis.said(title, kept, short), kind
        return known

    def _message(self, exchange: Exchange) -> tuple[int, int, Kind]:
        """Row, wording and kind of what is no access."""
        place = exchange.place
        records = [(exchange.number, self._asked.pop(exchange.number))]
        if exchange.reply and self._reader.number == exchange.reply:
            records.append((exchange.reply, self._reader.record))
        line, *answers = self._lines(records)
        details = _fields(line)
        if answers:
            details["answer"] = _fields(answers[0])
        problem = any(each.decoded is not None and each.decoded.problem for each in (line, *answers))
        kind, short = _outcome(exchange, Kind.REFUSED if problem else Kind.MESSAGE, place.detail or place.command)
        area = f"ring {place.ring}" if place.ring is not None else self._shown.lanes.of(line) or _INTERPOSER
        title = place.title if short in place.title else f"{place.title} {short}"
        if (place.command, exchange.error) in noise.REFUSED:
            area, kind = noise.NAME, Kind.NOISE
            self._noise |= {exchange.number, exchange.reply}
        return self._axis.row(self._group, area), self._axis.said(title, details, short), kind

    def _note(self, note: Note) -> None:
        interrupt = self._reading.interrupt(note)
        told = ((name, value) for name, value in note.details.items() if not isinstance(value, dict))
        about = " ".join(f"{name}={_one(value)}" for name, value in told)
        title = f"{note.event} {interrupt[0] if interrupt else about}".strip()
        kind = _KINDS.get(note.event, Kind.EVENT)
        self._other(TraceLine(note, None), title, note.details, kind, interrupt[0] if interrupt else note.event)

    def _other(self, line: TraceLine, title: str, details: dict[str, Any], kind: Kind, short: str = "") -> None:
        row = self._axis.row(self._group, self._shown.lanes.of(line) or _INTERPOSER)
        said = self._axis.said(title, details, short or title)
        self._axis.add(row, line.entry.time + self._zero, said, kind, 0, line.entry.number)

    def _lines(self, records: Iterable[tuple[int, bytes]]) -> list[TraceLine]:
        """What records say that are kept, those that can be read."""
        entries: list[Entry] = []
        for number, record in records:
            with suppress(ProtocolError):
                entries.append(decode(number, record, self._reader.protocol))
        named = (self._shown.note(entry) if isinstance(entry, Note) else entry for entry in entries)
        return list(decoded_lines(named, self._shown.decode))


_SIDES: Mapping[int, str] = {
    View.RECEIVED: "only received",
    View.SENT: "only sent",
}
"""What did not pass as it was, by where the interposer saw it so."""


def _outcome(exchange: Exchange, usual: Kind, short: str) -> tuple[Kind, str]:
    """What an exchange came to, and that in a word."""
    if exchange.error:
        return Kind.REFUSED, f"refused: {exchange.error}"
    if exchange.view in _SIDES:
        return Kind.FAULT, short
    if exchange.place.kind == REQUEST and not exchange.reply:
        return Kind.WRONG, UNANSWERED
    return usual, short


def _fields(line: TraceLine) -> dict[str, Any]:
    return {name: each for name, each in as_json(line, 0).items() if name not in _SEEN}


def _one(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _gap(view: TraceView) -> range:
    """The records of a trace that is too long of which what went as usual is left out."""
    if view.path.stat().st_size < MOST_RECORDS * _LEAST_RECORD:
        return range(0)
    with opened(view.path, view.shown.protocol) as reader:
        deque(reader.records(), 0)
        count, quarter = reader.number, MOST_RECORDS // 4
    return range(quarter, count - 3 * quarter) if count > MOST_RECORDS else range(0)
