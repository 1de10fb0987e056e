"""`vfio-user man`: all commands and options on a page of the manual, which came with this version."""

from __future__ import annotations

import shutil
import subprocess
import sys

import click

from userdev.errors import UserError
from vfio_user.cli import docs
from vfio_user.cli._command import CommandLine


@click.command(cls=CommandLine)
@click.option("--path", "only_path", is_flag=True, help="Print where the page is, and show nothing.")
@click.argument("name", nargs=-1, metavar="[COMMAND]")
@click.pass_context
def command(context: click.Context, name: tuple[str, ...], only_path: bool) -> None:
    """Show the page of the manual, as man(1) does where this is installed on its path.

    Where there is no man, or no terminal, the page's path is printed.
    """
    program = context.find_root().info_name
    if name:
        hint = f"`{program} {' '.join(name)} --help` is about that one"
        raise UserError("the manual is one page, of all commands", hint=hint)
    page = docs.PAGES / "man" / f"{program}.1"
    if not page.is_file():
        hint = f"`{program} COMMAND --help` has the same of each command; {docs.BUILDING}"
        raise UserError("this installation has no built pages", hint=hint)
    man = shutil.which("man")
    if only_path or man is None or not sys.stdout.isatty():
        click.echo(page)
        return
    context.exit(subprocess.run([man, "-l", str(page)], check=False).returncode)
