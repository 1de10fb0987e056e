"""Logs with times on the axis: QMP, consoles, the kernel's own log of a guest."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from vfio_user.page.axis import Axis, Kind, Row
from vfio_user.page.names import COLLECTED
from vfio_user.page.texts import json_of, text_of

_CONSOLE = re.compile(r"^(\d{9,}\.\d+) (.*)$")
_KERNEL = re.compile(r"^\[ *(\d+\.\d+)\](?:\[[^]]*\])? (.*)$")
_SERVER = re.compile(r"^((?:[01]\d|2[0-3]):[0-5]\d:[0-5]\d\.\d{3}) (.*)$")
_BROKEN = re.compile(r"Kernel panic - not syncing|Oops: |kernel BUG at |BUG: (?!workqueue lockup)|Call Trace:")
_QMP = "QMP"


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
    for line in _lines(path):
        try:
            moment, direction, rest = line.split(" ", 2)
            body = json_of(rest)
            if isinstance(body, dict):
                yield int(datetime.fromisoformat(moment).timestamp() * 1e9), direction, body
        except (ValueError, OverflowError):
            continue


def put_console(axis: Axis, path: Path) -> None:
    """Put a console's log with times on the axis, a line each."""
    row = Row("console", path.name.removesuffix(".console.timed.log"))
    for line in _lines(path):
        if (found := _CONSOLE.match(line)) and found[2].strip():
            axis.tell(row, _nanoseconds(found[1]), found[2], {}, _of(found[2]))


def put_kernel_log(axis: Axis, path: Path, since: int) -> None:
    """Put a guest's kernel log on the axis, from a moment on: a guest may come from a checkpoint, made before.

    Only where it says when it was taken (`COLLECTED`): its times are those of the guest's clock.
    """
    row = Row("kernel log", path.name.removesuffix(".dmesg.log"))
    lines = [found for line in _lines(path) if (found := _KERNEL.match(line))]
    marks = [found for found in lines if COLLECTED in found[2]]
    if not marks:
        return
    try:
        zero = _nanoseconds(marks[-1][2].rpartition(" ")[2]) - _nanoseconds(marks[-1][1])
    except ValueError:
        return
    for found in lines:
        when = zero + _nanoseconds(found[1])
        if when >= since and COLLECTED not in found[2]:
            axis.tell(row, when, found[2], {}, _of(found[2]))


def put_server_log(axis: Axis, path: Path, since: int, until: int) -> None:
    """Put on the axis what a server of ours logged: its times are of a day, and so are taken only where they fit."""
    row = Row("server log", path.name.removesuffix(".server.log"))
    day = datetime.fromtimestamp(since / 1e9)
    for found in filter(None, map(_SERVER.match, _lines(path))):
        clock = datetime.strptime(found[1], "%H:%M:%S.%f")
        moment = day.replace(hour=clock.hour, minute=clock.minute, second=clock.second, microsecond=clock.microsecond)
        when = round(moment.timestamp() * 1e9)
        if since <= when <= until:
            axis.tell(row, when, found[2], {}, Kind.SAID)


def _of(text: str) -> Kind:
    return Kind.WRONG if _BROKEN.search(text) else Kind.SAID


def _nanoseconds(seconds: str) -> int:
    """Nanoseconds of a decimal number of seconds.

    Raises:
        ValueError: it is none, or beyond what a clock says.
    """
    found = round(float(seconds) * 1e9)
    if not 0 <= found < 1 << 62:
        raise ValueError(seconds)
    return found


def _lines(path: Path) -> list[str]:
    return text_of(path).splitlines()
