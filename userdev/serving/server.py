"""One address: its clients are served one at a time, and the device behind it outlives each of them.

A second client that comes while one is served is refused at once, after a moment's grace for the old session to end:
waiting would look like a hang. What a session is, and how one refuses, are the protocol's.
"""

from __future__ import annotations

import logging
import threading
from time import monotonic
from typing import TYPE_CHECKING, Generic, Protocol, Self, TypeVar

from userdev.errors import UserError
from userdev.serving.authored import at_work
from userdev.transport import Address, Dialer, Listener, Stream

if TYPE_CHECKING:
    from collections.abc import Callable

log = logging.getLogger("userdev.serving")

GRACE_SECONDS = 2.0
"""That a new client waits for the previous session to end."""

LOOK_SECONDS = 1.0
"""Between two looks at a session that should end."""

END_SECONDS = 10.0
"""That a session may take to end with its server."""


class Served(Protocol):
    """One client's session."""

    def run(self) -> None:
        """Serve until the client goes away or `stop` is called. Raises nothing that a client can cause."""

    def stop(self) -> None:
        """End the session from any thread, whatever it waits for of its client."""

    def free(self) -> bool:
        """End, from any thread, what only a client that means no good can make last.

        Returns whether the client has gone, so that the session ends.
        """


S = TypeVar("S", bound=Served)


class Server(Generic[S]):
    """Serves one client after the other on one address, on threads of its own, until `close`.

    Several servers live in one process without getting into each other's way: each session has its own thread, and
    nothing is shared between them.
    """

    def __init__(
        self,
        address: Address | Listener | Dialer | str,
        session: Callable[[Stream, bool], S],
        refuse: Callable[[Stream], None],
        *,
        ended: Callable[[], None] | None = None,
    ) -> None:
        """Listen on `address`, or connect where a `Dialer` does; serving begins with `start`.

        `session` makes one for a client, and is told whether others could be waiting: not with an inherited
        connection, nor with one of ours. `refuse` answers a client for whom there is no room, on a thread of its own,
        and closes its stream. `ended` is called when there will be no further client: an inherited connection has
        ended, or nobody listens any more where we connect to.

        Raises:
            UserError: the address cannot be listened on.
        """
        self._socket = address if isinstance(address, Listener | Dialer) else Listener(address)
        self.failure: UserError | None = None
        """Why nobody was ever served, once `ended` was called; None where somebody was."""
        self._make = session
        self._refuse = refuse
        self._ended = ended
        self._session: S | None = None
        self._serving: threading.Thread | None = None
        self._accepting = threading.Thread(target=self._accept, name="accept", daemon=True)
        self._closing = False

    @property
    def listener(self) -> Listener:
        """The socket that clients come to; a server that connects has none."""
        assert isinstance(self._socket, Listener)
        return self._socket

    def __str__(self) -> str:
        does = "connects to" if isinstance(self._socket, Dialer) else "is listening on"
        return f"{does} {self._socket.address}"

    def start(self) -> Self:
        """Begin to accept clients; returns at once."""
        self._accepting.start()
        return self

    def close(self) -> None:
        """End the session and stop listening; what was served stays usable. Idempotent.

        A session that a device's own code keeps from ending is left behind after `END_SECONDS`, which is logged.
        """
        self._closing = True
        self._socket.shutdown()
        if self._session is not None:
            self._session.stop()
        end = monotonic() + END_SECONDS
        if self._accepting.ident is not None:
            self._wait_for(self._accepting, end)
        if self._serving is not None:  # by who accepted, until now
            self._wait_for(self._serving, end)
        self._socket.close()

    def _wait_for(self, thread: threading.Thread, end: float) -> None:
        """The session may have begun to wait for its client only now."""
        thread.join(LOOK_SECONDS)
        if thread.is_alive():
            log.warning(
                "the thread %s does not end yet: the device's own code may keep it%s", thread.name, at_work(thread)
            )
        while thread.is_alive():
            if monotonic() > end:
                log.error(
                    "the thread %s does not end: the device's own code may keep it%s", thread.name, at_work(thread)
                )
                return
            if self._session is not None:
                self._session.stop()
            thread.join(LOOK_SECONDS)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    def _accept(self) -> None:
        if isinstance(self._socket, Dialer):
            self._serve_where_connected(self._socket)
        elif self._socket.is_connected:
            self._or_not(Stream(self._socket.socket), self._serve_only)
        else:
            self._serve_who_comes(self._socket)
            return
        if self._ended is not None:
            self._ended()

    def _serve_where_connected(self, dialer: Dialer) -> None:
        try:
            while (stream := dialer.dial()) is not None:
                self._or_not(stream, self._serve_only)
        except UserError as error:
            if self._serving is None:
                self.failure = error
            else:
                log.info("the client has gone, and no other has come: %s", error)

    def _serve_only(self, stream: Stream) -> None:
        self._begin(stream, only=True)
        if self._serving is not None:
            self._serving.join()

    def _serve_who_comes(self, listener: Listener) -> None:
        while not self._closing:
            try:
                stream = listener.accept()
            except OSError:
                return
            self._or_not(stream, self._take)

    def _or_not(self, stream: Stream, serve: Callable[[Stream], None]) -> None:
        """Serve a client, or let it go: without room for a thread, say, the next may be luckier."""
        try:
            serve(stream)
        except Exception:
            log.exception("a client could not be served")
            stream.close()

    def _take(self, stream: Stream) -> None:
        if self._serving is not None:
            self._serving.join(GRACE_SECONDS)
            if self._serving.is_alive() and self._session is not None and self._session.free():
                self._serving.join(GRACE_SECONDS)
            if self._serving.is_alive():
                log.warning("another client came while one is served: refused")
                threading.Thread(target=self._refuse, args=(stream,), daemon=True).start()
                return
        self._begin(stream, only=False)

    def _begin(self, stream: Stream, *, only: bool) -> None:
        session = self._make(stream, only)
        serving = threading.Thread(target=session.run, name="session", daemon=True)
        before = self._session, self._serving
        self._session, self._serving = session, serving  # so that they are known to whoever is served
        try:
            serving.start()
        except RuntimeError:  # there is no room for it: the next client is served as before
            self._session, self._serving = before
            raise
        if self._closing:
            session.stop()
