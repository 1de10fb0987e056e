"""The program between a client and a server: listens, connects, and runs one session after the other."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from vfio_user.errors import UserError
from vfio_user.interposer.loop import READ, Loop
from vfio_user.interposer.session import Session
from vfio_user.interposer.trace import TraceWriter
from vfio_user.transport import Address, Listener, Stream, connect
from vfio_user.wire import CURRENT, Dialect

CONNECT_TIMEOUT = 5.0


@dataclass
class Setup:
    """How an interposer is to run."""

    listen: str
    connect: str
    dialect: Dialect = CURRENT
    trace: str | None = None


class Interposer:
    """Listens as soon as it exists. `run` returns when it has been stopped; `close` leaves nothing behind."""

    def __init__(self, setup: Setup, loop: Loop | None = None) -> None:
        """Start to listen.

        Raises:
            UserError: the address cannot be listened on, or the trace not be written.
        """
        self.setup = setup
        self.loop = loop or Loop()
        self.session: Session | None = None
        self.sessions = 0
        self.on_session: list[Callable[[Session], None]] = []
        """Called with each session before its first message."""
        self._upstream = Address.parse(setup.connect)
        self._listener = Listener(setup.listen)
        self._only_client = self._listener.is_connected
        self._closing = False
        self.trace: TraceWriter | None = None
        if setup.trace is not None:
            try:
                self.trace = TraceWriter(setup.trace, self._about())
            except UserError:
                self._listener.close()
                raise
            self.loop.at_end_of_turn(self.trace.flush)

    def run(self) -> None:
        """Serve clients until the loop is stopped."""
        if self._only_client:
            self._begin(Stream(self._listener.socket))
        else:
            self._listen()
        self.loop.run()

    def close(self) -> None:
        self._closing = True
        if self.session is not None:
            self.session.close()
        self._listener.close()
        if self.trace is not None:
            self.trace.close()
        self.loop.close()

    def __enter__(self) -> Interposer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def connect_server(self) -> Stream:
        """A connection to the server.

        Raises:
            UserError: there is none.
        """
        return connect(self._upstream, timeout=CONNECT_TIMEOUT)

    def _listen(self) -> None:
        self.loop.watch(self._listener.socket.fileno(), lambda _: self._accept(), READ)

    def _accept(self) -> None:
        """Take the next client; the one after it waits in the backlog until this one is gone."""
        client = self._listener.accept()
        self.loop.forget(self._listener.socket.fileno())
        self._begin(client)

    def _begin(self, client: Stream) -> None:
        try:
            server = self.connect_server()
        except UserError as error:
            warn(str(error))
            if self.trace is not None:
                self.trace.note("no-server", why=str(error))
            client.close()
            self._session_ended()
            return
        self.sessions += 1
        session = Session(self.loop, client, server, self.setup.dialect, trace=self.trace, on_end=self._session_ended)
        self.session = session
        for prepare in self.on_session:
            prepare(session)
        session.start()

    def _session_ended(self) -> None:
        self.session = None
        if self.trace is not None:
            self.trace.flush()
        if self._only_client:
            self.loop.stop()
        elif not self._closing:
            self._listen()

    def _about(self) -> dict[str, Any]:
        return {
            "program": f"vfio-user {version('vfio-user')}",
            "dialect": self.setup.dialect.name,
            "listen": self.setup.listen,
            "connect": self.setup.connect,
        }


def warn(text: str) -> None:
    """Tell whoever runs the interposer something."""
    print(f"vfio-user interpose: {text}", file=sys.stderr, flush=True)
