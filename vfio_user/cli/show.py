"""`vfio-user show`: the page of a run, a trace or a bundle, written and opened."""

from __future__ import annotations

import json
import sys
import webbrowser
from pathlib import Path

import click

from userdev.errors import UserError
from vfio_user.cli._command import CommandLine
from vfio_user.cli._outputs import Output, refuse_overwriting
from vfio_user.cli._registers import registers as names
from vfio_user.page.document import write_page
from vfio_user.page.names import INDEX, SOAK


@click.command(cls=CommandLine)
@click.argument("what", metavar="EVIDENCE|TRACE|BUNDLE", type=click.Path(path_type=Path))
@click.option("--output", "-o", type=Output(), help="The page; default: index.html in a folder, FILE.html.")
@click.option("--registers", metavar="MAP", help="Names of registers, as `vfio-user trace show` takes them.")
@click.option("--open/--no-open", "opened", default=None, help="Open it in a browser; by default at a terminal.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON; no browser is opened, unless --open says so.")
def command(what: Path, output: Path | None, registers: str | None, opened: bool | None, as_json: bool) -> None:
    """Write the page of a run, a trace or a bundle, and open it.

    One HTML file that needs no network: the first cause, all that happened on one axis, and the logs.
    """
    out = output or (what / INDEX if what.is_dir() else what.with_name(what.name + ".html"))
    refuse_overwriting(out, read=(registers,))
    if output is None and (what / SOAK).exists() and out.exists():
        hint = f"-o FILE writes one of what has happened; {out} is the soak's own"
        raise UserError(f"{what} is the folder of a soak, which has its page", hint=hint)
    page = write_page(what, out, registers=names(registers) if registers is not None else None)
    for why in page.truncated:
        click.echo(f"{why}; everything before it is on the page", err=True)
    said = {"page": str(out), "happened": page.happened, "truncated": list(page.truncated)}
    click.echo(json.dumps(said, indent=2) if as_json else str(out))
    if opened is None:
        opened = sys.stdout.isatty() and not as_json
    if opened and not webbrowser.open(out.absolute().as_uri()):
        click.echo("no browser could be started here; --no-open tries none", err=True)
