"""A trace for people: selected, decoded, a line for each thing that happened."""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from userdev.descriptors import FdInfo
from userdev.errors import UserError
from userdev.relay.direction import Direction
from vfio_user.interposer.trace import Entry, Header, MessageRecord, Note, Raw, View
from vfio_user.interposer.trace.decode import Decoded, describe
from vfio_user.interposer.trace.registers import RegisterMap, is_named
from vfio_user.wire import Dialect
from vfio_user.wire.constants import RegionIndex

_MARKS = {View.RECEIVED: "only received", View.SENT: "only sent"}
_BYTES_SHOWN = 32


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
    region: int | None = None
    offset: tuple[int, int] | None = None
    """First and last offset of an access."""
    register: str = ""
    since: float | None = None
    until: float | None = None
    direction: Direction | None = None

    @property
    def about_messages(self) -> bool:
        """Whether it asks for what only messages have: commands, a register, a region, an offset."""
        return bool(self.commands or self.register) or self.region is not None or self.offset is not None

    def lets_through(self, line: TraceLine, began: int) -> bool:
        """Whether a line is to be shown; `began` is the trace's beginning, in ns of the clock of its entries."""
        entry, decoded = line.entry, line.decoded
        seconds = (entry.time - began) / 1e9
        if (self.since is not None and seconds < self.since) or (self.until is not None and seconds > self.until):
            return False
        if self.direction is not None and not isinstance(entry, Note) and entry.direction != self.direction:
            return False
        return not self.about_messages or (decoded is not None and self._matches(decoded))

    def _matches(self, decoded: Decoded) -> bool:
        if self.commands and decoded.command not in self.commands:
            return False
        if self.region is not None and decoded.region != self.region:
            return False
        if self.register and not is_named(decoded.register, self.register):
            return False
        if self.offset is None:
            return True
        if decoded.offset is None:
            return False
        first, last = self.offset
        return decoded.offset <= last and decoded.offset + max(1, decoded.size or 1) > first


def decode_entries(entries: Iterable[Entry], dialect: Dialect, registers: RegisterMap) -> Iterator[TraceLine]:
    """Every entry with what it says; replies know their request and how long they took."""
    asked: dict[int, tuple[int, Decoded]] = {}
    for entry in entries:
        if not isinstance(entry, MessageRecord):
            yield TraceLine(entry, None)
            continue
        request = asked.get(entry.pair)
        decoded = describe(dialect, entry.message, registers, request[1] if request else None)
        if not entry.message.is_reply:
            asked[entry.number] = entry.time, decoded
        yield TraceLine(entry, decoded, entry.time - request[0] if request else None)


def text(line: TraceLine, began: int) -> str:
    """One line of text: number, seconds since the beginning, direction, what."""
    entry = line.entry
    what = _what(line)
    arrow = " " if isinstance(entry, Note | Header) else "->" if entry.direction is Direction.TO_SERVER else "<-"
    return f"{entry.number:>7} {(entry.time - began) / 1e9:>13.6f} {arrow:2} {what}"


def as_json(line: TraceLine, began: int) -> dict[str, Any]:
    """The same for programs."""
    entry = line.entry
    found: dict[str, Any] = {"record": entry.number, "seconds": round((entry.time - began) / 1e9, 9)}
    match entry:
        case Note():
            return {**found, "event": entry.event, **entry.details}
        case Header():
            return {**found, "event": "trace", **entry.about}
        case Raw():
            return {**found, "direction": entry.direction.label, "bytes": entry.data.hex()}
        case MessageRecord():
            found |= {"direction": entry.direction.label, "id": entry.message.id, "size": entry.message.size}
            if not entry.unchanged:
                found["view"] = _MARKS[entry.view]
            if entry.fds:
                found["fds"] = [{"kind": fd.kind.name.lower(), "size": fd.size, "inode": fd.inode} for fd in entry.fds]
            if entry.pair:
                found["request"] = entry.pair
            if line.latency is not None:
                found["latency"] = round(line.latency / 1e9, 9)
            assert line.decoded is not None
            return {**found, **line.decoded.json()}


def parse_region(text: str) -> int:
    """`BAR0`, `CONFIG`, or a number.

    Raises:
        UserError: it is neither.
    """
    try:
        return int(RegionIndex[text.upper()]) if text.upper() in RegionIndex.__members__ else int(text, 0)
    except ValueError:
        raise UserError(f"{reprlib.repr(text)} is no region", hint=", ".join(RegionIndex.__members__)) from None


def parse_offsets(text: str) -> tuple[int, int]:
    """`0x10`, or `0x10-0x1f`.

    Raises:
        UserError: it is neither.
    """
    first, _, last = text.partition("-")
    try:
        return int(first, 0), int(last or first, 0)
    except ValueError:
        raise UserError(f"{text!r} is no offset", hint="0x10, or 0x10-0x1f for a range") from None


def _what(line: TraceLine) -> str:
    entry = line.entry
    match entry:
        case Note():
            return "** " + " ".join([entry.event, *(f"{key}={value}" for key, value in entry.details.items())])
        case Header():
            return f"** trace by {entry.about.get('program', '?')}, dialect {entry.dialect}"
        case Raw():
            cut = "..." if len(entry.data) > _BYTES_SHOWN else ""
            return f"bytes[{len(entry.data)}] {entry.data[:_BYTES_SHOWN].hex()}{cut}"
        case MessageRecord():
            assert line.decoded is not None
            words = [f"#{entry.message.id:<5} {line.decoded.text()}"]
            if entry.fds:
                words.append(f"fds[{', '.join(map(_fd, entry.fds))}]")
            if line.latency is not None:
                words.append(f"[{line.latency / 1000:.1f} us, to record {entry.pair}]")
            if not entry.unchanged:
                words.append(f"<{_MARKS[entry.view]}>")
            return " ".join(words)


def _fd(fd: FdInfo) -> str:
    return f"{fd.kind.name.lower()} {fd.size} bytes, inode {fd.inode}" if fd.size else fd.kind.name.lower()
