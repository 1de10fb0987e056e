"""A server, a find or a command of the other protocol, and the command that is for it."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from userdev.errors import UserdevError
from userdev.transport import Stream

if TYPE_CHECKING:
    from userdev.fuzz import Find

SECONDS = 1.0
"""That a vhost-user back-end has for its answer, at most: the server has kept its caller waiting before."""

_NOT_AGAIN = "no trace of vhost-user is played again, as its requests are in memory, which no trace has"
_INSTEAD = {
    ("vhost-user", "replay"): f"{_NOT_AGAIN}; `vhost-user conformance --corpus DIR` plays finds of `fuzz`",
    ("vhost-user", "minimize"): f"{_NOT_AGAIN}; `vhost-user fuzz` makes small by itself what it finds",
    ("vhost-user", "new"): "`vfio-user new --protocol vhost-user` is one",
    ("vhost-user", "reference"): "that of `vfio-user` is for its own protocol; `vhost-user peer` fetches real programs",
}
"""By program and command: what to do where the other program's command of this name does not do it."""


def instead(program: str, command: str) -> str:
    """What to do where a program has no such command and the other's is for other things; "" where that does it."""
    return _INSTEAD.get((program, command), "")


def played_by(find: Find, path: Path) -> str:
    """The command line that plays a find again, but for its server."""
    if find.protocol == "vfio-user":
        return f"`vfio-user replay {shlex.quote(str(path))}`"
    only = f"--corpus {shlex.quote(str(path.parent))} --only {shlex.quote(f'corpus/{path.stem}')}"
    device = " --device, as it was found," if find.subject.get("device") else ""
    return f"`{find.protocol} conformance {only}` with{device} its server"


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
