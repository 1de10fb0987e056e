"""`vfio-user serve DEVICE`: a device as a program, with the options the specification and the device define."""

from __future__ import annotations

import click

from vfio_user.cli._devices import DeviceGroup
from vfio_user.server.command_line import SERVING


@click.group(cls=DeviceGroup, serving=SERVING)
def command() -> None:
    """Serve a device on a socket, until SIGTERM or Ctrl-C.

    DEVICE is one of those below, or MODULE:CLASS or FILE.py:CLASS of your own. `serve DEVICE --help` shows its options.
    """
