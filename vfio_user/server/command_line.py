"""What `vfio-user serve` has for every device, and does: the conventions of the specification, as options."""

from __future__ import annotations

from userdev.serving.command_line import Given, Serving, Setting, address_of, made
from vfio_user.device import PciDevice
from vfio_user.server.catalogue import DEVICES
from vfio_user.server.negotiation import Offer
from vfio_user.server.server import serve
from vfio_user.wire.dialects import DIALECTS, dialect_named

SETTINGS = (
    Setting("fd", "Use this inherited socket, listening or connected.", int),
    Setting("listen", "Listen elsewhere: tcp:HOST:PORT, vsock:CID:PORT.", metavar="ADDRESS"),
    Setting("dialect", "", default="current", choices=tuple(DIALECTS)),
    Setting("trace", "Record all messages in this file, as an interposer would: see `trace`.", metavar="FILE"),
    Setting("write_multiple", "Agree to REGION_WRITE_MULTI; QEMU then queues.", bool, False),
)


def _serve(device_class: type[PciDevice], given: Given) -> None:
    address = address_of(given, "listen")
    dialect = dialect_named(given.pop("dialect"))
    offer = Offer(write_multiple=given.pop("write_multiple"))
    trace = given.pop("trace")
    with made(device_class, given) as device:
        serve(device, address, dialect=dialect, offer=offer, trace=trace)


SERVING = Serving(DEVICES, SETTINGS, _serve)
