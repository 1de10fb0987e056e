"""Talks to an interposer's control socket: `Control(path).call("status")`."""

from __future__ import annotations

import array
import json
import socket
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from vfio_user.errors import UserError, VfioUserError

TIMEOUT = 60.0


class ControlError(VfioUserError):
    """The interposer could not do what it was asked; `errno` is the peer's, or 0."""

    def __init__(self, what: str, errno: int = 0) -> None:
        super().__init__(what)
        self.errno = errno


class Control:
    """A connection to the control socket; blocking, for one thread."""

    def __init__(self, path: str | Path, *, timeout: float = TIMEOUT) -> None:
        """Connect.

        Raises:
            UserError: nobody listens there.
        """
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(timeout)
        try:
            self._socket.connect(str(path))
        except OSError as error:
            self._socket.close()
            raise UserError(f"no interposer's control socket at {path}: {error.strerror}") from None
        self._input = self._socket.makefile("rb")

    def call(self, command: str, *, fds: Sequence[int] = (), **parameters: Any) -> dict[str, Any]:
        """Run a command of `vfio_user.interposer.control.commands`; its result.

        Raises:
            ControlError: it failed, or the interposer went away.
            TimeoutError: no answer in time.
        """
        line = json.dumps({"command": command, **parameters}).encode() + b"\n"
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        sent = self._socket.sendmsg([line], rights)
        if sent < len(line):  # a controlled interposer may be gone by now: `stop` was heard
            self._socket.sendall(line[sent:])
        answer = self._input.readline()
        if not answer:
            raise ControlError("the interposer has gone")
        told = json.loads(answer)
        if not told["ok"]:
            raise ControlError(f"{command}: {told['error']['what']}", told["error"].get("errno", 0))
        result: dict[str, Any] = told["result"]
        return result

    def close(self) -> None:
        self._input.close()
        self._socket.close()

    def __enter__(self) -> Control:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
