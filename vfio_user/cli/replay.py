"""`vfio-user replay`: a trace's client against a server, without QEMU."""

from __future__ import annotations

from pathlib import Path

import click

from userdev.errors import VerdictError
from userdev.fuzz.finds import is_find
from vfio_user.interposer.replay import replay
from vfio_user.interposer.replay.player import PATIENCE_SECONDS, Timing
from vfio_user.interposer.replay.script import load_script
from vfio_user.interposer.trace.show import parse_offsets, parse_region


def parse_places(texts: tuple[str, ...]) -> set[tuple[int, int]]:
    """(region, offset) of each REGION:OFFSET."""
    places: set[tuple[int, int]] = set()
    for text in texts:
        region, _, offset = text.partition(":")
        first, last = parse_offsets(offset)
        places |= {(parse_region(region), place) for place in range(first, last + 1)}
    return places


@click.command()
@click.argument("trace", type=click.Path(dir_okay=False))
@click.option("--server-command", metavar="CMD", help="Start the server: {socket} is its path, or {fd} its socket.")
@click.option("--connect", metavar="ADDRESS", help="Use a server that listens already.")
@click.option("--timing", type=click.Choice(["fast", "recorded"]), default="fast", show_default=True)
@click.option("--session", default=1, show_default=True, help="Which of the trace's sessions.")
@click.option("--ignore", multiple=True, metavar="REGION:OFFSET", help="A register that may read differently.")
@click.option("--patience", default=PATIENCE_SECONDS, show_default=True, help="Seconds to wait for anything recorded.")
def command(
    trace: str,
    server_command: str | None,
    connect: str | None,
    timing: Timing,
    session: int,
    ignore: tuple[str, ...],
    patience: float,
) -> None:
    """Play the client's side of TRACE, and report the first reply, interrupt or DMA write that differs (exit 1).

    TRACE may be a find of `vfio-user fuzz` too: its steps are played, and what they led to is looked for.
    """
    if is_find(Path(trace)):
        from vfio_user.cli.fuzz import replay_find

        replay_find(Path(trace), server_command, connect, timeout=patience)
        return
    outcome = replay(
        load_script(trace, session),
        server_command,
        connect_to=connect,
        timing=timing,
        ignore=parse_places(ignore),
        patience=patience,
    )
    if outcome.difference is not None:
        raise VerdictError(f"{trace}: the server does not do what was recorded", evidence=outcome.text())
    click.echo(outcome.text())
