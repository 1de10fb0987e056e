"""A trace for people: what each entry says, a line for each thing that happened."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from userdev.descriptors import FdInfo
from userdev.relay.direction import Direction
from userdev.trace.format import Header, Note, Raw, TraceRecord, View

PAYLOAD = "payload."
"""Before the name of a field that the header has too: `flags` is the header's, `payload.flags` the structure's."""
DATA = "data"
"""What follows a message's own structure."""
DATA_SHOWN = 64
"""Bytes of data printed before it is cut."""
_BYTES_SHOWN = 32
_MARKS = {View.RECEIVED: "only received", View.SENT: "only sent"}
_ARROWS = {Direction.TO_SERVER: ("->", "=>"), Direction.TO_CLIENT: ("<-", "<=")}
"""On the connection, and on a channel beside it."""

Entry = Header | TraceRecord[Any] | Raw | Note


@dataclass
class Decoded:
    """One message, taken apart as far as it could be. A protocol's may know more."""

    command: str
    kind: str
    """`request`, `posted`, `reply`, or `error`."""
    fields: dict[str, Any] = field(default_factory=dict)
    """Field: number, or name where it has one."""
    data: bytes = b""
    problem: str = ""
    """Why it could not be taken apart further."""

    @property
    def mark(self) -> str:
        """The beginning of its line: by what the protocol tells messages apart, if by anything."""
        return ""

    @property
    def title(self) -> str:
        """The name of it in a picture."""
        return self.command

    def more(self) -> list[str]:
        """The words between its fields and its data."""
        return []

    def data_shown(self) -> str:
        """The data as one word or two."""
        if not self.data:
            return ""
        cut = "..." if len(self.data) > DATA_SHOWN else ""
        return f"data[{len(self.data)}] {self.data[:DATA_SHOWN].hex()}{cut}"

    def text(self) -> str:
        """One line."""
        words = [self.command]
        if self.kind != "request":
            words.append(self.kind)
        words += [f"{name}={_word(value)}" for name, value in self.fields.items()]
        words += [*self.more(), self.data_shown()]
        if self.problem:
            words.append(f"!! {self.problem}")
        return " ".join(filter(None, words))

    def json(self) -> dict[str, Any]:
        """The same for programs; data in hexadecimal."""
        found: dict[str, Any] = {"command": self.command, "kind": self.kind, **self.fields}
        if self.data:
            found["data"] = self.data.hex()
        if self.problem:
            found["problem"] = self.problem
        return found


@dataclass(frozen=True)
class TraceLine:
    """One entry with what it says; `decoded` only for messages, `latency` (ns) only for replies."""

    entry: Entry
    decoded: Decoded | None
    latency: int | None = None


@dataclass(frozen=True)
class Filter:
    """A selection of what to show; None and empty let everything through. Times are seconds since the trace began."""

    commands: frozenset[str] = frozenset()
    since: float | None = None
    until: float | None = None
    direction: Direction | None = None

    @property
    def about_messages(self) -> bool:
        """Whether it asks for what only messages have."""
        return bool(self.commands)

    def fits(self, decoded: Decoded) -> bool:
        """Whether a message is to be shown, its time and direction aside."""
        return not self.commands or decoded.command in self.commands

    def lets_through(self, line: TraceLine, began: int) -> bool:
        """Whether a line is to be shown; `began` is the trace's beginning, in ns of the clock of its entries."""
        entry, decoded = line.entry, line.decoded
        seconds = (entry.time - began) / 1e9
        if (self.since is not None and seconds < self.since) or (self.until is not None and seconds > self.until):
            return False
        if self.direction is not None and not isinstance(entry, Note) and entry.direction != self.direction:
            return False
        return not self.about_messages or (decoded is not None and self.fits(decoded))


