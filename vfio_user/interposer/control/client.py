"""Talks to an interposer's control socket: `Control(path).call("status")`."""

from __future__ import annotations

import array
import json
import socket
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from userdev.errors import UserdevError, UserError

TIMEOUT = 60.0


class ControlError(UserdevError):
    """The interposer could not do what it was asked; `errno` is the peer's, or 0."""

    def __init__(self, what: str, errno: int = 0) -> None:
        super().__init__(what)
        self.errno = errno


class Answer:
    """What a command that was sent will have been answered with; see `Control.post`."""

    def __init__(self, control: Control, command: str) -> None:
        self.told: dict[str, Any] | None = None
        self._control = control
        self._command = command

    def result(self) -> dict[str, Any]:
        """Wait for it; raises as `Control.call`."""
        while self.told is None:
            self._control.hear()
        if not self.told["ok"]:
            error = self.told["error"]
            raise ControlError(f"{self._command}: {error['what']}", error.get("errno", 0))
        result: dict[str, Any] = self.told["result"]
        return result


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
        self._unanswered: deque[Answer] = deque()

    def call(self, command: str, *, fds: Sequence[int] = (), behind: bytes = b"", **parameters: Any) -> dict[str, Any]:
        """Run a command of `vfio_user.interposer.control.commands`; its result. Bytes `behind` it go as they are; those
        behind an answer are its `raw`.

        Raises:
            ControlError: it failed, or the interposer went away.
            TimeoutError: no answer in time.
        """
        return self.post(command, fds=fds, behind=behind, **parameters).result()

    def post(self, command: str, *, fds: Sequence[int] = (), behind: bytes = b"", **parameters: Any) -> Answer:
        """Send a command without waiting for its end. Commands of one connection are run in their order, each whether
        or not the one before it failed.
        """
        announced = {"raw": len(behind)} if behind else {}
        line = json.dumps({"command": command, **parameters, **announced}).encode() + b"\n"
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        sent = self._socket.sendmsg([line], rights)
        if sent < len(line):  # a controlled interposer may be gone by now: `stop` was heard
            self._socket.sendall(line[sent:])
        if behind:
            self._socket.sendall(behind)
        answer = Answer(self, command)
        self._unanswered.append(answer)
        return answer

    def hear(self) -> None:
        """Take the next answer, which is that of the first command without one; for `Answer`."""
        line = self._input.readline()
        if not line:
            raise ControlError("the interposer has gone")
        told = json.loads(line)
        size = told["result"].get("raw") if told["ok"] else None
        if size is not None:
            told["result"]["raw"] = data = self._input.read(size)
            if len(data) < size:
                raise ControlError("the interposer has gone")
        self._unanswered.popleft().told = told

    def close(self) -> None:
        self._input.close()
        self._socket.close()

    def __enter__(self) -> Control:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
