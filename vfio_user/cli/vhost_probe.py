"""`vhost-user probe`: what any back-end offers, by name."""

from __future__ import annotations

import json

import click

from userdev.errors import UserError
from vfio_user.cli._command import CommandLine
from vfio_user.cli._completion import complete_back_ends
from vfio_user.cli._conformance import server
from vfio_user.cli._durations import LEAST, Finite
from vfio_user.cli._hardware import DEVICE, device_option
from vfio_user.cli._other_protocol import probe_command
from vfio_user.cli._served import one_command
from vhost_user.frontend import BackEndError, Disconnected, FrontEnd, NoAnswer
from vhost_user.frontend.conformance import greet
from vhost_user.frontend.description import as_json, describe, render


@click.command(cls=CommandLine)
@click.argument("address", required=False)
@click.option("--server-command", metavar="'CMD {socket}'", help="Start the back-end.")
@device_option(help=f"Start the back-end of this. {DEVICE}", shell_complete=complete_back_ends)
@click.option("--json", "wants_json", is_flag=True, help="Print JSON.")
@click.option(
    "--timeout", type=Finite(LEAST), default=5.0, show_default=True, help="Seconds that each answer may take."
)
def command(
    address: str | None, server_command: str | None, device: str | None, wants_json: bool, timeout: float
) -> None:
    """Describe the back-end at ADDRESS (a path, or unix:PATH), or one that a command starts, without changing it."""
    started = one_command(address, server_command, device, "vhost-user")
    with (
        server(address, started, greet, timeout=timeout) as target,
        FrontEnd(target.connect(), timeout=timeout) as front_end,
    ):
        try:
            description = describe(front_end)
        except BackEndError as error:
            other = "" if device else f"; if it is a vfio-user server: {probe_command('vfio-user', address)}"
            raise UserError(f"{address or device or server_command}: {error}", hint=_hint(error, other)) from None
    click.echo(json.dumps(as_json(description), indent=2) if wants_json else render(description))


def _hint(error: BackEndError, other: str) -> str:
    """The advice about a back-end that cannot be described; `other` says what to do if it is none.

    Whether it speaks vfio-user instead is not tried: to a back-end that serves another front-end, and comes to this
    one later, VERSION would be a wrong message.
    """
    match error:
        case NoAnswer():
            return f"does it serve another front-end? some let the next one wait without a sign{other}"
        case Disconnected():
            return f"its log should say why{', if it speaks vhost-user at all' if other else ''}{other}"
    return "`vhost-user conformance` says what else it does"
