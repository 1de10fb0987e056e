"""A device behind a socket: accepts its clients, one at a time, and outlives each of them.

A client that goes away leaves the device ready for the next one: its DMA maps and interrupt descriptors are released,
the device's own state stays (specification, "Client Disconnection"). A second client at the same time is refused with
EBUSY.
"""

from __future__ import annotations

import errno
from contextlib import ExitStack, closing
from time import monotonic
from typing import TYPE_CHECKING

from userdev.busy_wait import BusyWait
from userdev.serving import server as serving
from userdev.serving.program import run
from userdev.transport import Address, BadFrame, Framer, Listener, Stream, close_all
from vfio_user.device import PciDevice, function_of
from vfio_user.server.negotiation import Offer
from vfio_user.server.session import Session
from vfio_user.wire import CURRENT, Dialect, Message

if TYPE_CHECKING:
    from collections.abc import Callable

    from userdev.trace import TraceWriter

REFUSAL_SECONDS = 1.0
"""That a refused client has for its VERSION."""

VERSION_SECONDS = 10.0
"""That a client has for its VERSION: one that says nothing keeps all others away. Who was given to us as a connection
may take its time, as there are no others."""


class Server(serving.Server[Session]):
    """Serves one device on one address, on threads of its own, until `close`; the device stays usable."""

    def __init__(
        self,
        device: PciDevice,
        address: Address | Listener | str,
        *,
        dialect: Dialect = CURRENT,
        offer: Offer | None = None,
        ended: Callable[[], None] | None = None,
        trace: TraceWriter | None = None,
    ) -> None:
        """Listen on `address`; serving begins with `start`.

        `ended` is called when there will be no further client: an inherited connection has ended. `trace` records the
        messages of all sessions; it stays the caller's.

        Raises:
            UserError: the address cannot be listened on.
        """
        super().__init__(address, self._begin_session, _refuse, ended=ended)
        self.device = device
        self._dialect = dialect
        self._offer = offer
        self._trace = trace
        self._busy_wait = BusyWait()  # of its sessions in turn: one may be too short to learn that looking pays

    def _begin_session(self, stream: Stream, only: bool) -> Session:
        patience = None if only else VERSION_SECONDS
        function = function_of(self.device)
        return Session(
            function,
            stream,
            self._dialect,
            self._offer,
            version_seconds=patience,
            trace=self._trace,
            busy_wait=self._busy_wait,
        )


def serve(
    device: PciDevice,
    address: Address | str,
    *,
    dialect: Dialect = CURRENT,
    offer: Offer | None = None,
    announce: bool = True,
    trace: str | None = None,
) -> None:
    """Serve `device` until SIGTERM or SIGINT, or until an inherited connection ends. For the main thread.

    From then on the whole process has `program.END_SECONDS`: see `userdev.serving.program.run`. `trace` is a file that
    all messages are recorded in, or `fd:N`; what one had recorded there is kept beside it.

    Raises:
        UserError: the address cannot be listened on, or the trace not be written.
    """
    name = type(device).__name__ if announce else None
    with ExitStack() as held:
        writer = held.enter_context(closing(_trace(trace, dialect))) if trace is not None else None
        run(lambda ended: Server(device, address, dialect=dialect, offer=offer, ended=ended, trace=writer), name)


def _trace(path: str, dialect: Dialect) -> TraceWriter:
    from userdev.trace import TraceWriter  # which most servers do not need

    return TraceWriter(path, "vfio-user", {"dialect": dialect.name})


def _refuse(stream: Stream) -> None:
    """Answer a second client's VERSION with EBUSY."""
    framer = Framer(Message)
    end = monotonic() + REFUSAL_SECONDS
    try:
        while (message := framer.next()) is None:
            stream.socket.settimeout(max(end - monotonic(), 0.001))
            count, fds = stream.receive(framer.room())
            framer.received(count, fds)
            if not count:
                return
        close_all(message.fds)
        stream.send(message.error(errno.EBUSY).encode())
    except (OSError, BadFrame):
        pass
    finally:
        framer.close()
        stream.close()
