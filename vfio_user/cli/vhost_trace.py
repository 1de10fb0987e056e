"""`vhost-user trace`: as `vfio-user trace`, with the dissector of vhost-user."""

from __future__ import annotations

import click

from vfio_user.cli._command import CommandLine, Group
from vfio_user.cli._trace_cut import cut
from vfio_user.cli._trace_diff import diff
from vfio_user.cli._trace_stats import stats
from vfio_user.cli.trace import export, show
from vhost_user.interposer.traces import PACKETS


@click.group(cls=Group)
def command() -> None:
    """Show, count, compare, cut and export traces."""


@click.command(cls=CommandLine)
def dissector() -> None:
    """Print where Wireshark's dissector is: `wireshark -X lua_script:$(vhost-user trace dissector) FILE`."""
    click.echo(PACKETS.dissector)


command.add_command(show)
command.add_command(export)
command.add_command(stats)
command.add_command(diff)
command.add_command(cut)
command.add_command(dissector)
