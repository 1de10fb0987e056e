"""Logs with times on the axis: QMP, consoles, the kernel's own log of a guest."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from vfio_user.page.axis import Axis, Kind, Row
from vfio_user.page.names import COLLECTED
from vfio_user.page.texts import json_of, lines_of, seconds_of

_CONSOLE = re.compile(r"^(\d{9,}\.\d+) (.*)$")
_KERNEL = re.compile(r"^\[ *(\d+\.\d+)\](?:\[[^]]*\])? (.*)$")
SERVER_LINE = re.compile(r"^((?:[01]\d|2[0-3]):[0-5]\d:[0-5]\d\.\d{3}) (.*)$")
"""A line of a server of ours with its time of a day (`userdev.serving.program.log_to_stderr`)."""
_BROKEN = re.compile(r"Kernel panic - not syncing|Oops: |kernel BUG at |BUG: (?!workqueue lockup)|Call Trace:")
_QMP = "QMP"
_DAY, _HALF_A_DAY = timedelta(days=1), timedelta(hours=12)


def put_qmp(axis: Axis, path: Path) -> None:
    """Put a log of QMP on the axis: commands with their answers, and events."""
    row = Row(_QMP, path.name.removesuffix(".qmp.log"))
    asked: list[tuple[int, dict[str, Any]]] = []
    for when, direction, body in _messages(path):
        if direction == "->":
            asked.append((when, body))
        elif "event" in body:
            axis.tell(row, when, str(body["event"]), body, Kind.EVENT)
        elif asked:
            began, command = asked.pop(0)
            _command(axis, row, began, command, body, when)
    for began, command in asked:
        _command(axis, row, began, command, {"answer": "none came"}, axis.ended)


def _command(axis: Axis, row: Row, began: int, command: dict[str, Any], answer: dict[str, Any], ended: int) -> None:
    refused = "error" in answer
    kind = Kind.REFUSED if refused else Kind.MESSAGE if "return" in answer else Kind.WRONG
    name = str(command.get("execute", "?"))
    title = name + (f": {_described(answer['error'])}" if refused else "" if "return" in answer else ", never answered")
    axis.tell(row, began, title, {**command, **answer}, kind, lasted=ended - began, short=name)


def _described(error: Any) -> str:
    return str(error.get("desc", error)) if isinstance(error, dict) else str(error)


def _messages(path: Path) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """Moment, direction and body of each line that has these."""
    for line in lines_of(path):
        try:
            moment, direction, rest = line.split(" ", 2)
            body = json_of(rest)
            when = _nanoseconds(datetime.fromisoformat(moment).timestamp())
        except (ValueError, OverflowError):
            continue
        if when is not None and isinstance(body, dict):
            yield when, direction, body


def put_console(axis: Axis, path: Path) -> None:
    """Put a console's log with times on the axis, a line each."""
    row = Row("console", path.name.removesuffix(".console.timed.log"))
    for line in lines_of(path):
        found = _CONSOLE.match(line)
        if found and found[2].strip() and (when := _nanoseconds(found[1])) is not None:
            axis.tell(row, when, found[2], {}, _of(found[2]))


def put_kernel_log(axis: Axis, path: Path, since: int) -> None:
    """Put a guest's kernel log on the axis, from a moment on: a guest may come from a checkpoint, made before.

    Only where it says when it was taken (`COLLECTED`): its times are those of the guest's clock.
    """
    row = Row("kernel log", path.name.removesuffix(".dmesg.log"))
    matches = filter(None, map(_KERNEL.match, lines_of(path)))
    lines = [(up, found[2]) for found in matches if (up := _nanoseconds(found[1])) is not None]
    marks = [(up, taken) for up, text in lines if COLLECTED in text if (taken := _nanoseconds(text.split()[-1]))]
    if not marks:
        return
    up_then, taken = marks[-1]
    for up, text in lines:
        when = taken - up_then + up
        if when >= since and COLLECTED not in text:
            axis.tell(row, when, text, {}, _of(text))


def put_server_log(axis: Axis, path: Path, since: int, until: int) -> None:
    """Put on the axis what a server of ours logged: its times are of a day, each as near as can be to the one before.

    Only where they fit between those moments: it may be another's log.
    """
    row = Row("server log", path.name.removesuffix(".server.log"))
    now = datetime.fromtimestamp(since / 1e9)
    for found in filter(None, map(SERVER_LINE.match, lines_of(path))):
        now = moment_near(found[1], now)
        when = round(now.timestamp() * 1e9)
        if since <= when <= until:
            axis.tell(row, when, found[2], {}, Kind.SAID)


def moment_near(clock: str, other: datetime) -> datetime:
    """The moment at which a clock says HH:MM:SS.mmm that is nearest to another one."""
    return other + (datetime.strptime(clock, "%H:%M:%S.%f") - other + _HALF_A_DAY) % _DAY - _HALF_A_DAY


def _of(text: str) -> Kind:
    return Kind.WRONG if _BROKEN.search(text) else Kind.SAID


def _nanoseconds(said: object) -> int | None:
    """Nanoseconds of seconds; None where it is none, or beyond what a clock says."""
    seconds = seconds_of(said)
    return None if seconds is None else round(seconds * 1e9)
