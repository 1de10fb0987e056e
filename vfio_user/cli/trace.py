"""`vfio-user trace` and `vhost-user trace`: what an interposer has recorded, for people and for other programs.

Both show traces of either protocol, which the file names; only Wireshark's dissector is the command's own.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import BinaryIO

import click

from userdev import trace
from userdev.errors import UserError, about
from userdev.relay.direction import DIRECTIONS
from userdev.trace import as_json, text
from userdev.trace.kept import keep_aside
from userdev.trace.view import TraceView
from vfio_user.cli._beside import refuse_beside
from vfio_user.cli._choice import Choice
from vfio_user.cli._command import CommandLine, Group
from vfio_user.cli._durations import Finite
from vfio_user.cli._outputs import Output, refuse_overwriting
from vfio_user.cli._registers import REGISTERS_HELP
from vfio_user.cli._registers import registers as names
from vfio_user.cli._trace_cut import cut
from vfio_user.cli._trace_diff import diff
from vfio_user.cli._trace_stats import stats
from vfio_user.interposer.trace import show as vfio_user
from vfio_user.interposer.trace.registers import registers_of
from vfio_user.traces import open_trace
from vhost_user.interposer import traces as vhost_user
from vhost_user.interposer.asker import request_named


@click.group(cls=Group)
def command() -> None:
    """Show, count, compare, cut and export traces."""


@click.command(cls=CommandLine)
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--command", "commands", multiple=True, metavar="NAME", help="Only these, for example REGION_WRITE.")
@click.option("--region", help="Only accesses to this region: BAR0, CONFIG, or a number (vfio-user).")
@click.option("--offset", help="Only accesses that touch this offset, or range 0x10-0x1f (vfio-user).")
@click.option("--register", default="", help="Only accesses to this register: NAME, NAME[3], NAME+2 (vfio-user).")
@click.option("--ring", type=int, help="Only what is about this ring (vhost-user).")
@click.option("--since", type=Finite(), help="Only from this second of the trace on.")
@click.option("--until", type=Finite(), help="Only up to this second of the trace.")
@click.option("--direction", type=Choice(list(DIRECTIONS)))
@click.option("--registers", metavar="MAP", help=REGISTERS_HELP)
@click.option("--json", "as_lines", is_flag=True, help="A JSON object a line.")
def show(
    file: Path,
    commands: tuple[str, ...],
    region: str | None,
    offset: str | None,
    register: str,
    ring: int | None,
    since: float | None,
    until: float | None,
    direction: str | None,
    registers: str | None,
    as_lines: bool,
) -> None:
    """Print a trace decoded: record, seconds, direction, message, and how long a reply took."""
    view = open_trace(file, names(registers) if registers is not None else None)
    towards = DIRECTIONS[direction] if direction is not None else None
    wanted: trace.Filter
    if view.header.protocol == vhost_user.NAME:
        _refuse(file, region=region, offset=offset, register=register, registers=registers)
        wanted = vhost_user.Filter(frozenset(map(_request, commands)), since, until, towards, ring=ring)
    else:
        _refuse(file, ring=ring)
        if register:
            (names(registers) if registers is not None else registers_of(view.header)).check(register)
        wanted = vfio_user.Filter(
            frozenset(map(vfio_user.command_named, commands)),
            since,
            until,
            towards,
            region=vfio_user.parse_region(region) if region is not None else None,
            offset=vfio_user.parse_offsets(offset) if offset is not None else None,
            register=register,
        )
    began = view.header.time
    nothing = True
    for line in view.lines():
        if wanted.lets_through(line, began):
            click.echo(json.dumps(as_json(line, began)) if as_lines else text(line, began))
            nothing = False
    if nothing:
        click.echo(f"no record of {file} is all that was asked for", err=True)
    _say_truncated(view)


@click.command(cls=CommandLine)
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--format", "kind", type=Choice(["pcapng", "json", "perfetto"]), required=True)
@click.option("--output", "-o", type=Output(), help="Default: standard output.")
@click.option("--registers", metavar="MAP", help=REGISTERS_HELP)
@click.option("--qmp-log", type=click.Path(path_type=Path), help="QMP messages, a JSON object a line (perfetto).")
@click.option("--console-log", type=click.Path(path_type=Path), help="Console lines with time stamps (perfetto).")
def export(
    file: Path,
    kind: str,
    output: Path | None,
    registers: str | None,
    qmp_log: Path | None,
    console_log: Path | None,
) -> None:
    """Write a trace for Wireshark (pcapng), for programs (json) or as a picture (perfetto)."""
    if kind != "perfetto":
        refuse_beside(f"logs are for pictures (perfetto), and not in {kind}", "qmp_log", "console_log")
    refuse_overwriting(output, read=(file, registers, qmp_log, console_log))
    view = open_trace(file, names(registers) if registers is not None else None)
    header, shown = view.header, view.shown
    with about(output or "the standard output"), _output(output) as stream:
        if kind == "pcapng":
            from userdev.trace.pcapng import write_pcapng

            write_pcapng(stream, shown.packets, header, view.lines())
        elif kind == "perfetto":
            from userdev.trace.perfetto import trace_events

            events = trace_events(shown.lanes, header, view.lines(), qmp_log=qmp_log, console_log=console_log)
            stream.write(json.dumps({"traceEvents": events, "displayTimeUnit": "ms"}).encode())
        else:
            stream.write(json.dumps([as_json(line, header.time) for line in view.lines()], indent=1).encode())
    _say_truncated(view)


@click.command(cls=CommandLine)
def dissector() -> None:
    """Print where Wireshark's dissector is: `wireshark -X lua_script:$(vfio-user trace dissector) FILE`."""
    click.echo(vfio_user.PACKETS.dissector)


command.add_command(show)
command.add_command(export)
command.add_command(stats)
command.add_command(diff)
command.add_command(cut)
command.add_command(dissector)


def _refuse(file: Path, **options: object) -> None:
    """Refuse options that say nothing of this trace.

    Raises:
        UserError: one of them was given.
    """
    for name, value in options.items():
        if value not in (None, ""):
            raise UserError(f"--{name}: {file} is of the other protocol", hint="`--help` says whose it is")


def _request(name: str) -> str:
    """A request of vhost-user by its name.

    Raises:
        UserError: there is none.
    """
    try:
        return request_named(name)
    except ValueError as error:
        raise UserError(str(error)) from None


def _output(path: Path | None) -> BinaryIO:
    try:
        if path is not None:
            keep_aside(path)
        return open(path, "wb") if path is not None else open(sys.stdout.fileno(), "wb", closefd=False)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from None


def _say_truncated(view: TraceView) -> None:
    if view.truncated:
        click.echo(f"{view.path}: {view.truncated}; everything before it is above", err=True)
