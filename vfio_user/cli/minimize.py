"""`vfio-user minimize`: the shortest trace that still fails."""

from __future__ import annotations

from pathlib import Path

import click

from vfio_user.cli.replay import parse_places
from vfio_user.interposer.replay import minimize
from vfio_user.interposer.replay.player import PATIENCE_SECONDS


@click.command()
@click.argument("trace", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--server-command", required=True, metavar="CMD", help="The server; started anew for every attempt.")
@click.option("--check", metavar="CMD", help="Decide by CMD: {trace} is the candidate; it fails while CMD does.")
@click.option("--output", "-o", type=click.Path(dir_okay=False, path_type=Path), help="Default: TRACE.min")
@click.option("--ignore", multiple=True, metavar="REGION:OFFSET", help="A register that may read differently.")
@click.option("--patience", default=PATIENCE_SECONDS, show_default=True, help="Seconds to wait for anything recorded.")
def command(
    trace: Path, server_command: str, check: str | None, output: Path | None, ignore: tuple[str, ...], patience: float
) -> None:
    """Shrink a failing TRACE while it still fails: the same wrong reply, or the same way of failing."""
    found = minimize(
        trace,
        server_command,
        check=check,
        ignore=parse_places(ignore),
        patience=patience,
        progress=lambda left, replays: click.echo(f"{left} messages left after {replays} replays", err=True),
    )
    output = output or trace.with_name(trace.name + ".min")
    found.script.write(output)
    click.echo(f"{output}: {found.after} of {found.before} messages, after {found.replays} replays")
    if found.difference is not None:
        click.echo(str(found.difference))
