"""A server under test, as a command line names one: by its address, or by the command that starts it."""

from __future__ import annotations

import shlex
import signal
from typing import Self

from vfio_user.errors import UserError
from vfio_user.harness.deadline import Deadline
from vfio_user.harness.process import Child
from vfio_user.harness.scratch import Scratch
from vfio_user.transport import Stream, connect

START = 20.0
"""Seconds that a server has to listen."""

_POLITE = {0, -signal.SIGTERM, -signal.SIGKILL}
"""How a server ends that we ended, or that ends with its client, as the specification lets it."""


class RunningServer:
    """A server that somebody else runs."""

    pid = None

    def __init__(self, address: str, *, timeout: float) -> None:
        self.address = address
        self._timeout = timeout

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
    """A server that is started from a command with `{socket}` in it, whenever there is none."""

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

    @property
    def pid(self) -> int | None:
        return self._child.pid if self._child is not None and self._child.running else None

    def connect(self) -> Stream:
        """Connect to the running server, or to a new one.

        The connection is also the sign that it listens: a connection just to see would be a client to it.
        """
        if self._child is None or not self._child.running:
            self._start()
        assert self._child is not None
        deadline = Deadline(START)
        while True:
            try:
                return connect(self._path(), timeout=self._timeout)
            except UserError:
                code = self._child.wait(0.01)
                if code is not None:
                    raise UserError(
                        f"the server {self._child.fate()} before it listened:\n{self._child.last_words()}"
                    ) from None
                if deadline.passed:
                    raise UserError(
                        f"the server does not listen on {self._path()} after {START:g} s:\n{self._child.last_words()}"
                    ) from None

    def renew(self) -> None:
        """End the server; the next connection starts another."""
        if self._child is not None:
            self._end(self._child)
            self._child = None

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
        if code not in _POLITE:
            how = fate if died else f"ended with status {code} when it was asked to end"
            self._crash = f"the server {how}:\n{child.last_words()}"

    def _path(self) -> str:
        return str(self._scratch.socket_path(f"{self._count}.sock"))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.renew()
        self._scratch.close()
