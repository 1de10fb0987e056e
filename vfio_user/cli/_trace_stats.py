"""`trace stats`: the numbers of a trace of either protocol, once or as they change."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from userdev.errors import UserError
from userdev.trace.stats import Report, Stats, report
from userdev.trace.view import opened
from userdev.trace.writer import INHERITED
from vfio_user.cli._answering import answering
from vfio_user.cli._beside import refuse_beside
from vfio_user.cli._command import CommandLine
from vfio_user.cli._durations import Finite
from vfio_user.cli._registers import REGISTERS_HELP, registers
from vfio_user.traces import PROTOCOLS, shown_by

ROWS = 20
"""Rows of a table that are shown without --all."""
FINDINGS = 30


@click.command(cls=CommandLine)
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--registers", "names", metavar="MAP", help=REGISTERS_HELP)
@click.option("--watch", is_flag=True, help="Show tables of it as it grows, until Ctrl-C.")
@click.option("--interval", type=Finite(0.05), default=1.0, show_default=True, help="Seconds (--watch).")
@click.option("--all", "everything", is_flag=True, help="All rows, and all that is odd.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object; times are in ns.")
def stats(file: Path, names: str | None, watch: bool, interval: float, everything: bool, as_json: bool) -> None:
    """Count a trace: per message, register and interrupt how often, how fast and how slowly, and what is odd about it.

    FILE is a trace, which may still grow, or the control socket of an interposer that records one.
    """
    if watch:
        refuse_beside("--watch draws tables", "as_json")
    else:
        refuse_beside("without --watch it is counted once", "interval")
    path = traced_file(file)
    with opened(path, *PROTOCOLS) as reader:
        shown = shown_by(reader.header, registers(names) if names is not None else None)
        counted = Stats(reader, shown.reading())
        if watch:
            _watch(counted, interval, None if everything else ROWS)
            return
        counted.take()
        found = report(counted)
    if as_json:
        click.echo(json.dumps({"file": str(path), **found.json()}))
        return
    for line in text(found, None if everything else ROWS):
        click.echo(line)
    if found.about["truncated"]:
        click.echo(f"{path}: {found.about['truncated']}; everything before it is counted", err=True)


def traced_file(path: Path) -> Path:
    """The trace itself, or the one that the interposer writes whose control socket this is.

    Raises:
        UserError: nobody answers there, or nothing is recorded.
    """
    if not path.is_socket():
        return path
    from userdev.control.client import TIMEOUT_SECONDS, ControlClient

    with answering(path, "status", TIMEOUT_SECONDS), ControlClient(path) as control:
        status = control.call("status")
    trace = status.get("trace")
    if not trace:
        raise UserError(f"the interposer at {path} records nothing", hint="start it with --trace FILE")
    if trace["file"].startswith(INHERITED):
        raise UserError(f"the interposer at {path} writes its trace to a descriptor", hint="name the file of that")
    return Path(trace["file"])


def text(found: Report, most: int | None) -> Iterator[str]:
    """The whole report, a line each; `most` rows of each table."""
    yield found.heading
    for section in found.sections:
        yield ""
        rows = list(section.shown())
        yield from aligned([section.columns, *rows[:most]])
        if most is not None and len(rows) > most:
            yield f"... and {len(rows) - most:,} more: --all"
    if found.findings:
        yield ""
    for finding in found.findings[: FINDINGS if most is not None else None]:
        yield str(finding)
    if most is not None and len(found.findings) > FINDINGS:
        yield f"... and {len(found.findings) - FINDINGS:,} more: --all"


def aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Rows under each other: words from the left, numbers from the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    words = [any(cell[:1].isalpha() for cell in column[1:]) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = zip(row, widths, words, strict=True)
        yield "  ".join(cell.ljust(width) if word else cell.rjust(width) for cell, width, word in cells).rstrip()


def _watch(counted: Stats, interval: float, most: int | None) -> None:
    """Show the report as a table that is drawn anew, until Ctrl-C."""
    from rich.live import Live

    from vfio_user.cli._console import drawing_console

    console = drawing_console()
    live = Live(  # transient: into a file the last one is printed below, and only there
        console=console, auto_refresh=False, screen=console.is_terminal, transient=True, vertical_overflow="crop"
    )
    try:
        with live:
            while True:
                counted.take()
                found = report(counted)
                live.update(_drawn(found, most), refresh=True)
                time.sleep(interval)
    except KeyboardInterrupt:
        pass
    console.print(_drawn(report(counted), most))


def _drawn(found: Report, most: int | None) -> Any:
    """The report as rich draws it."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    parts: list[Any] = [Text(found.heading)]
    for section in found.sections:
        table = Table(title=section.title, title_justify="left", box=None, pad_edge=False)
        for column in section.columns:
            table.add_column(column, justify="left" if column in ("message", "register", "where") else "right")
        for row in list(section.shown())[:most]:
            table.add_row(*map(Text, row))
        parts.append(table)
    parts += [Text(str(finding)) for finding in found.findings[: FINDINGS if most is not None else None]]
    return Group(*parts)
