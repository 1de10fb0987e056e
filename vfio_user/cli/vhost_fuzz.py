"""`vhost-user fuzz`: any back-end, by messages and contents of rings that are drawn."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import click

from vfio_user.cli._command import CommandLine
from vfio_user.cli._completion import complete_checked_back_ends
from vfio_user.cli._conformance import Target
from vfio_user.cli._fuzzing import Asked, carry_out, options
from vfio_user.cli._served import known_command_of
from vfio_user.cli._vhost_kinds import KINDS, served_kind
from vhost_user.frontend.conformance import greet
from vhost_user.fuzz import ORACLES, PROTOCOL, VhostUserSubject


@click.command(cls=CommandLine)
@options("ADDRESS", "back-end", complete=complete_checked_back_ends, device=KINDS)
def command(**given: Any) -> None:
    """Look for what the back-end at ADDRESS does wrong, or the one that a command starts, or ours of a device.

    Sequences of messages, requests and rings, right and nearly right, are drawn, and held to rules that are every
    back-end's (--oracles lists them). Without --device no request is made. A disk is written to. What is found is made
    small, told apart by its cause and kept: `vhost-user conformance --corpus DIR` plays it again. The exit status is 0
    where nothing was found, and 1 where something was.
    """
    asked = Asked(**given)
    alone = not (asked.address or asked.server_command)
    kind = served_kind(asked.device, alone=alone)
    if asked.device is not None and alone:
        asked = replace(asked, server_command=known_command_of(asked.device, PROTOCOL))

    def made(target: Target, reference: VhostUserSubject | None) -> VhostUserSubject:
        return VhostUserSubject(
            target, kind, timeout=asked.timeout, reference=reference, ignored=asked.is_ignored, level=asked.level
        )

    carry_out(asked, greet, ORACLES, made)
