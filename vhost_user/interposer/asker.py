"""The two connections of a session, by who asks on them, and what they and their requests are called."""

from __future__ import annotations

from enum import Enum

from userdev.errors import meant
from userdev.relay.direction import Direction
from vhost_user.wire import BackEndRequest, FrontEndRequest

_BACK_END = "BACKEND_"
"""Before the names of the back-end's requests, as the specification has them: IOTLB_MSG is in both tables."""


class Asker(Enum):
    """Who makes the requests on a connection; the value is its number in traces."""

    FRONT_END = 0
    """On the connection that it made."""
    BACK_END = 1
    """On the one that SET_BACKEND_REQ_FD gave it: the back-end's channel."""

    @property
    def label(self) -> str:
        """The word for the channel in traces; none for the front-end's connection."""
        return "" if self is Asker.FRONT_END else "back-end"

    @property
    def asking(self) -> Direction:
        """The way that requests travel."""
        return Direction.TO_SERVER if self is Asker.FRONT_END else Direction.TO_CLIENT

    @property
    def requests(self) -> type[FrontEndRequest] | type[BackEndRequest]:
        """Those that are made."""
        return FrontEndRequest if self is Asker.FRONT_END else BackEndRequest

    def request(self, number: int) -> FrontEndRequest | BackEndRequest | None:
        """The request of this number; None where there is none."""
        try:
            return self.requests(number)
        except ValueError:
            return None


def name_of(request: FrontEndRequest | BackEndRequest) -> str:
    """The name of a request, as traces and scenarios have it: that of the specification without VHOST_USER_."""
    return request.name if isinstance(request, FrontEndRequest) else _BACK_END + request.name


ASKERS = {asker.label: asker for asker in Asker}
"""By the word that traces have for the channel."""
REQUESTS = {name_of(request): request for asker in Asker for request in asker.requests}
"""All requests of both, by name."""


def request_named(name: str) -> str:
    """The name of a request, in any case and with or without VHOST_USER_, as it is written here.

    Raises:
        ValueError: there is none.
    """
    wanted = name.upper().removeprefix("VHOST_USER_")
    if wanted not in REQUESTS:
        raise ValueError(f"{name!r} is no message: {meant(wanted, REQUESTS)}there are: {', '.join(REQUESTS)}")
    return wanted
