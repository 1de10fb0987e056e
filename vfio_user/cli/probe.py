"""`vfio-user probe`: an lspci-like description of any server's device."""

from __future__ import annotations

import json
from dataclasses import asdict

import click

from vfio_user.client import Client, NoAnswer, RemoteError
from vfio_user.client.description import Description, describe, render
from vfio_user.errors import ProtocolError, UserError
from vfio_user.wire import CURRENT, DIALECTS, DRAFT_V6, Dialect

_AUTO = (CURRENT, DRAFT_V6)


@click.command()
@click.argument("socket")
@click.option(
    "--dialect",
    type=click.Choice(["auto", *DIALECTS]),
    default="auto",
    show_default=True,
    help="auto tries current, then draft-v6.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--timeout", type=float, default=5.0, show_default=True, help="Seconds that each answer may take.")
def command(socket: str, dialect: str, as_json: bool, timeout: float) -> None:
    """Describe the device behind SOCKET (a path, unix:PATH, tcp:HOST:PORT, vsock:CID:PORT) without changing it."""
    description = _describe(socket, _AUTO if dialect == "auto" else (DIALECTS[dialect],), timeout)
    click.echo(json.dumps(asdict(description), indent=2) if as_json else render(description), nl=as_json)


def _describe(address: str, dialects: tuple[Dialect, ...], timeout: float) -> Description:
    refused: list[str] = []
    for dialect in dialects:
        try:
            client = Client.connect(address, dialect=dialect, timeout=timeout)
        except (RemoteError, ProtocolError, ConnectionError) as error:
            refused.append(f"{dialect.name}: {error}")
            continue
        except NoAnswer as error:
            raise UserError(
                f"{address}: {error}", hint="a server that serves another client, or one of 2020 that speaks first?"
            ) from None
        with client:
            try:
                return describe(client)
            except (RemoteError, ProtocolError, ConnectionError, NoAnswer) as error:
                raise UserError(
                    f"{address}: {error}", hint="a device that is stopped for migration answers no questions"
                ) from None
    raise UserError(f"{address}: no version was agreed on\n  " + "\n  ".join(refused))
