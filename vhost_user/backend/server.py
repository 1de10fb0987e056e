"""A device behind a socket: its front-ends come one after the other, and it outlives each of them.

A second front-end at the same time is hung up on at once: it would wait for an answer without a limit.
"""

from __future__ import annotations

from collections.abc import Callable

from userdev.errors import UserError
from userdev.serving import server as serving
from userdev.serving.program import run
from userdev.transport import Address, Dialer, Listener, Stream
from vhost_user.backend.session import Session
from vhost_user.backend.withheld import NOTHING, Withheld
from vhost_user.device import VhostDevice

FIRST_SECONDS = 10.0
"""That a front-end has for its first message: one that says nothing keeps all others away. Who was given to us as a
connection may take its time, as there are no others."""


class Server(serving.Server[Session]):
    """Serves one device on one address, on threads of its own, until `close`; the device stays usable."""

    def __init__(
        self,
        device: VhostDevice,
        address: Address | Listener | Dialer | str,
        *,
        withheld: Withheld = NOTHING,
        ended: Callable[[], None] | None = None,
    ) -> None:
        """Listen on `address`, or connect where a `Dialer` does; serving begins with `start`.

        `withheld` are features that front-ends are not offered. `ended` is called when there will be no further
        front-end: an inherited connection has ended, or nobody listens where the `Dialer` connects to.

        Raises:
            UserError: the address cannot be listened on.
        """
        super().__init__(address, self._begin_session, Stream.close, ended=ended)
        self.device = device
        self._withheld = withheld

    def _begin_session(self, stream: Stream, only: bool) -> Session:
        first_seconds = None if only else FIRST_SECONDS
        return Session(self.device, stream, first_seconds=first_seconds, withheld=self._withheld)


def serve(
    device: VhostDevice, address: Address | Dialer | str, *, withheld: Withheld = NOTHING, announce: bool = True
) -> None:
    """Serve `device` until SIGTERM or SIGINT, or until a `Dialer` finds no front-end any more. For the main thread.

    `withheld` are features that front-ends are not offered. From then on the whole process has
    `program.END_SECONDS`: see `userdev.serving.program.run`.

    Raises:
        UserError: the address cannot be listened on, or is a connection: front-ends come again, and would find nobody.
    """

    def make(ended: Callable[[], None]) -> Server:
        server = Server(device, address, withheld=withheld, ended=ended)
        if not isinstance(address, Dialer) and server.listener.is_connected:
            raise UserError(
                f"{address} is a connection, and has to be a socket that listens",
                hint="to connect to where a front-end listens: --client --socket-path PATH",
            )
        return server

    run(make, type(device).__name__ if announce else None)
