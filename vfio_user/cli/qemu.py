"""`vfio-user qemu install|list|which`: QEMUs that can be a vfio-user client."""

from __future__ import annotations

import json
import shlex

import click

from userdev.errors import UserError
from vfio_user.cli._command import Group
from vfio_user.cli._completion import complete_qemus
from vfio_user.cli._hardware import qemu_option
from vfio_user.cli._progress import Waiting, quiet_option
from vfio_user.harness.qemu import Qemu, find_qemu, install_qemu, installed_qemu, manifest


@click.group(cls=Group)
def command() -> None:
    """Install, list and find QEMU."""


@command.command()
@click.argument("name", default="default", shell_complete=complete_qemus)
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@quiet_option()
def install(name: str, as_json: bool, quiet: bool) -> None:
    """Download a QEMU into the cache, or bring it up to date; the system is not touched."""
    with Waiting(quiet=quiet) as waiting:
        found = install_qemu(name, progress=waiting.tell)
    click.echo(json.dumps({"name": name, **_about(found)}, indent=2) if as_json else f"{name}: {found.version_text}")


@command.command("list")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def list_all(as_json: bool) -> None:
    """List the QEMUs that can be installed, and those that are."""
    rows = []
    for name, recipe in manifest().items():
        qemu = installed_qemu(name)
        rows.append({"name": name, "about": recipe.about, "installed": qemu.version_text if qemu else None})
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    for row in rows:
        click.echo(f"{row['name']:10} {row['about']:42} {row['installed'] or 'not installed'}")
    try:
        found = find_qemu()
    except UserError as error:
        click.echo(f"\n{error}; {error.hint}")
    else:
        click.echo(f"\nused when none is named: {found.version_text}, from the {found.origin}")


@command.command()
@qemu_option()
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def which(qemu: str | None, as_json: bool) -> None:
    """Print how to run the QEMU that would be used: as words for a shell."""
    found = find_qemu(qemu)
    if as_json:
        click.echo(json.dumps(_about(found), indent=2))
        return
    click.echo(f"{found.version_text}, from the {found.origin}", err=True)
    click.echo(shlex.join(found.argv))


def _about(qemu: Qemu) -> dict[str, object]:
    about = {"argv": qemu.argv, "version": qemu.version.release, "version_text": qemu.version_text}
    return {**about, "origin": qemu.origin, "digest": qemu.digest}
