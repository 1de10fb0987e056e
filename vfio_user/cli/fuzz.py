"""`vfio-user fuzz`: any server, by sequences of valid and nearly valid use that are made of what was probed."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from userdev.errors import UserError
from userdev.fuzz import Find
from userdev.fuzz.levels import level_of
from vfio_user.cli._choice import Choice
from vfio_user.cli._command import CommandLine
from vfio_user.cli._completion import complete_servers
from vfio_user.cli._conformance import Target, server
from vfio_user.cli._fuzzing import Asked, carry_out, options, play_again
from vfio_user.cli._other_protocol import played_by
from vfio_user.cli._served import one_command
from vfio_user.client.conformance import greeting
from vfio_user.fuzz import DIALECTS, ORACLES, PROTOCOL, VfioUserSubject
from vfio_user.wire import DIALECTS as ALL_DIALECTS


@click.command(cls=CommandLine)
@options("SOCKET", "server", complete=complete_servers)
@click.option("--dialect", type=Choice(DIALECTS), default="current", show_default=True)
def command(dialect: str, **given: Any) -> None:
    """Look for what the server at SOCKET does wrong, or the one that a command starts, or ours of a device.

    Sequences of valid and nearly valid use are drawn of what the server says it has, and held to rules that are every
    server's (--oracles lists them). What is found is made small, told apart by its cause and kept: `vfio-user replay
    FILE` plays it again, and `vfio-user conformance --corpus DIR` all of them. The exit status is 0 where nothing was
    found, and 1 where something was.
    """
    asked, spoken = Asked(**given), ALL_DIALECTS[dialect]
    if asked.device is not None:
        started = one_command(asked.address, asked.server_command, asked.device, PROTOCOL)
        asked = replace(asked, server_command=started)

    def made(target: Target, reference: VfioUserSubject | None) -> VfioUserSubject:
        return VfioUserSubject(
            target, spoken, timeout=asked.timeout, reference=reference, ignored=asked.is_ignored, level=asked.level
        )

    carry_out(asked, greeting(spoken), ORACLES, made)


def replay_find(
    path: Path, server_command: str | None, address: str | None, *, timeout: float, as_json: bool, quiet: bool
) -> None:
    """Play a find again, as `vfio-user replay` does with its file; raises as `play_again`."""
    find = Find.read(path)
    if find.protocol != PROTOCOL:
        raise UserError(
            f"{path} is a find of {find.protocol}",
            hint=f"{played_by(find, path)} plays it",
        )
    spoken = ALL_DIALECTS.get(find.subject.get("dialect", ""), ALL_DIALECTS["current"])
    with server(address, server_command, greeting(spoken), timeout=timeout) as target:
        target.try_out()
        with closing(VfioUserSubject(target, spoken, timeout=timeout, level=level_of(find))) as subject:
            play_again(find, subject, target, path, as_json=as_json, quiet=quiet)
