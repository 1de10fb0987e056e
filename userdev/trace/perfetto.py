"""A trace as a picture: Chrome's JSON trace event format, which ui.perfetto.dev and chrome://tracing open.

Lanes: those of the protocol (a request is as long as it waits for its reply), what the interposer did, and, from their
log files, QMP events and the console. Time is microseconds since the trace began.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from userdev.errors import UserError
from userdev.trace.format import Header, Note, Raw, TraceRecord
from userdev.trace.lines import TraceLine, answer_json

INTERPOSER, QMP, CONSOLE = "interposer", "QMP", "console"
FURTHER = 100
"""Between a lane and the next of the same name."""
PROCESS = 1
_STAMP = re.compile(r"^\[?(\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d[.,]?\d*(?:Z|[+-]\d\d:?\d\d)?|\d{9,}\.\d+)\]?[: ]*(.*)$")
"""A console line that says when it was written: ISO 8601, or seconds since 1970."""
_NUMBERED = ("index", "vector", "ring")
"""Details of a note that belong to its name in a picture."""
Event = dict[str, Any]


@dataclass(frozen=True)
class Lanes:
    """The lanes of a protocol's: their names, and which of them a line belongs to; "" where in none of them."""

    names: tuple[str, ...]
    of: Callable[[TraceLine], str]

    @property
    def all(self) -> tuple[str, ...]:
        """Those of the protocol, and those that every picture has."""
        return *self.names, INTERPOSER, QMP, CONSOLE


def trace_events(
    lanes: Lanes,
    header: Header,
    lines: Iterable[TraceLine],
    *,
    qmp_log: Path | None = None,
    console_log: Path | None = None,
) -> list[Event]:
    """All events, the names of the lanes first. Logs are placed by their own wall-clock times."""
    events: list[Event] = [_meta("process_name", 0, name=header.protocol)]
    numbers = {name: lane for lane, name in enumerate(lanes.all, 1)}
    for name, lane in numbers.items():
        events += _lane_named(lane, name, lane)
    placed = ((numbers[lanes.of(line) or INTERPOSER], line) for line in lines)
    events += _apart(list(_wire(placed, header.time)), lanes.all)
    epoch = header.realtime
    if qmp_log is not None:
        events += _qmp(numbers[QMP], _lines(qmp_log), epoch)
    if console_log is not None:
        events += _console(numbers[CONSOLE], _lines(console_log), epoch)
    return events


def _wire(lines: Iterable[tuple[int, TraceLine]], began: int) -> Iterator[Event]:
    for lane, line in lines:
        entry, at = line.entry, (line.entry.time - began) / 1000
        match entry:
            case Note():
                about = [str(entry.details[name]) for name in _NUMBERED if name in entry.details]
                yield _instant(lane, " ".join([entry.event, *about]), at, entry.details)
            case Raw():
                yield _instant(lane, f"{len(entry.data)} bytes", at, {"bytes": entry.data[:64].hex()})
            case TraceRecord():
                assert line.decoded is not None
                decoded = line.decoded
                if decoded.kind in ("reply", "error") and entry.pair:
                    continue  # it is the end of its request's bar
                yield {
                    "ph": "X",
                    "pid": PROCESS,
                    "tid": lane,
                    "ts": at,
                    "dur": (line.answer.latency or 0) / 1000 if line.answer is not None else 0,
                    "name": decoded.title,
                    "cat": decoded.kind,
                    "args": {**decoded.json(), "record": entry.number, **_answered(line)},
                }


def _answered(line: TraceLine) -> Event:
    """What a request was answered: the value that was read is the bar's as one that is written is."""
    if line.answer is None:
        return {}
    answer = answer_json(line.answer)
    return {"answer": answer, **({"value": answer["value"]} if "value" in answer else {})}


def _apart(events: list[Event], names: tuple[str, ...]) -> list[Event]:
    """What overlaps goes into further lanes of the same name, for the bars of one lane may not cross."""
    ends: dict[int, list[float]] = {}
    for event in events:
        if event["ph"] == "X":
            lane, begins = event["tid"], event["ts"]
            tracks = ends.setdefault(lane, [])
            track = next((number for number, end in enumerate(tracks) if end <= begins), len(tracks))
            tracks[track : track + 1] = [begins + event["dur"]]
            event["tid"] = lane + track * FURTHER
    further = (
        _lane_named(lane + track * FURTHER, names[lane - 1], lane)
        for lane, tracks in sorted(ends.items())
        for track in range(1, len(tracks))
    )
    return [*(name for names in further for name in names), *events]


def _lane_named(lane: int, name: str, place: int) -> list[Event]:
    return [_meta("thread_name", lane, name=name), _meta("thread_sort_index", lane, sort_index=place)]


def _qmp(lane: int, lines: Iterable[str], epoch: int) -> Iterator[Event]:
    """Events of a QMP log: each line that holds a JSON object with `event` and `timestamp`, whatever is before it."""
    for line in lines:
        start = line.find("{")
        if start < 0:
            continue
        try:
            message = json.loads(line[start:])
            stamp = message["timestamp"]
            when = stamp["seconds"] * 1e6 + stamp["microseconds"] - epoch / 1000
            yield _instant(lane, message["event"], when, message.get("data", {}))
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            continue


def _console(lane: int, lines: Iterable[str], epoch: int) -> Iterator[Event]:
    for line in lines:
        if (found := _STAMP.match(line)) is None:
            continue
        stamp, text = found.groups()
        try:
            seconds = float(stamp) if "-" not in stamp else datetime.fromisoformat(stamp.replace(",", ".")).timestamp()
        except (ValueError, OverflowError):
            continue
        yield _instant(lane, text or " ", seconds * 1e6 - epoch / 1000, {})


def _instant(lane: int, name: str, at: float, args: dict[str, Any]) -> Event:
    return {"ph": "i", "s": "t", "pid": PROCESS, "tid": lane, "ts": at, "name": name, "args": args}


def _meta(what: str, lane: int, **args: object) -> Event:
    return {"ph": "M", "pid": PROCESS, "tid": lane, "name": what, "args": args}


def _lines(path: Path) -> list[str]:
    try:
        lines = path.read_bytes().decode(errors="replace").split("\n")  # a guest says CR, and what else ends lines
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    return [line.removesuffix("\r") for line in lines]
