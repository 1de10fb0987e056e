"""`vhost-user serve DEVICE`: a virtio device as a program (specification, "Backend program conventions")."""

from __future__ import annotations

import click

from vfio_user.cli._devices import DeviceGroup, Given, address_of, made
from vhost_user.backend import DEVICES, Withheld, serve
from vhost_user.device import VhostDevice


def _options() -> list[click.Parameter]:
    without = "Features that are not offered, to see what a front-end does without them: LOG_ALL,INFLIGHT_SHMFD"
    return [click.Option(["--without"], metavar="NAME,...", default="", help=without)]


def _serve(device_class: type[VhostDevice], given: Given) -> None:
    address = address_of(given)
    withheld = Withheld.of(filter(None, given.pop("without").split(",")))
    with made(device_class, given) as device:
        serve(device, address, withheld=withheld)


@click.group(cls=DeviceGroup, catalogue=DEVICES, options=_options, serve=_serve)
def command() -> None:
    """Serve a virtio device on a socket, until SIGTERM or Ctrl-C.

    DEVICE is one of those below, or MODULE:CLASS or FILE.py:CLASS of your own. `serve DEVICE --help` shows its options.
    """
