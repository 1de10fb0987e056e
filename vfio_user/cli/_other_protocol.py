"""A server of the other protocol, and the command that is for it."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from contextlib import closing

from userdev.errors import UserdevError
from userdev.transport import Stream

SECONDS = 1.0
"""That a vhost-user back-end has for its answer, at most: the server has kept its caller waiting before."""


def speaks_vhost_user(connect: Callable[[], Stream], *, timeout: float) -> bool:
    """Whether a back-end answers GET_FEATURES, by a connection of its own.

    That changes nothing of a back-end, and to a server of vfio-user it is a header that ends too early.
    """
    from vhost_user.frontend.connection import Connection  # slow to import, seldom wanted

    try:
        with Connection(connect(), timeout=min(timeout, SECONDS)) as connection:
            connection.settle()
    except UserdevError:
        return False
    return True


def speaks_vfio_user(connect: Callable[[], Stream], *, timeout: float) -> bool:
    """Whether a server agrees on a VERSION, by a connection of its own.

    To a back-end that is a wrong message: for one that serves nobody, and answered nothing of its own protocol.
    """
    from vfio_user.client.conformance import greeting  # as above
    from vfio_user.wire import CURRENT

    try:
        with closing(connect()) as stream:
            greeting(CURRENT)(stream, min(timeout, SECONDS))
    except UserdevError:
        return False
    return True


def probe_command(protocol: str, address: str | None, command: str = "probe") -> str:
    """The command line that probes a server of this protocol; None: at an address that the reader knows."""
    return f"`{protocol} {command} {shlex.quote(address)}`" if address else f"`{protocol} {command}`"
