"""`vfio-user interpose`: a process between a client and a server."""

from __future__ import annotations

import json
import signal

import click

from vfio_user.interposer.interposer import Interposer, Setup
from vfio_user.wire import DIALECTS
from vfio_user.wire.dialects import dialect_named


@click.command()
@click.option("--listen", required=True, metavar="ADDRESS", help="Where the client connects to.")
@click.option("--connect", metavar="ADDRESS", help="Where the server listens.")
@click.option("--server-command", metavar="CMD", help="Start the server: {socket} is its path, or {fd} its socket.")
@click.option("--dialect", type=click.Choice(list(DIALECTS)), default="current", show_default=True)
@click.option("--trace", type=click.Path(dir_okay=False), help="Record every message in this file.")
@click.option("--faults", type=click.Path(dir_okay=False), help="Do to messages what this scenario says (YAML).")
@click.option(
    "--print-faults-schema",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=lambda ctx, _, wanted: _print_schema(ctx) if wanted else None,
    help="Print the JSON schema of scenarios and end.",
)
@click.option("--control", metavar="ADDRESS", help="Take commands here: JSON lines.")
def command(
    listen: str,
    connect: str | None,
    server_command: str | None,
    dialect: str,
    trace: str | None,
    faults: str | None,
    control: str | None,
) -> None:
    """Forward a session between a client and any server, and see, break or keep it alive.

    Addresses are PATH, unix:PATH, tcp:HOST:PORT, vsock:CID:PORT or fd:N. Prints one line once it listens; SIGTERM
    and SIGINT end it.
    """
    setup = Setup(
        listen=listen,
        connect=connect,
        server_command=server_command,
        dialect=dialect_named(dialect),
        trace=trace,
        faults=faults,
        control=control,
    )
    with Interposer(setup) as interposer:
        interposer.loop.stop_on(signal.SIGTERM, signal.SIGINT)
        click.echo(f"listening on {listen}, forwarding to {setup.target}")
        interposer.run()


def _print_schema(context: click.Context) -> None:
    from vfio_user.interposer.faults.scenario import Scenario

    click.echo(json.dumps(Scenario.model_json_schema(), indent=2))
    context.exit()
