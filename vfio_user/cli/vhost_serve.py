"""`vhost-user serve DEVICE`: a virtio device as a program (specification, "Backend program conventions")."""

from __future__ import annotations

import click

from vfio_user.cli._devices import DeviceGroup
from vhost_user.backend.command_line import SERVING


@click.group(cls=DeviceGroup, serving=SERVING)
def command() -> None:
    """Serve a virtio device on a socket, until SIGTERM or Ctrl-C.

    DEVICE is one of those below, or MODULE:CLASS or FILE.py:CLASS of your own. `serve DEVICE --help` shows its options.
    """
