"""`vhost-user interpose`: a process between a front-end and a back-end."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from vfio_user.cli._command import CommandLine
from vfio_user.cli._completion import complete_back_ends
from vfio_user.cli._interposing import interposing, run
from vfio_user.cli._outputs import refuse_overwriting
from vfio_user.cli._served import device_as_command
from vhost_user.interposer.interposer import Interposer, Setup

if TYPE_CHECKING:
    from vhost_user.interposer.faults.scenario import Scenario


def _scenario() -> type[Scenario]:
    from vhost_user.interposer.faults.scenario import Scenario

    return Scenario


@click.command(cls=CommandLine)
@interposing(_scenario)
@device_as_command("vhost-user", complete_back_ends)
def command(
    listen: str,
    connect: str | None,
    server_command: str | None,
    server_pid: int | None,
    trace: str | None,
    faults: str | None,
    control: str | None,
) -> None:
    """Forward sessions between a front-end and any back-end, and see or break them.

    Client and server are front-end and back-end; the back-end listens. Addresses are PATH, unix:PATH or fd:N. Prints
    one line once it listens; SIGTERM and SIGINT end it.
    """
    refuse_overwriting(trace, read=(faults,))
    setup = Setup(
        listen=listen,
        connect=connect,
        server_command=server_command,
        server_pid=server_pid,
        trace=trace,
        faults=faults,
        control=control,
    )
    run(Interposer(setup), listen, setup.target)
