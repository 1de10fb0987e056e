"""`vfio-user new`: a project with a device, its tests and its CI, that passes at once."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import click

from vfio_user.cli import docs
from vfio_user.cli._choice import Choice
from vfio_user.cli._command import CommandLine
from vfio_user.cli._progress import quiet_option
from vfio_user.new_project import CI, PROTOCOLS, Names, write_project


@click.command(cls=CommandLine)
@click.argument("name")
@click.option("--protocol", type=Choice(list(PROTOCOLS)), default="vfio-user", show_default=True)
@click.option("--folder", type=click.Path(file_okay=False, path_type=Path), help="By default NAME, here.")
@click.option("--ci", type=Choice([*CI, "none"]), default="github", show_default=True, help="Whose CI to write for.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object: the folder, and the files in it.")
@quiet_option("Say nothing.")
def command(name: str, protocol: str, folder: Path | None, ci: str, as_json: bool, quiet: bool) -> None:
    """Write a project called NAME, of a device to go on from: device, tests, pyproject.toml and CI, which pass at once.

    The device is a PCI device with a register and an interrupt, or a virtio device with a queue.
    """
    names = Names.of(name)
    place = folder or Path(name)
    files = write_project(place, names, protocol, None if ci == "none" else ci)
    if as_json:
        click.echo(json.dumps({"folder": str(place), "files": list(map(str, files))}))
    if quiet or as_json:
        return
    click.echo(f"{place}: " + ", ".join(map(str, files)))
    click.echo(f"\nnext:\n  cd {shlex.quote(str(place))}\n  pytest             # without a guest")
    click.echo("  pytest -m guest    # in a real one")
    click.echo(f"  {docs.reading(PROTOCOLS[protocol].guide)}    # how to go on")
