"""A trace as a picture: Chrome's JSON trace event format, which ui.perfetto.dev and chrome://tracing open.

Lanes: the wire in both directions (a request is as long as it waits for its reply), DMA, interrupts, what the
interposer did, and, from their log files, QMP events and the console. Time is microseconds since the trace began.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from userdev.errors import UserError
from userdev.relay.direction import Direction
from vfio_user.interposer.trace import Header, MessageRecord, Note, Raw
from vfio_user.interposer.trace.show import TraceLine

LANES = ("client to server", "server to client", "DMA", "interrupts", "interposer", "QMP", "console")
TO_SERVER, TO_CLIENT, DMA, INTERRUPTS, INTERPOSER, QMP, CONSOLE = range(1, len(LANES) + 1)
FURTHER = 100
"""Between a lane and the next of the same name."""
PROCESS = 1
_DMA_COMMANDS = frozenset({"DMA_READ", "DMA_WRITE", "DMA_MAP", "DMA_UNMAP", "DIRTY_PAGES"})
_INTERRUPT_COMMANDS = frozenset({"DEVICE_SET_IRQS", "DEVICE_GET_IRQ_INFO", "VM_INTERRUPT"})
_STAMP = re.compile(r"^\[?(\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d[.,]?\d*(?:Z|[+-]\d\d:?\d\d)?|\d{9,}\.\d+)\]?[: ]*(.*)$")
"""A console line that says when it was written: ISO 8601, or seconds since 1970."""
Event = dict[str, Any]


def trace_events(
    header: Header, lines: Iterable[TraceLine], *, qmp_log: Path | None = None, console_log: Path | None = None
) -> list[Event]:
    """All events, the names of the lanes first. Logs are placed by their own wall-clock times."""
    events: list[Event] = [_meta("process_name", 0, name="vfio-user")]
    for lane, name in enumerate(LANES, 1):
        events += _lane_named(lane, name, lane)
    events += _apart(list(_wire(list(lines), header.time)))
    epoch = header.realtime
    if qmp_log is not None:
        events += _qmp(_lines(qmp_log), epoch)
    if console_log is not None:
        events += _console(_lines(console_log), epoch)
    return events


def _wire(lines: list[TraceLine], began: int) -> Iterator[Event]:
    took = {line.entry.pair: line.latency for line in lines if isinstance(line.entry, MessageRecord) and line.latency}
    for line in lines:
        entry, at = line.entry, (line.entry.time - began) / 1000
        match entry:
            case Note(event="interrupt"):
                yield _instant(INTERRUPTS, f"interrupt {entry.details.get('vector', '')}", at, entry.details)
            case Note():
                yield _instant(INTERPOSER, entry.event, at, entry.details)
            case Raw():
                yield _instant(_side(entry.direction), f"{len(entry.data)} bytes", at, {"bytes": entry.data[:64].hex()})
            case MessageRecord():
                assert line.decoded is not None
                decoded = line.decoded
                if decoded.kind in ("reply", "error") and entry.pair:
                    continue  # it is the end of its request's bar
                name = " ".join(filter(None, (decoded.command, decoded.register)))
                yield {
                    "ph": "X",
                    "pid": PROCESS,
                    "tid": _lane(decoded.command, entry.direction),
                    "ts": at,
                    "dur": took.get(entry.number, 0) / 1000,
                    "name": name,
                    "cat": decoded.kind,
                    "args": {**decoded.json(), "record": entry.number},
                }


def _apart(events: list[Event]) -> list[Event]:
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
        _lane_named(lane + track * FURTHER, LANES[lane - 1], lane)
        for lane, tracks in sorted(ends.items())
        for track in range(1, len(tracks))
    )
    return [*(name for names in further for name in names), *events]


def _lane_named(lane: int, name: str, place: int) -> list[Event]:
    return [_meta("thread_name", lane, name=name), _meta("thread_sort_index", lane, sort_index=place)]


def _lane(command: str, direction: Direction) -> int:
    if command in _DMA_COMMANDS:
        return DMA
    return INTERRUPTS if command in _INTERRUPT_COMMANDS else _side(direction)


def _side(direction: Direction) -> int:
    return TO_SERVER if direction is Direction.TO_SERVER else TO_CLIENT


def _qmp(lines: Iterable[str], epoch: int) -> Iterator[Event]:
    """Events of a QMP log: each line that holds a JSON object with `event` and `timestamp`, whatever is before it."""
    for line in lines:
        start = line.find("{")
        if start < 0:
            continue
        try:
            message = json.loads(line[start:])
            stamp = message["timestamp"]
            when = stamp["seconds"] * 1e6 + stamp["microseconds"] - epoch / 1000
            yield _instant(QMP, message["event"], when, message.get("data", {}))
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            continue


def _console(lines: Iterable[str], epoch: int) -> Iterator[Event]:
    for line in lines:
        if (found := _STAMP.match(line)) is None:
            continue
        stamp, text = found.groups()
        try:
            seconds = float(stamp) if "-" not in stamp else datetime.fromisoformat(stamp.replace(",", ".")).timestamp()
        except (ValueError, OverflowError):
            continue
        yield _instant(CONSOLE, text or " ", seconds * 1e6 - epoch / 1000, {})


def _instant(lane: int, name: str, at: float, args: dict[str, Any]) -> Event:
    return {"ph": "i", "s": "t", "pid": PROCESS, "tid": lane, "ts": at, "name": name, "args": args}


def _meta(what: str, lane: int, **args: object) -> Event:
    return {"ph": "M", "pid": PROCESS, "tid": lane, "name": what, "args": args}


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(errors="replace").splitlines()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
