"""`vhost-user fuzz`: any back-end, by messages and contents of rings that are drawn."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import click

from vfio_user.cli._choice import Choice
from vfio_user.cli._conformance import server
from vfio_user.cli._fuzzing import Asked, carry_out, list_oracles, options
from vhost_user.frontend.conformance import DEVICES, greet
from vhost_user.fuzz import ORACLES, BackEndPlayer


@click.command()
@options("ADDRESS")
@click.option("--device", type=Choice(list(DEVICES)), help="What is served; the protocol does not say that.")
@click.option("--against", metavar="'CMD {socket}'", help="A reference back-end, which has to answer the same.")
def command(device: str | None, against: str | None, **given: Any) -> None:
    """Look for what the back-end at ADDRESS does wrong, or the one that a command starts.

    Sequences of messages, requests and rings, right and nearly right, are drawn, and held to rules that are every
    back-end's (--oracles lists them). Without --device no request is made. A disk is written to. What is found is made
    small, told apart by its cause and kept: `vhost-user conformance --corpus DIR` plays it again. The exit status is 0
    where nothing was found, and 1 where something was.
    """
    asked = Asked(**given)
    if asked.list_oracles:
        list_oracles(ORACLES)
        return
    kind = None if device is None else DEVICES[device]
    with ExitStack() as stack:
        reference = None
        if against is not None:
            other = stack.enter_context(server(None, against, greet, timeout=asked.timeout))
            other.try_out()
            reference = BackEndPlayer(other, kind, timeout=asked.timeout)
        target = stack.enter_context(server(asked.address, asked.server_command, greet, timeout=asked.timeout))
        if habit := target.try_out():
            click.echo(habit, err=True)
        player = BackEndPlayer(target, kind, timeout=asked.timeout, reference=reference)
        stack.callback(player.close)
        carry_out(asked, player)
