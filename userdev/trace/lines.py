"""A trace for people: what each entry says, a line for each thing that happened."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from userdev.descriptors import FdInfo
from userdev.relay.direction import Direction
from userdev.trace.format import Header, Note, Raw, TraceRecord, View

PAYLOAD = "payload."
"""Before the name of a field that is outside too: `flags` is the header's, `payload.flags` the structure's."""
DATA = "data"
"""What follows a message's own structure."""
DATA_SHOWN = 64
"""Bytes of data printed before it is cut."""
_BYTES_SHOWN = 32
MOST_HELD = 1024
"""Lines that a request's may be ahead of its reply's, for it to say what it was answered."""
MOST_ASKED = 1 << 14
"""Requests whose reply is looked for: of those that nobody answers there may be any number."""
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
    detail: str = ""
    """What it is about, in a word or two: `MSIX 0-3`, `ring 1`."""

    @property
    def mark(self) -> str:
        """The beginning of its line: by what the protocol tells messages apart, if by anything."""
        return ""

    @property
    def title(self) -> str:
        """The name of it in a picture: its command, and what it is about."""
        return f"{self.command} {self.detail}" if self.detail else self.command

    @property
    def error(self) -> str:
        """What an error reply says instead of what was asked for."""
        return str(self.fields.get("errno", self.fields.get("result", "")))

    @property
    def value(self) -> int | None:
        """What was written or read, where that is one number."""
        return None

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
        words += [f"{name}={word(value)}" for name, value in self.fields.items()]
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


@dataclass
class TraceLine:
    """One entry with what it says; `decoded` only for messages, `latency` (ns) only for replies."""

    entry: Entry
    decoded: Decoded | None
    latency: int | None = None
    answer: TraceLine | None = None
    """Of a request: the reply, which comes later."""


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
    """Every entry with what it says; replies know their request and how long they took, and requests their reply.

    decode: takes a record apart, given what the message says that it answers.
    """
    asked: dict[int, TraceLine] = {}
    held: deque[TraceLine] = deque()
    """Lines behind a request whose reply has not come, in order: they wait for it, but not for ever."""
    for entry in entries:
        held.append(_decoded(entry, decode, asked) if isinstance(entry, TraceRecord) else TraceLine(entry, None))
        while held and (len(held) > MOST_HELD or not _waits(held[0])):
            yield held.popleft()
    yield from held


def _decoded(
    entry: TraceRecord[Any], decode: Callable[[TraceRecord[Any], Decoded | None], Decoded], asked: dict[int, TraceLine]
) -> TraceLine:
    """The line of a message; its request, where it has one, is told of it."""
    request = asked.get(entry.pair)
    if request is None:
        line = TraceLine(entry, decode(entry, None))
        if not entry.pair:
            asked[entry.number] = line
            if len(asked) > MOST_ASKED:
                del asked[next(iter(asked))]
        return line
    line = TraceLine(entry, decode(entry, request.decoded), entry.time - request.entry.time)
    request.answer = line
    if entry.view != View.RECEIVED:
        del asked[entry.pair]  # else it comes again, as it was sent on
    return line


def _waits(line: TraceLine) -> bool:
    """Whether a line is a request that may yet be answered, or whose answer was changed and has not gone on yet."""
    entry, decoded, answer = line.entry, line.decoded, line.answer
    is_request = isinstance(entry, TraceRecord) and not entry.pair and entry.view is not View.RECEIVED
    if not is_request or decoded is None or decoded.kind != "request":
        return False
    own = entry.view is View.SENT
    return answer is None or (not own and answer.entry.view is View.RECEIVED)


def text(line: TraceLine, began: int) -> str:
    """One line of text: number, seconds since the beginning, direction, what."""
    entry = line.entry
    arrow = " " if isinstance(entry, Note | Header) else _ARROWS[entry.direction][bool(entry.channel)]
    what = _what(line).replace("\n", "\\n")  # what peers and marks say makes no line of its own
    return f"{entry.number:>7} {(entry.time - began) / 1e9:>13.6f} {arrow:2} {what}"


def as_json(line: TraceLine, began: int) -> dict[str, Any]:
    """The same for programs."""
    entry = line.entry
    found: dict[str, Any] = {"record": entry.number, "seconds": round((entry.time - began) / 1e9, 9)}
    if entry.channel:
        found["channel"] = entry.channel
    match entry:
        case Note():
            return _with(found | {"event": entry.event}, entry.details)
        case Header():
            return _with(found | {"event": "trace"}, entry.about)
        case Raw():
            return {**found, "direction": entry.direction.label, "bytes": entry.data.hex()}
        case TraceRecord():
            return _with(found | _record_as_json(entry), _answering(line))


def _with(line: dict[str, Any], said: Mapping[str, Any]) -> dict[str, Any]:
    """A line with what its entry says, which keeps none of what the line has of every entry from being told."""
    return line | {f"{PAYLOAD}{name}" if name in line else name: value for name, value in said.items()}


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
    return {**latency, **line.decoded.json(), **({"answer": answer_json(line.answer)} if line.answer else {})}


def answer_json(answer: TraceLine) -> dict[str, Any]:
    """What a request was answered, for programs."""
    assert answer.decoded is not None
    assert answer.latency is not None
    found: dict[str, Any] = {"record": answer.entry.number, "latency": round(answer.latency / 1e9, 9)}
    if answer.decoded.kind == "error":
        found["error"] = answer.decoded.error
    elif answer.decoded.value is not None:
        found["value"] = answer.decoded.value
    return found


def said_of(line: TraceLine) -> str:
    """What a message is about, with its value and its answer, as far as its own bytes do not say it."""
    decoded = line.decoded
    if decoded is None:
        return ""
    about = decoded.title.removeprefix(decoded.command).lstrip()
    value = f"= {decoded.value:#x}" if decoded.value is not None else ""
    answer = _answered(line.answer) if line.answer is not None else ""
    return " ".join(filter(None, (about, value, answer))) if about or answer else ""


def _answered(answer: TraceLine) -> str:
    """What a request was answered, in a word: the error, or what was read."""
    decoded = answer.decoded
    assert decoded is not None
    if decoded.kind == "error":
        return f"-> {decoded.error}"
    return f"-> {decoded.value:#x}" if decoded.value is not None else ""


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
            if line.answer is not None:
                words.append(_answered(line.answer))
            if line.latency is not None:
                words.append(f"[{line.latency / 1000:.1f} us, to record {entry.pair}]")
            if not entry.unchanged:
                words.append(f"<{_MARKS[entry.view]}>")
            return " ".join(filter(None, words))


def word(value: Any) -> str:
    """A field's value: a table entry by entry, anything else as it is."""
    match value:
        case list():
            return f"[{', '.join(map(word, value))}]"
        case dict():
            return " ".join(f"{name}={word(each)}" for name, each in value.items())
        case _:
            return str(value)


def _fd(fd: FdInfo) -> str:
    return f"{fd.kind.name.lower()} {fd.size} bytes, inode {fd.inode}" if fd.size else fd.kind.name.lower()
