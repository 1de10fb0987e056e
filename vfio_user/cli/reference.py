"""`vfio-user reference`: the C reference implementation's sample programs, to run beside ours."""

from __future__ import annotations

import json

import click

from vfio_user.cli._choice import Choice
from vfio_user.cli._command import CommandLine
from vfio_user.cli._progress import Waiting, quiet_option
from vfio_user.harness.libvfio_user import DIALECT, PROGRAMS, reference_program


@click.command(cls=CommandLine, epilog=f"They speak the dialect {DIALECT}: name it where a command takes --dialect.")
@click.argument("program", type=Choice(list(PROGRAMS)), default="server")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object: program, path, dialect.")
@quiet_option()
def command(program: str, as_json: bool, quiet: bool) -> None:
    """Print the path of one of libvfio-user's sample programs, built from Debian's source when it is not there yet.

    \b
    For instance
      vfio-user conformance --dialect region-migration --server-command "$(vfio-user reference) {socket}"
      vfio-user interpose --listen /tmp/front --server-command "$(vfio-user reference gpio-pci-idio-16) {socket}"
      vfio-user boot --device "$(vfio-user reference gpio-pci-idio-16) {socket} [x-pci-class-code=0x088000]"
    """
    with Waiting(quiet=quiet) as waiting:
        path = reference_program(program, progress=waiting.tell)
    about = {"program": program, "path": str(path), "dialect": DIALECT}
    click.echo(json.dumps(about, indent=2) if as_json else path)