def decoded_lines(
    entries: Iterable[Entry], decode: Callable[[TraceRecord[Any], Decoded | None], Decoded]
) -> Iterator[TraceLine]:
    """Every entry with what it says; replies know their request and how long they took.

    decode: takes a record apart, given what the message says that it answers.
    """
    asked: dict[int, tuple[int, Decoded]] = {}
    for entry in entries:
        if not isinstance(entry, TraceRecord):
            yield TraceLine(entry, None)
            continue
        request = asked.get(entry.pair)
        decoded = decode(entry, request[1] if request else None)
        if not entry.pair:
            asked[entry.number] = entry.time, decoded
        yield TraceLine(entry, decoded, entry.time - request[0] if request else None)


def text(line: TraceLine, began: int) -> str:
    """One line of text: number, seconds since the beginning, direction, what."""
    entry = line.entry
    arrow = " " if isinstance(entry, Note | Header) else _ARROWS[entry.direction][bool(entry.channel)]
    return f"{entry.number:>7} {(entry.time - began) / 1e9:>13.6f} {arrow:2} {_what(line)}"


def as_json(line: TraceLine, began: int) -> dict[str, Any]:
    """The same for programs."""
    entry = line.entry
    found: dict[str, Any] = {"record": entry.number, "seconds": round((entry.time - began) / 1e9, 9)}
    if entry.channel:
        found["channel"] = entry.channel
    match entry:
        case Note():
            return {**found, "event": entry.event, **entry.details}
        case Header():
            return {**found, "event": "trace", **entry.about}
        case Raw():
            return {**found, "direction": entry.direction.label, "bytes": entry.data.hex()}
        case TraceRecord():
            return {**found, **_record_as_json(entry), **_answering(line)}


def _record_as_json(entry: TraceRecord[Any]) -> dict[str, Any]:
    found: dict[str, Any] = {"direction": entry.direction.label, "size": len(entry.message.encode())}
    if not entry.unchanged:
        found["view"] = _MARKS[entry.view]
    if entry.fds:
        found["fds"] = [{"kind": fd.kind.name.lower(), "size": fd.size, "inode": fd.inode} for fd in entry.fds]
    if entry.pair:
        found["request"] = entry.pair
    return found


def _answering(line: TraceLine) -> dict[str, Any]:
    assert line.decoded is not None
    latency = {"latency": round(line.latency / 1e9, 9)} if line.latency is not None else {}
    return {**latency, **line.decoded.json()}


def _what(line: TraceLine) -> str:
    entry = line.entry
    match entry:
        case Note():
            return "** " + " ".join([entry.event, *(f"{key}={value}" for key, value in entry.details.items())])
        case Header():
            dialect = f", dialect {entry.dialect}" if "dialect" in entry.about else ""
            return f"** trace of {entry.protocol} by {entry.about.get('program', '?')}{dialect}"
        case Raw():
            cut = "..." if len(entry.data) > _BYTES_SHOWN else ""
            return f"bytes[{len(entry.data)}] {entry.data[:_BYTES_SHOWN].hex()}{cut}"
        case TraceRecord():
            assert line.decoded is not None
            words = [line.decoded.mark, line.decoded.text()]
            if entry.fds:
                words.append(f"fds[{', '.join(map(_fd, entry.fds))}]")
            if line.latency is not None:
                words.append(f"[{line.latency / 1000:.1f} us, to record {entry.pair}]")
            if not entry.unchanged:
                words.append(f"<{_MARKS[entry.view]}>")
            return " ".join(filter(None, words))


def _word(value: Any) -> str:
    """A field's value: a table entry by entry, anything else as it is."""
    match value:
        case list():
            return f"[{', '.join(map(_word, value))}]"
        case dict():
            return " ".join(f"{name}={_word(each)}" for name, each in value.items())
        case _:
            return str(value)


def _fd(fd: FdInfo) -> str:
    return f"{fd.kind.name.lower()} {fd.size} bytes, inode {fd.inode}" if fd.size else fd.kind.name.lower()
