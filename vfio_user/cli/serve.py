"""`vfio-user serve DEVICE`: a device as a program, with the options the specification and the device define."""

from __future__ import annotations

import click

from vfio_user.cli._choice import Choice
from vfio_user.cli._devices import DeviceGroup, Given, address_of, made
from vfio_user.device import PciDevice
from vfio_user.server.catalogue import DEVICES
from vfio_user.server.negotiation import Offer
from vfio_user.server.server import serve
from vfio_user.wire.dialects import DIALECTS, dialect_named


def _options() -> list[click.Parameter]:
    return [
        click.Option(["--fd"], type=int, help="Use this inherited socket, listening or connected."),
        click.Option(["--listen"], metavar="ADDRESS", help="Listen elsewhere: tcp:HOST:PORT, vsock:CID:PORT."),
        click.Option(["--dialect"], type=Choice(list(DIALECTS)), default="current", show_default=True),
        click.Option(["--write-multiple"], is_flag=True, help="Agree to REGION_WRITE_MULTI; QEMU then queues."),
    ]


def _serve(device_class: type[PciDevice], given: Given) -> None:
    address = address_of(given, "listen")
    dialect = dialect_named(given.pop("dialect"))
    offer = Offer(write_multiple=given.pop("write_multiple"))
    with made(device_class, given) as device:
        serve(device, address, dialect=dialect, offer=offer)


@click.group(cls=DeviceGroup, catalogue=DEVICES, options=_options, serve=_serve)
def command() -> None:
    """Serve a device on a socket, until SIGTERM or Ctrl-C.

    DEVICE is one of those below, or MODULE:CLASS or FILE.py:CLASS of your own. `serve DEVICE --help` shows its options.
    """
