"""`vfio-user replay`: a trace's client against a server, without QEMU."""

from __future__ import annotations

import json
from pathlib import Path

import click

from userdev.errors import UserError, VerdictError
from userdev.fuzz.finds import is_find
from vfio_user.cli._beside import refuse_beside
from vfio_user.cli._choice import Choice
from vfio_user.cli._command import CommandLine
from vfio_user.cli._completion import complete_servers
from vfio_user.cli._progress import quiet_option
from vfio_user.cli._registers import registers as named_registers
from vfio_user.cli._replaying import comparing, played_of, words_of_server
from vfio_user.cli._served import device_as_command
from vfio_user.interposer.replay import replay
from vfio_user.interposer.replay.player import Timing

_OF_A_TRACE = ("timing", "session", "ignore", "registers")
"""Options that say nothing of a find: it has steps, and no recorded answers."""


@click.command(cls=CommandLine)
@click.argument("trace", type=click.Path(dir_okay=False))
@click.option("--server-command", metavar="CMD", help="Start the server: {socket} is its path, or {fd} its socket.")
@click.option("--connect", metavar="ADDRESS", help="Use a server that listens already.")
@device_as_command("vfio-user", complete_servers)
@click.option("--timing", type=Choice(["fast", "recorded"]), default="fast", show_default=True)
@comparing
@click.option("--json", "as_json", is_flag=True, help="Print JSON: every difference by itself.")
@quiet_option("Say nothing where nothing is otherwise.")
@click.pass_context
def command(
    context: click.Context,
    trace: str,
    server_command: str | None,
    connect: str | None,
    timing: Timing,
    session: int,
    ignore: tuple[str, ...],
    registers: str | None,
    patience: float,
    as_json: bool,
    quiet: bool,
) -> None:
    """Play the client's side of TRACE, and report all replies, interrupts and DMA that differ (exit status 1).

    TRACE may be a find of `vfio-user fuzz` too: its steps are played, and what they led to is looked for.
    """
    if is_find(Path(trace)):
        from vfio_user.cli.fuzz import replay_find

        refuse_beside(f"{trace} is a find of `fuzz`, which is played as it is", *_OF_A_TRACE)
        replay_find(Path(trace), server_command, connect, timeout=patience, as_json=as_json, quiet=quiet)
        return
    script = played_of(trace, session)
    if server_command is None and connect is None:
        raise UserError(
            "no server to replay against", hint="give --server-command 'CMD {socket}', --device or --connect ADDRESS"
        )
    with words_of_server(quiet=quiet) as output:
        outcome = replay(
            script,
            server_command,
            connect_to=connect,
            timing=timing,
            ignore=ignore,
            registers=named_registers(registers) if registers else None,
            patience=patience,
            output=output,
        )
        if as_json:
            click.echo(json.dumps(outcome.json(), indent=2))
            if not outcome.same:
                raise click.exceptions.Exit(1)
        elif not outcome.same:
            raise VerdictError(f"{trace}: the server does not do what was recorded", evidence=outcome.text())
    if not (quiet or as_json):
        click.echo(outcome.text())
