"""`trace cut`: a part of a trace of either protocol, as a trace of its own."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click

from userdev.trace.cutting import FIRST, Part
from userdev.trace.cutting import cut as cut_out
from vfio_user.cli._command import CommandLine
from vfio_user.cli._durations import Finite
from vfio_user.cli._outputs import Output, refuse_overwriting
from vfio_user.traces import PROTOCOLS


class _Records(click.ParamType[tuple[int, int | None]]):
    """231-456, 231-, -456, or 231 alone."""

    name = "records"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int | None]:
        found = re.fullmatch(r"(\d{0,9})(-?)(\d{0,9})", str(value).strip())
        if found is None or not (found[1] or found[3]):
            self.fail(f"{value!r} are no records: 231-456, 231-, -456 or 231 are", param, ctx)
        first = int(found[1] or FIRST)
        last = int(found[3]) if found[3] else None if found[2] else first
        if found[1] and last is not None and last < first:
            self.fail(f"{value!r} ends before it begins: {last}-{first} is the other way round", param, ctx)
        if last is not None and last < FIRST:
            self.fail(f"{value!r} is no record: the first behind the header is {FIRST}", param, ctx)
        return first, last


@click.command(cls=CommandLine)
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--output", "-o", type=Output(dir_okay=False), required=True, help="The part, which is a trace itself.")
@click.option("--records", type=_Records(), metavar="N-M", help="From one record to another: 231-456, 231-, -456.")
@click.option("--since", type=Finite(), help="From this second of the trace on.")
@click.option("--until", type=Finite(), help="Up to this second of the trace.")
@click.option("--from-mark", default="", metavar="TEXT", help="From a mark that `control` has put into it.")
@click.option("--to-mark", default="", metavar="TEXT", help="Up to the next mark of this text.")
def cut(
    file: Path,
    output: Path,
    records: tuple[int, int | None] | None,
    since: float | None,
    until: float | None,
    from_mark: str,
    to_mark: str,
) -> None:
    """Write a part of a trace as a trace: records or seconds from one to another, or what is between marks.

    Of several options the part has to be all. Seconds stay as in FILE, records are numbered anew. To be replayed, a
    part has to have the beginning of its session.
    """
    if records is None and since is None and until is None and not from_mark and not to_mark:
        raise click.UsageError("which part? --records, --since, --until, --from-mark and --to-mark say so")
    refuse_overwriting(output, read=(file,))
    first, last = records or (FIRST, None)
    done = cut_out(file, output, Part(first, last, since, until, from_mark, to_mark), *PROTOCOLS)
    click.echo(f"{output}: records {done.first} to {done.last} of {file}, {done.began:.6f} s to {done.ended:.6f} s")
    if done.truncated:
        click.echo(f"{file}: {done.truncated}; everything before it is in {output}", err=True)
