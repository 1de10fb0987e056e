"""A server under test, as a command line names one: by its address, or by the command that starts it."""

from __future__ import annotations

import select
import shlex
import signal
from contextlib import closing, suppress
from typing import Self

from vfio_user.client import Client
from vfio_user.errors import UserError, VfioUserError
from vfio_user.harness.deadline import Deadline
from vfio_user.harness.process import Child
from vfio_user.harness.scratch import Scratch
from vfio_user.transport import Stream, connect
from vfio_user.wire import Dialect

START = 20.0
"""Seconds that a server has to listen."""

LINGERS = 0.5
"""Seconds that a server has to end with its client, if it does."""

GIVES_UP = 0.05
"""The same for one that ends only where it refuses a client."""

_POLITE = frozenset({0, -signal.SIGTERM, -signal.SIGKILL})
"""How a server ends that we ended, or that ends with its client, as the specification lets it."""


class RunningServer:
    """A server that somebody else runs."""

    pid = None

    def __init__(self, address: str, *, timeout: float) -> None:
        self.address = address
        self._timeout = timeout

    def try_out(self, dialect: Dialect) -> str:
        """Raise `UserError` where there is no server: that is no verdict."""
        self.connect().close()
        return ""

    def connect(self) -> Stream:
        return connect(self.address, timeout=self._timeout)

    def renew(self) -> None:
        return

    def crashed(self) -> str:
        return ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return


class CommandServer:
    """A server that is started from a command with `{socket}` in it, whenever there is none.

    One that ends with its client, as `try_out` finds out, is started for each: to connect to a server that is about to
    end would be a race.
    """

    def __init__(self, command: str, *, timeout: float) -> None:
        """Nothing runs yet.

        Raises:
            UserError: the command does not say where the socket goes.
        """
        if "{socket}" not in command:
            raise UserError(f"the server command has no {{socket}}: {command}", hint="say where the socket path goes")
        self._argv = shlex.split(command)
        self._timeout = timeout
        self._scratch = Scratch()
        self._child: Child | None = None
        self._count = 0
        self._crash = ""
        self._clients: list[Stream] = []
        self._lingers = 0.0  # seconds that it gets to end by itself, where it does that at all
        self._polite = _POLITE

    def try_out(self, dialect: Dialect) -> str:
        """Learn what the server does when a client leaves, before VERSION and after it; words for what is unusual.

        Raises:
            UserError: it does not come up.
        """
        habits = []
        for when, talk, lingers in (("before", False, GIVES_UP), ("after", True, LINGERS)):
            with closing(self.connect()) as stream, suppress(VfioUserError):
                if talk:
                    Client(stream, dialect=dialect, timeout=self._timeout).negotiate(minor=0)
            status = self._child.wait(LINGERS) if self._child is not None else None
            if status is not None and status >= 0:
                habits.append(f"status {status} when a client leaves {when} VERSION")
                self._polite |= {status}
                self._lingers = lingers
            self.renew()
            self._crash = ""  # the checks will see it again
        return f"the server ends with {' and '.join(habits)}: each client gets a fresh one" * bool(habits)

    @property
    def pid(self) -> int | None:
        return self._child.pid if self._child is not None and self._child.running else None

    def connect(self) -> Stream:
        """Connect to the running server, or to a new one.

        The connection is also the sign that it listens: a connection just to see would be a client to it.
        """
        if self._child is None or not self._child.running or (self._lingers and self._is_left()):
            self._start()
        assert self._child is not None
        deadline = Deadline(START)
        while True:
            try:
                stream = connect(self._path(), timeout=self._timeout)
            except UserError:
                code = self._child.wait(0.002)
                if code is not None and self._clients:  # it was about to end
                    self._start()
                elif code is not None:
                    raise UserError(
                        f"the server {self._child.fate()} before it listened:\n{self._child.last_words()}"
                    ) from None
                elif deadline.passed:
                    raise UserError(
                        f"the server does not listen on {self._path()} after {START:g} s:\n{self._child.last_words()}"
                    ) from None
            else:
                self._clients.append(stream)
                return stream

    def renew(self) -> None:
        """End the server; the next connection starts another."""
        if self._child is not None:
            if self._is_left():
                self._child.wait(self._lingers)  # how it ends by itself is part of the verdict
            self._end(self._child)
            self._child = None
        self._clients.clear()

    def crashed(self) -> str:
        if self._child is not None and not self._child.running:
            self.renew()
        crash, self._crash = self._crash, ""
        return crash

    def _start(self) -> None:
        self.renew()
        self._count += 1
        argv = [part.replace("{socket}", self._path()) for part in self._argv]
        log = self._scratch.path / f"server-{self._count}.log"
        self._child = Child("server", argv, log=log, environment=self._scratch.environment)

    def _end(self, child: Child) -> None:
        died = not child.running
        fate = child.fate()
        code = child.stop()
        if code not in self._polite:
            how = fate if died else f"ended with status {code} when it was asked to end"
            self._crash = f"the server {how}:\n{child.last_words()}"

    def _is_left(self) -> bool:
        """Whether it has had clients, and all have gone."""
        return bool(self._clients) and all(_has_ended(client) for client in self._clients)

    def _path(self) -> str:
        return str(self._scratch.socket_path(f"{self._count}.sock"))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.renew()
        self._scratch.close()


def _has_ended(stream: Stream) -> bool:
    """Whether either side has closed it."""
    if stream.fileno() < 0:
        return True
    poller = select.poll()
    poller.register(stream.fileno(), select.POLLRDHUP)
    return bool(poller.poll(0))
