"""A part of a trace as a trace of its own: its records as they were written, with the numbers that they have there."""

from __future__ import annotations

import struct
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from userdev.counted import counted
from userdev.errors import UserError, about, meant
from userdev.trace.format import MAGIC, PREFIX, Note, RecordKind, TracedProtocol, encode_json
from userdev.trace.kept import keep_aside
from userdev.trace.reader import TraceReader
from userdev.trace.view import opened

FIRST = 2
"""The number of a trace's first record behind its header."""
PART = "part"
"""The first note of a part: it is `of` the whole trace's name, its `records` from the first to the last of that."""
EXTRACT = "extract"
"""The note of a trace of which requests were left out to replay the rest: `compared` has numbers of its records."""
MARK = "mark"
"""The note that a controller has written, with a `text`."""
_PAIR = struct.Struct("<I")
_PAIR_AT = PREFIX.size - _PAIR.size
_SHOWN = 8
"""Marks that are told to who names none of them."""


@dataclass(frozen=True)
class Part:
    """What of a trace is wanted, all of it at once: records and seconds from one to another, what is between marks."""

    first: int = FIRST
    last: int | None = None
    since: float | None = None
    until: float | None = None
    from_mark: str = ""
    to_mark: str = ""


@dataclass(frozen=True)
class CutPart:
    """What was written: the records of the whole trace from `first` to `last`, both included."""

    first: int
    last: int
    began: float
    """Seconds of the whole trace; the part tells the same."""
    ended: float
    truncated: str = ""
    """Where and why the whole trace ends early, where the part goes as far."""

    @property
    def records(self) -> range:
        """Their numbers in the whole trace."""
        return range(self.first, self.last + 1)


def cut(path: Path, output: Path, part: Part, *protocols: TracedProtocol[Any]) -> CutPart:
    """Write a part of a trace, which is of one of these protocols, to a file of its own.

    Its header is that of the whole trace, so that times stay what they are; a note behind it says what it is a part of.
    A reply whose request is not in it answers nothing. A trace of a session that is at `output` is kept aside.

    Raises:
        UserError: no trace can be read there, or it has no such part or mark.
        OSError: it cannot be written.
    """
    with opened(path, *protocols) as reader:
        index = _Index.of(reader)
        found = index.find(part, path)
    keep_aside(output)
    with opened(path, *protocols) as reader, about(output), open(output, "wb") as stream:
        _write(stream, reader, found, path.name, index.extract)
    return found


@dataclass
class _Index:
    """What says where a part begins and ends."""

    began: int
    truncated: str = ""
    times: Sequence[int] = field(default_factory=lambda: array("Q"))
    """Of each record, from `FIRST` on; ns."""
    marks: list[tuple[int, str]] = field(default_factory=list)
    """Numbers and texts."""
    extract: Note | None = None

    @classmethod
    def of(cls, reader: TraceReader[Any]) -> _Index:
        index, times = cls(reader.header.time), array("Q")
        for record in reader.records():
            _, kind, _, _, _, time, _ = PREFIX.unpack_from(record)
            times.append(time)
            if kind == RecordKind.NOTE:
                index._note(reader.decoded(record))
        index.times, index.truncated = times, reader.truncated
        return index

    def _note(self, note: object) -> None:
        if not isinstance(note, Note):  # it is malformed: readers end there
            return
        if note.event == MARK:
            self.marks.append((note.number, str(note.details.get("text", ""))))
        elif note.event == EXTRACT:
            self.extract = note

    def find(self, part: Part, path: Path) -> CutPart:
        """Where the part is.

        Raises:
            UserError: it is nowhere.
        """
        seconds = [(time - self.began) / 1e9 for time in self.times]
        if not seconds:
            raise UserError(f"{path} has no record behind its header")
        end = FIRST + len(seconds)
        first, last = max(part.first, FIRST), end - 1 if part.last is None else min(part.last, end - 1)
        if (since := part.since) is not None:
            first = max(first, next((n for n, at in enumerate(seconds, FIRST) if at >= since), end))
        if (until := part.until) is not None:
            last = min(last, max((n for n, at in enumerate(seconds, FIRST) if at <= until), default=1))
        if part.from_mark:
            first = max(first, self._mark(part.from_mark, FIRST, path))
        if part.to_mark:
            last = min(last, self._mark(part.to_mark, first, path))
        if first > last:
            hint = f"it has records {FIRST} to {end - 1}, of seconds {min(seconds):.6f} to {max(seconds):.6f}"
            raise UserError(f"no record of {path} is all that was asked for", hint=hint)
        truncated = self.truncated if last == end - 1 else ""
        return CutPart(first, last, seconds[first - FIRST], seconds[last - FIRST], truncated)

    def _mark(self, text: str, first: int, path: Path) -> int:
        """The number of the first such mark from a record on."""
        for number, known in self.marks:
            if known == text and number >= first:
                return number
        texts = list(dict.fromkeys(known for _, known in self.marks))
        if text in texts:
            raise UserError(f"{path}: the mark {text!r} is before where the part begins")
        if not texts:
            hint = "`vfio-user control SOCKET mark text=...` has the interposer write one as it records"
            raise UserError(f"{path} has no marks", hint=hint)
        more = f" and {counted(len(texts) - _SHOWN, 'other')}" if len(texts) > _SHOWN else ""
        there = ", ".join(map(repr, texts[:_SHOWN]))
        raise UserError(f"{path} has no mark {text!r}", hint=f"{meant(text, texts)}there are: {there}{more}")


def _write(stream: BinaryIO, reader: TraceReader[Any], found: CutPart, name: str, extract: Note | None) -> None:
    header = reader.header
    began = header.time + round(found.began * 1e9)
    note = {"event": PART, "of": name, "records": f"{found.first}-{found.last}"}
    stream.write(MAGIC + encode_json(RecordKind.HEADER, header.time, header.about))
    stream.write(encode_json(RecordKind.NOTE, began, note))
    moved = found.first - FIRST - 1
    if extract is not None and extract.number not in found.records:  # it is about all of what is there
        moved -= 1
        stream.write(encode_json(RecordKind.NOTE, began, _extract(extract, found, moved)))
    for record in reader.records():
        if reader.number > found.last:
            return
        if extract is not None and reader.number == extract.number in found.records:
            stream.write(encode_json(RecordKind.NOTE, extract.time, _extract(extract, found, moved)))
        elif reader.number >= found.first:
            stream.write(_moved(record, moved, found))


def _moved(record: bytes, moved: int, found: CutPart) -> bytes:
    """A record, where it is a reply with the number that its request has in the part."""
    (pair,) = _PAIR.unpack_from(record, _PAIR_AT)
    if not pair:
        return record
    here = pair - moved if pair in found.records else 0
    return record[:_PAIR_AT] + _PAIR.pack(here) + record[PREFIX.size :]


def _extract(note: Note, found: CutPart, moved: int) -> dict[str, Any]:
    compared = note.details.get("compared")
    if isinstance(compared, list):
        compared = [each - moved for each in compared if each in found.records]
    return {"event": EXTRACT, **note.details, "compared": compared}
