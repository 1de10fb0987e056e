"""What a run wrote down of itself, on the axis: steps, programs, migrations, a soak's events."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vfio_user.page.axis import Axis, Kind, Row
from vfio_user.page.names import GUEST_COMMANDS, MIGRATIONS, PROCESSES, SOAK, TIMELINE
from vfio_user.page.texts import json_of, lines_of, seconds_of, text_of


def put_steps(axis: Axis, folder: Path) -> None:
    """Put the steps of a run on the axis."""
    for step in _objects(folder / TIMELINE):
        wrong = str(step.get("error", ""))
        title = str(step.get("what", "?")) + (f": {wrong}" if wrong else "")
        _tell(
            axis, Row("run", "steps"), step, title, Kind.WRONG if wrong else Kind.STEP, short=str(step.get("what", "?"))
        )


def put_programs(axis: Axis, folder: Path) -> None:
    """Put the programs of a run on the axis: each from its birth to its death."""
    for program in _objects(folder / PROCESSES):
        name, fate = str(program.get("name", "?")), str(program.get("fate", ""))
        kind = Kind.STEP
        if not program.get("stopped") and fate != "is running":
            kind = Kind.STEP if program.get("in_order") else Kind.FAULT if program.get("on_request") else Kind.WRONG
        row = Row("run", "program", name)
        runs = {**program, "seconds": _between(program.get("when"), program.get("ended"))}
        _tell(axis, row, runs, f"{name} runs, process {program.get('pid')}", Kind.STEP, short=name)
        if seconds_of(program.get("ended")) is not None:
            ended = {**program, "when": program["ended"], "seconds": 0}
            _tell(axis, row, ended, f"{name} {fate}" if fate else f"{name} ended", kind, short=fate)


def _between(began: object, ended: object) -> float:
    """Seconds; 0 where not both moments are known."""
    first, last = seconds_of(began), seconds_of(ended)
    return max(0.0, last - first) if first is not None and last is not None else 0.0


def put_migrations(axis: Axis, folder: Path) -> None:
    """Put the phases of migrations on the axis."""
    for path in sorted(folder.glob(MIGRATIONS)):
        for report in _objects(path):
            row = Row("migration", path.name.removesuffix(".migration.json"))
            zero = seconds_of(report.get("when"))
            if zero is None:
                continue
            for phase in _all(report.get("phases")):
                placed = {**phase, "when": zero + (seconds_of(phase.get("began")) or 0.0)}
                _tell(axis, row, placed, f"phase {phase.get('phase')}", Kind.STEP, short=str(phase.get("phase")))
            good = report.get("verdict") == "migrated"
            verdict = str(report.get("verdict"))
            title = f"{verdict}: {report['reason']}" if report.get("reason") else verdict
            end = {**report, "when": zero + (seconds_of(report.get("seconds")) or 0.0), "seconds": 0}
            end.pop("phases", None)
            _tell(axis, row, end, title, Kind.STEP if good else Kind.WRONG, short=verdict)


def put_guest_commands(axis: Axis, folder: Path) -> None:
    """Put what was run in guests on the axis."""
    for path in sorted(folder.glob(GUEST_COMMANDS)):
        row = Row("guest program", path.name.removesuffix(GUEST_COMMANDS.removeprefix("*")))
        for command in _lines(path):
            ran, (kind, wrong) = str(command.get("run", "?")), _outcome(command)
            _tell(axis, row, command, f"{ran}: {wrong}" if wrong else ran, kind, short=ran)


def _outcome(command: Mapping[str, Any]) -> tuple[Kind, str]:
    """What a command in a guest came to: what its program reports as wrong, or how it failed."""
    report = json_of(str(command.get("stdout") or ""))
    told = report.get("wrong") if isinstance(report, dict) else None
    if isinstance(told, list) and told:
        return Kind.WRONG, "; ".join(map(str, told))
    status = f"status {command['exit_code']}" if command.get("exit_code") else ""
    failed = str(command.get("error") or status)
    return (Kind.REFUSED if failed else Kind.STEP), failed


def put_soak(axis: Axis, folder: Path) -> None:
    """Put the events of a soak on the axis."""
    for line in _lines(folder / SOAK):
        kind = line.get("kind")
        if kind not in ("event", "failure", "note"):
            continue
        title = " ".join(str(line[name]) for name in ("event", "target", "check", "what") if line.get(name))
        lasted, ended = seconds_of(line.get("whole")) or 0.0, seconds_of(line.get("when"))
        happened = {**line, "seconds": lasted, "when": ended - lasted if ended is not None else None}
        _tell(axis, Row("soak", "events"), happened, title, Kind.WRONG if kind == "failure" else Kind.STEP, short=title)


def _tell(axis: Axis, row: Row, what: Mapping[str, Any], title: str, kind: Kind, *, short: str) -> None:
    """Put a thing with `when` and `seconds` on the axis; what has no moment has no place there."""
    when, seconds = seconds_of(what.get("when")), seconds_of(what.get("seconds", 0))
    if when is not None and seconds is not None:
        details = {
            name: value for name, value in what.items() if name not in ("when", "kind") and value not in ("", None)
        }
        axis.tell(row, round(when * 1e9), title, details, kind, lasted=round(seconds * 1e9), short=short)


def _objects(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON file, which is one or a list of them; none where it is neither."""
    found = json_of(text_of(path))
    return _all(found if isinstance(found, list) else [found])


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a file of JSON lines."""
    for line in lines_of(path):
        found = json_of(line)
        if isinstance(found, dict):
            yield found


def _all(found: Any) -> list[dict[str, Any]]:
    return [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []
