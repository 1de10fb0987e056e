"""A device behind a socket: accepts its clients, one at a time, and outlives each of them.

A client that goes away leaves the device ready for the next one: its DMA maps and interrupt descriptors are released,
the device's own state stays (specification, "Client Disconnection"). A second client that comes while one is served
is refused at once with EBUSY, after a moment's grace for the old session to end.
"""

from __future__ import annotations

import errno
import logging
import threading
from time import monotonic
from typing import TYPE_CHECKING

from userdev.transport import Address, BadFrame, Framer, Listener, Stream, close_all
from vfio_user.server.negotiation import Offer
from vfio_user.server.session import Session
from vfio_user.wire import CURRENT, Dialect, Message

if TYPE_CHECKING:
    from collections.abc import Callable

    from vfio_user.device import PciDevice

log = logging.getLogger("vfio_user.server")

GRACE = 2.0
"""Seconds that a new client waits for the previous session to end."""

REFUSAL = 1.0
"""Seconds that a refused client has for its VERSION."""

LOOK_SECONDS = 1.0
"""Seconds between two looks at a session that should end."""

VERSION_SECONDS = 10.0
"""Seconds that a client has for its VERSION: one that says nothing keeps all others away. Who was given to us as a
connection may take its time, as there are no others."""

END_SECONDS = 10.0
"""Seconds that a session may take to end with its server."""


class Server:
    """Serves one device on one address, on threads of its own, until `close`.

    Several servers live in one process without getting into each other's way: each session has its own thread, and
    nothing is shared between devices.
    """

    def __init__(
        self,
        device: PciDevice,
        address: Address | Listener | str,
        *,
        dialect: Dialect = CURRENT,
        offer: Offer | None = None,
        ended: Callable[[], None] | None = None,
    ) -> None:
        """Listen on `address`; serving begins with `start`.

        `ended` is called when there will be no further client: an inherited connection has ended.

        Raises:
            UserError: the address cannot be listened on.
        """
        self.device = device
        self.listener = address if isinstance(address, Listener) else Listener(address)
        self._dialect = dialect
        self._offer = offer
        self._ended = ended
        self._session: Session | None = None
        self._serving: threading.Thread | None = None
        self._accepting = threading.Thread(target=self._accept, name="vfio-user accept", daemon=True)
        self._closing = False

    def start(self) -> Server:
        """Begin to accept clients; returns at once."""
        self._accepting.start()
        return self

    def close(self) -> None:
        """End the session and stop listening; the device stays usable. Idempotent.

        A session that a device's own code keeps from ending is left behind after `END_SECONDS`, which is logged.
        """
        self._closing = True
        self.listener.shutdown()
        if self._session is not None:
            self._session.stop()
        end = monotonic() + END_SECONDS
        for thread in (self._accepting, self._serving):
            if thread is not None and thread.ident is not None:
                self._wait_for(thread, end)
        self.listener.close()

    def _wait_for(self, thread: threading.Thread, end: float) -> None:
        """The session may have begun to wait for its client only now."""
        thread.join(LOOK_SECONDS)
        while thread.is_alive():
            if monotonic() > end:
                log.error("%s does not end: the device's own code may keep it", thread.name)
                return
            if self._session is not None:
                self._session.stop()
            thread.join(LOOK_SECONDS)

    def __enter__(self) -> Server:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    def _accept(self) -> None:
        if self.listener.is_connected:
            self._begin(Stream(self.listener.socket), version_seconds=None)
            assert self._serving is not None
            self._serving.join()
            if self._ended is not None:
                self._ended()
            return
        while not self._closing:
            try:
                stream = self.listener.accept()
            except OSError:
                return
            try:
                self._take(stream)
            except Exception:  # no room for a thread, say: the next client may be luckier
                log.exception("a client could not be served")
                stream.close()

    def _take(self, stream: Stream) -> None:
        if self._serving is not None:
            self._serving.join(GRACE)
            if self._serving.is_alive() and self._session is not None and self._session.free():
                self._serving.join(GRACE)
            if self._serving.is_alive():
                threading.Thread(target=_refuse, args=(stream,), daemon=True).start()
                return
        self._begin(stream, version_seconds=VERSION_SECONDS)

    def _begin(self, stream: Stream, *, version_seconds: float | None) -> None:
        self._session = Session(self.device, stream, self._dialect, self._offer, version_seconds=version_seconds)
        self._serving = threading.Thread(target=self._session.run, name="vfio-user session", daemon=True)
        self._serving.start()
        if self._closing:
            self._session.stop()


def _refuse(stream: Stream) -> None:
    """Answer a second client's VERSION with EBUSY."""
    log.warning("another client came while one is served: refused")
    framer = Framer(Message)
    end = monotonic() + REFUSAL
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
