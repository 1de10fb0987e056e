"""`trace diff`: every difference between two traces of the same protocol."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import click

from userdev.counted import counted
from userdev.errors import UserError, VerdictError, meant
from userdev.trace.diff import Comparison, compare
from userdev.trace.diff.sequence import Sequences, Tokens, names_of, read_sequences
from userdev.trace.view import TraceView, opened
from vfio_user.cli._command import CommandLine
from vfio_user.cli._registers import REGISTERS_HELP, registers
from vfio_user.cli._trace_stats import aligned
from vfio_user.traces import open_trace
from vfio_user.wire.constants import IrqIndex


@click.command(cls=CommandLine)
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", type=click.Path(path_type=Path))
@click.option("--registers", "names", metavar="MAP", help=REGISTERS_HELP)
@click.option(
    "--ignore",
    multiple=True,
    metavar="NAME",
    help="Leave out a command, a register or where it is (BAR0:0x24), a region, or an interrupt (MSIX:0); as `replay`.",
)
@click.option("--polls", is_flag=True, help="Also how often the same was read in a row, which is time.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def diff(a: Path, b: Path, names: str | None, ignore: tuple[str, ...], polls: bool, as_json: bool) -> None:
    """Compare two traces by what was asked and answered, ignoring ids and times; exit status 1 where they differ.

    Requests of the client, those of the server, and interrupts are compared each by themselves. What is read again and
    again with the same answer counts as once.
    """
    given = registers(names) if names is not None else None
    views = open_trace(a, given), open_trace(b, given)
    if views[0].header.protocol != views[1].header.protocol:
        raise UserError(f"{a} is of {views[0].header.protocol}, and {b} of {views[1].header.protocol}")
    tokens = Tokens()
    ignored = frozenset(map(_told, ignore))
    of_a, of_b = (_sequences(view, tokens, ignored) for view in views)
    if ignored:
        _check(ignored, views)
    found = compare(of_a, of_b, tokens, views[0].shown.reading(), polls=polls)
    truncated = {str(view.path): view.truncated for view in views if view.truncated}
    if as_json:
        told = [{**asdict(one), "text": one.text} for one in found.differences]
        click.echo(
            json.dumps({"same": found.same, "polled": found.polled, "differences": told, "truncated": truncated})
        )
    else:
        for line in _lines(found):
            click.echo(line)
    for path, why in truncated.items():
        click.echo(f"{path}: {why}; everything before it is compared", err=True)
    if found.differences:
        count = len(found.differences)
        raise VerdictError(f"{a} and {b} differ in {counted(count, 'place')}")


def _sequences(view: TraceView, tokens: Tokens, ignored: frozenset[str]) -> Sequences:
    with opened(view.path, view.shown.protocol) as reader:
        found = read_sequences(reader, view.shown.reading(), tokens, ignored)
        view.truncated = reader.truncated
    return found


def _told(name: str) -> str:
    """A name as traces have it: BAR0:0x24 is BAR0+0x24 there, and MSIX:0 is MSIX 0."""
    of, colon, number = name.partition(":")
    try:
        value = int(number, 0) if colon else -1
    except ValueError:
        value = -1
    if value < 0:
        return name
    return f"{of} {value}" if of in IrqIndex.__members__ else f"{of}+{value:#x}"


def _check(ignored: Iterable[str], views: Iterable[TraceView]) -> None:
    """Refuse names of what neither trace has.

    Raises:
        UserError: one of them is that.
    """
    known: set[str] = set()
    for view in views:
        with opened(view.path, view.shown.protocol) as reader:
            tokens = Tokens()
            found = read_sequences(reader, view.shown.reading(), tokens, frozenset())
        known.update(found.interrupts, *(names_of(one.place) for one in tokens.examples))
    for name in ignored:
        if name not in known:
            hint = f"{meant(name, known)}commands, registers, BAR0:0x24, regions and MSIX:0 can be left out"
            raise UserError(f"neither trace has {name!r}", hint=hint)


def _lines(found: Comparison) -> Iterable[str]:
    rows = [
        (one.kind, str(one.a_record or "-"), str(one.b_record or "-"), one.text.replace("\n", " "))
        for one in found.differences
    ]
    if rows:
        yield from aligned([("what", "A", "B", ""), *rows])
        yield ""
    polled = f", {found.polled:,} of them read more often in one" if found.polled else ""
    yield f"{counted(len(rows), 'difference')}; {counted(found.same, 'exchange')} without one{polled}"
