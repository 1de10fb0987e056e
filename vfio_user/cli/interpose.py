"""`vfio-user interpose`: a process between a client and a server."""

from __future__ import annotations

import signal

import click

from vfio_user.interposer.interposer import Interposer, Setup
from vfio_user.wire import DIALECTS
from vfio_user.wire.dialects import dialect_named


@click.command()
@click.option("--listen", required=True, metavar="ADDRESS", help="Where the client connects to.")
@click.option("--connect", required=True, metavar="ADDRESS", help="Where the server listens.")
@click.option("--dialect", type=click.Choice(list(DIALECTS)), default="current", show_default=True)
@click.option("--trace", type=click.Path(dir_okay=False), help="Record every message in this file.")
def command(listen: str, connect: str, dialect: str, trace: str | None) -> None:
    """Forward a session between a client and any server, and see, break or keep it alive.

    Addresses are PATH, unix:PATH, tcp:HOST:PORT, vsock:CID:PORT or fd:N. Prints one line once it listens; SIGTERM
    and SIGINT end it.
    """
    setup = Setup(listen=listen, connect=connect, dialect=dialect_named(dialect), trace=trace)
    with Interposer(setup) as interposer:
        interposer.loop.stop_on(signal.SIGTERM, signal.SIGINT)
        click.echo(f"listening on {listen}, forwarding to {connect}")
        interposer.run()
