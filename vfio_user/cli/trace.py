"""`vfio-user trace`: what an interposer has recorded, for people and for other programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import click

from userdev.errors import UserError, about
from userdev.relay.direction import DIRECTIONS
from userdev.trace import TraceLine, as_json, text
from vfio_user.interposer.trace import VfioTrace, read_trace
from vfio_user.interposer.trace.registers import NamedRegister, RegisterMap, load_registers
from vfio_user.interposer.trace.show import (
    LANES,
    PACKETS,
    Filter,
    command_named,
    decode_entries,
    parse_offsets,
    parse_region,
)

_REGISTERS_HELP = "Names of registers: a YAML or JSON map, a device's name, or MODULE:CLASS."


@click.group()
def command() -> None:
    """Show and export traces."""


@command.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--command", "commands", multiple=True, metavar="NAME", help="Only these, for example REGION_WRITE.")
@click.option("--region", help="Only accesses to this region: BAR0, CONFIG, or a number.")
@click.option("--offset", help="Only accesses that touch this offset, or range 0x10-0x1f.")
@click.option("--register", default="", help="Only accesses to this register: NAME, NAME[3], NAME+2.")
@click.option("--since", type=float, help="Only from this second of the trace on.")
@click.option("--until", type=float, help="Only up to this second of the trace.")
@click.option("--direction", type=click.Choice(list(DIRECTIONS)))
@click.option("--registers", metavar="MAP", help=_REGISTERS_HELP)
@click.option("--json", "as_lines", is_flag=True, help="A JSON object a line.")
def show(
    file: Path,
    commands: tuple[str, ...],
    region: str | None,
    offset: str | None,
    register: str,
    since: float | None,
    until: float | None,
    direction: str | None,
    registers: str | None,
    as_lines: bool,
) -> None:
    """Print a trace decoded: record, seconds, direction, message, and how long a reply took."""
    trace, names = read_trace(file), _registers(registers)
    if register:
        names.check(register)
    wanted = Filter(
        commands=frozenset(map(command_named, commands)),
        region=parse_region(region) if region is not None else None,
        offset=parse_offsets(offset) if offset is not None else None,
        register=register,
        since=since,
        until=until,
        direction=DIRECTIONS[direction] if direction is not None else None,
    )
    began = trace.header.time
    for line in decode_entries(trace.entries, trace.dialect, names):
        if wanted.lets_through(line, began):
            click.echo(json.dumps(as_json(line, began)) if as_lines else text(line, began))
    _say_truncated(trace)


@command.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--format", "kind", type=click.Choice(["pcapng", "json", "perfetto"]), required=True)
@click.option("--output", "-o", type=click.Path(path_type=Path), help="Default: standard output.")
@click.option("--registers", metavar="MAP", help=_REGISTERS_HELP)
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
    trace = read_trace(file)
    with about(output or "the standard output"), _output(output) as stream:
        if kind == "pcapng":
            from userdev.trace.pcapng import write_pcapng

            write_pcapng(stream, PACKETS, trace.header, trace.entries)
        elif kind == "perfetto":
            from userdev.trace.perfetto import trace_events

            events = trace_events(
                LANES, trace.header, _lines(trace, registers), qmp_log=qmp_log, console_log=console_log
            )
            stream.write(json.dumps({"traceEvents": events, "displayTimeUnit": "ms"}).encode())
        else:
            began = trace.header.time
            stream.write(json.dumps([as_json(line, began) for line in _lines(trace, registers)], indent=1).encode())
    _say_truncated(trace)


@command.command()
def dissector() -> None:
    """Print where Wireshark's dissector is: `wireshark -X lua_script:$(vfio-user trace dissector) FILE`."""
    click.echo(PACKETS.dissector)


def _lines(trace: VfioTrace, registers: str | None) -> Iterator[TraceLine]:
    return decode_entries(trace.entries, trace.dialect, _registers(registers))


def _registers(text: str | None) -> RegisterMap:
    """A map from a file, or from the registers that one of our devices declares."""
    if text is None:
        return RegisterMap()
    if Path(text).is_file():
        return load_registers(text)
    if Path(text).suffix in (".yaml", ".yml", ".json"):
        raise UserError(f"there is no register map {text}")
    from userdev.declare.declared import declarations
    from vfio_user.device.register import BaseRegister
    from vfio_user.server.catalogue import DEVICES

    declared = [(register.name, register.place) for register in declarations(DEVICES.find(text), BaseRegister)]
    return RegisterMap(
        NamedRegister(place.bar, place.offset, name, max(place.widths), place.count or 1, place.stride)
        for name, place in declared
    )


def _output(path: Path | None) -> BinaryIO:
    try:
        return open(path, "wb") if path is not None else open(sys.stdout.fileno(), "wb", closefd=False)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from None


def _say_truncated(trace: VfioTrace) -> None:
    if trace.truncated:
        click.echo(f"{trace.path}: {trace.truncated}; everything before it is above", err=True)
