"""`vhost-user serve DEVICE`: a virtio device as a program (specification, "Backend program conventions")."""

from __future__ import annotations

import click

from userdev.transport import Dialer
from vfio_user.cli._devices import DeviceGroup, Given, address_of, made
from vhost_user.backend import DEVICES, Withheld, serve
from vhost_user.device import VhostDevice

RECONNECT_SECONDS = 30.0


def _options() -> list[click.Parameter]:
    without = "Features that are not offered, to see what a front-end does without them: LOG_ALL,INFLIGHT_SHMFD"
    again = "With --client: wait so long for a front-end, at first and whenever one has gone."
    return [
        click.Option(["--fd"], type=int, help="Use this inherited socket, which has to be one that listens."),
        click.Option(["--client"], is_flag=True, help="Connect to --socket-path: the front-end listens (server=on)."),
        click.Option(
            ["--reconnect"], type=click.FloatRange(0), metavar="SECONDS", default=RECONNECT_SECONDS, help=again
        ),
        click.Option(["--without"], metavar="NAME,...", default="", help=without),
    ]


def _serve(device_class: type[VhostDevice], given: Given) -> None:
    address = _place(given)
    withheld = Withheld.of(filter(None, given.pop("without").split(",")))
    with made(device_class, given) as device:
        serve(device, address, withheld=withheld)


def _place(given: Given) -> str | Dialer:
    address, client, seconds = address_of(given), given.pop("client"), given.pop("reconnect")
    return Dialer(address, seconds) if client else address


@click.group(cls=DeviceGroup, catalogue=DEVICES, options=_options, serve=_serve)
def command() -> None:
    """Serve a virtio device on a socket, until SIGTERM or Ctrl-C.

    DEVICE is one of those below, or MODULE:CLASS or FILE.py:CLASS of your own. `serve DEVICE --help` shows its options.
    """
