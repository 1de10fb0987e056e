"""`vhost-user fuzz`: any back-end, by messages and contents of rings that are drawn."""

from __future__ import annotations

from typing import Any

import click

from vfio_user.cli._choice import Choice
from vfio_user.cli._conformance import Target
from vfio_user.cli._fuzzing import Asked, carry_out, options
from vhost_user.frontend.conformance import DEVICES, greet
from vhost_user.fuzz import ORACLES, VhostUserSubject


@click.command()
@options("ADDRESS", "back-end")
@click.option("--device", type=Choice(list(DEVICES)), help="What is served; the protocol does not say that.")
def command(device: str | None, **given: Any) -> None:
    """Look for what the back-end at ADDRESS does wrong, or the one that a command starts.

    Sequences of messages, requests and rings, right and nearly right, are drawn, and held to rules that are every
    back-end's (--oracles lists them). Without --device no request is made. A disk is written to. What is found is made
    small, told apart by its cause and kept: `vhost-user conformance --corpus DIR` plays it again. The exit status is 0
    where nothing was found, and 1 where something was.
    """
    asked, kind = Asked(**given), None if device is None else DEVICES[device]

    def made(target: Target, reference: VhostUserSubject | None) -> VhostUserSubject:
        return VhostUserSubject(target, kind, timeout=asked.timeout, reference=reference)

    carry_out(asked, greet, ORACLES, made)
