"""What `vhost-user serve` has for every device, and does (specification, "Backend program conventions")."""

from __future__ import annotations

from userdev.serving.command_line import Given, Serving, Setting, address_of, made
from userdev.transport import Dialer
from vhost_user.backend.catalogue import DEVICES
from vhost_user.backend.server import serve
from vhost_user.backend.withheld import Withheld
from vhost_user.device import VhostDevice

RECONNECT_SECONDS = 30.0

SETTINGS = (
    Setting("fd", "Use this inherited socket, which has to be one that listens.", int),
    Setting("client", "Connect to --socket-path: the front-end listens (server=on).", bool, False),
    Setting(
        "reconnect",
        "With --client: wait so long for a front-end, at first and whenever one has gone.",
        float,
        RECONNECT_SECONDS,
        metavar="SECONDS",
        at_least=0,
    ),
    Setting(
        "without",
        "Features that are not offered, as LOG_ALL,INFLIGHT_SHMFD, to see what a front-end does without them.",
        default="",
        metavar="NAME,...",
    ),
)


def _serve(device_class: type[VhostDevice], given: Given) -> None:
    address = _place(given)
    withheld = Withheld.of(filter(None, given.pop("without").split(",")))
    with made(device_class, given) as device:
        serve(device, address, withheld=withheld)


def _place(given: Given) -> str | Dialer:
    address, client, seconds = address_of(given), given.pop("client"), given.pop("reconnect")
    return Dialer(address, seconds) if client else address


SERVING = Serving(DEVICES, SETTINGS, _serve)
