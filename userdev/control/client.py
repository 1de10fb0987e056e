"""Talks to a program's control socket: `ControlClient(path).call("status")`."""

from __future__ import annotations

import json
import socket
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from userdev.errors import UserError
from userdev.transport import Stream, connect_within

TIMEOUT_SECONDS = 60.0
"""Seconds that a program has for an answer."""
_WHOSE = "a control socket is what the program's --control says, and no device's own"
_ROOM = 1 << 18  # bytes that are received at once


class ControlError(UserError):
    """The program could not do what it was asked, or went away; `errno` is what it tells, or 0."""

    def __init__(self, what: str, errno: int = 0, *, hint: str = "") -> None:
        super().__init__(what, hint=hint)
        self.errno = errno


class PendingAnswer:
    """The answer that a command which was sent will have; see `ControlClient.post`."""

    def __init__(self, control: ControlClient, command: str) -> None:
        self.told: dict[str, Any] | None = None
        self._control = control
        self._command = command

    def result(self) -> Any:
        """Wait for it; raises as `ControlClient.call`."""
        while self.told is None:
            self._control.hear()
        if not self.told["ok"]:
            error = self.told["error"]
            hint = error.get("hint", "")
            raise ControlError(f"{self._command}: {error['what']}", error.get("errno", 0), hint=hint)
        return self.told["result"]


class ControlClient:
    """A connection to a control socket; blocking, for one thread."""

    def __init__(self, path: str | Path, *, timeout: float = TIMEOUT_SECONDS) -> None:
        """Connect. `timeout`: seconds for each answer and event.

        Raises:
            UserError: nobody listens there.
        """
        self._path = path
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connect_within(connection, str(path), timeout)
            connection.settimeout(timeout)
        except OSError as error:
            connection.close()
            raise UserError(
                f"no control socket at {path}: {error.strerror or error}", hint="is the program running there?"
            ) from None
        self._stream = Stream(connection)
        self._input = bytearray()
        self._told: dict[str, Any] | None = None  # a line of which the bytes behind it have not all come
        self._cut_off = False  # a command may have been sent in part
        self._unanswered: deque[PendingAnswer] = deque()
        self._events: deque[dict[str, Any]] = deque()

    def call(self, command: str, *, fds: Sequence[int] = (), behind: bytes = b"", **parameters: Any) -> Any:
        """Run a command; its result, an object. Bytes `behind` it go as they are; those behind an answer are its `raw`.

        Raises:
            ControlError: it failed, or the program went away.
            TimeoutError: no answer in time.
        """
        return self.post(command, fds=fds, behind=behind, **parameters).result()

    def post(self, command: str, *, fds: Sequence[int] = (), behind: bytes = b"", **parameters: Any) -> PendingAnswer:
        """Send a command without waiting for its end. Commands of one connection are run in their order, each whether
        or not the one before it failed.

        Raises:
            TimeoutError: the program does not take it; it is told nothing more then.
            ControlError: it did not take one before.
        """
        announced = {"raw": len(behind)} if behind else {}
        line = json.dumps({"command": command, **parameters, **announced}).encode() + b"\n"
        if self._cut_off:
            raise ControlError(f"{self._path}: a command was sent in part, and the next would be taken for its rest")
        try:
            with suppress(ConnectionError):  # whoever has hung up has said why, which `hear` finds
                self._stream.send(line, fds)
                if behind:
                    self._stream.send(behind)
        except (TimeoutError, KeyboardInterrupt):
            self._cut_off = True
            raise
        answer = PendingAnswer(self, command)
        self._unanswered.append(answer)
        return answer

    def next_event(self) -> dict[str, Any]:
        """Wait for the next event that this connection has asked for.

        Raises:
            ControlError: the program went away.
            TimeoutError: none in time.
        """
        while not self._events:
            self.hear()
        return self._events.popleft()

    def hear(self) -> None:
        """Take the next line: an event, or the answer of the first command without one; for `PendingAnswer`.

        One that has not come whole in time is there for the next call, with what has come of it.
        """
        self._told = told = self._told or self._answer()
        size = told["result"].get("raw") if told.get("ok") else None
        if size is not None:
            told["result"]["raw"] = self._bytes(size)
        self._told = None
        if "event" in told:
            self._events.append(told["event"])
            return
        if not self._unanswered:  # refused before it was asked anything
            raise ControlError(told["error"]["what"])
        self._unanswered.popleft().told = told

    def close(self) -> None:
        """End the connection."""
        self._stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _answer(self) -> dict[str, Any]:
        line = self._line()
        try:
            told = json.loads(line)
        except (ValueError, RecursionError):
            told = None
        if not _is_of_a_control_socket(told):
            raise ControlError(f"{self._path}: what answers there is no control socket", hint=_WHOSE)
        return dict(told)

    def _line(self) -> bytes:
        searched = 0
        while (end := self._input.find(b"\n", searched)) < 0:
            searched = len(self._input)
            self._receive()
        line = self._bytes(end)
        del self._input[:1]
        return line

    def _bytes(self, size: int) -> bytes:
        while len(self._input) < size:
            self._receive()
        with memoryview(self._input) as view, view[:size] as piece:
            data = bytes(piece)
        del self._input[:size]
        return data

    def _receive(self) -> None:
        try:
            data = self._stream.socket.recv(_ROOM)
        except ConnectionError:  # it had commands unread, or ended by a signal
            data = b""
        if not data:
            raise self._gone()
        self._input += data

    def _gone(self) -> ControlError:
        return ControlError(f"{self._path}: the program at this control socket has gone", hint=_WHOSE)


def _is_of_a_control_socket(told: Any) -> bool:
    """Whether a line is an event or an answer, as `envelope` has them."""
    match told:
        case {"event": dict()}:
            return True
        case {"ok": True, "result": dict() as result}:
            raw = result.get("raw", 0)
            return type(raw) is int and raw >= 0
        case {"ok": False, "error": {"what": str()} as error}:
            return isinstance(error.get("hint", ""), str) and isinstance(error.get("errno", 0), int)
    return False
