"""`vfio-user man`: all commands and options on a page of the manual, which came with this version."""

from __future__ import annotations

import shutil
import subprocess
import sys

import click

from userdev.errors import UserError
from vfio_user.cli import docs


@click.command()
@click.option("--path", "only_path", is_flag=True, help="Print where the page is, and show nothing.")
@click.pass_context
def command(context: click.Context, only_path: bool) -> None:
    """Show the page of the manual, as man(1) does where this is installed on its path.

    Where there is no man, or no terminal, the page's path is printed.
    """
    page = docs.PAGES / "man" / f"{context.find_root().info_name}.1"
    if not page.is_file():
        raise UserError("this installation has no built pages", hint=docs.BUILDING)
    man = shutil.which("man")
    if only_path or man is None or not sys.stdout.isatty():
        click.echo(page)
        return
    context.exit(subprocess.run([man, "-l", str(page)], check=False).returncode)
