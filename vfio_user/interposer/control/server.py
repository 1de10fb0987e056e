"""Serves the control socket in the interposer's loop."""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from vfio_user.errors import ProtocolError, UserError, VfioUserError
from vfio_user.interposer.loop import READ, WRITE, Loop, Task
from vfio_user.interposer.pump import Outlet
from vfio_user.interposer.requests import Lost
from vfio_user.transport import Listener, Stream, close_all

if TYPE_CHECKING:
    from vfio_user.interposer.interposer import Interposer

MAX_LINE = 64 << 20
"""Bytes of one command, base64 included, or of what follows it."""
_ROOM = 1 << 18  # bytes that are received at once


class _Line(NamedTuple):
    """A command, the bytes that followed it and the descriptors that came beside it."""

    text: bytes
    behind: bytes
    fds: list[int]


class ControlServer:
    """Listens for controllers; each may send commands without waiting, and is answered in its own order."""

    def __init__(self, interposer: Interposer, address: str) -> None:
        """Start to listen.

        Raises:
            UserError: the address cannot be listened on.
        """
        self._interposer = interposer
        self._listener = Listener(address)
        self._connections: set[_Connection] = set()
        interposer.loop.watch(self._listener.socket.fileno(), self._accept)

    def close(self) -> None:
        self._interposer.loop.forget(self._listener.socket.fileno())
        for connection in list(self._connections):
            connection.close()
        self._listener.close()

    def _accept(self, _: int) -> None:
        stream = self._listener.take()
        if stream is not None:
            self._connections.add(_Connection(self._interposer, stream, self._connections))


class _Connection:
    """One controller."""

    def __init__(self, interposer: Interposer, stream: Stream, others: set[_Connection]) -> None:
        self._interposer = interposer
        self._loop: Loop = interposer.loop
        self._stream = stream
        self._outlet = Outlet(stream)
        self._others = others
        self._input = bytearray()
        self._searched = 0  # so far there is no end of a line in the input
        self._followed: tuple[bytes, int] | None = (
            None  # a line of which the bytes behind it, so many, have not all come
        )
        self._fds: list[int] = []  # of the line that has not come to its end
        self._lines: deque[_Line] = deque()
        self._task: Task[None] | None = None
        self._over = False
        stream.socket.setblocking(False)
        self._loop.watch(stream.fileno(), self._ready)

    def close(self) -> None:
        if self in self._others:
            self._others.discard(self)
            self._loop.forget(self._stream.fileno())
            self._outlet.clear()
            self._stream.close()
            for fds in (self._fds, *(line.fds for line in self._lines)):
                close_all(fds)
                fds.clear()

    def _ready(self, events: int) -> None:
        if events & WRITE:
            self._outlet.flush()
            self._update()
        if events & ~WRITE and not self._over:
            self._receive()

    def _receive(self) -> None:
        room = memoryview(bytearray(_ROOM))
        try:
            count, fds = self._stream.receive(room)
        except BlockingIOError:
            return
        except OSError:
            count, fds = 0, []
        self._input += room[:count]
        if not count or len(self._input) > MAX_LINE:
            self._fds += fds
            self._over = True
            self._update()
            if self._task is None:
                self.close()
            return
        came = list(self._whole_lines())
        rest = self._fds
        if came:
            came[0].fds.extend(self._fds)
            rest = []
        # Descriptors belong to the line that has the last byte of the receive they came with (wire/framing.py).
        (rest if self._input or self._followed else came[-1].fds).extend(fds)
        self._fds = rest
        self._lines.extend(line for line in came if line.text.strip() or line.fds)
        self._next()

    def _whole_lines(self) -> Iterator[_Line]:
        """Take what is complete out of the input: lines, each with the bytes that it says will follow."""
        while True:
            if self._followed is None:
                end = self._input.find(b"\n", self._searched)
                if end < 0:
                    self._searched = len(self._input)
                    return
                text = self._taken(end)
                del self._input[:1]
                self._searched = 0
                self._followed = text, _announced(text)
            text, size = self._followed
            if len(self._input) < size:
                return
            self._followed = None
            yield _Line(text, self._taken(size), [])

    def _taken(self, size: int) -> bytes:
        """So many bytes, out of the input."""
        with memoryview(self._input) as view, view[:size] as piece:
            taken = bytes(piece)
        del self._input[:size]
        return taken

    def _next(self) -> None:
        """Run the next command, if none is running."""
        if self._lines and self._task is None:
            self._task = task = Task(self._answer(self._lines.popleft()))
            task.when_done(self._answered)

    def _answered(self) -> None:
        self._task = None
        if self._lines:
            # Through the loop: a thousand commands in one packet must not nest.
            self._loop.after(0, self._next)
        elif self._over:
            self.close()

    async def _answer(self, line: _Line) -> None:
        document: Any = None
        behind = b""
        try:
            document = json.loads(line.text)
            result = await self._run(document, line)
            if isinstance(result.get("raw"), bytes):
                behind, result["raw"] = result["raw"], len(result["raw"])
            answer = {"ok": True, "result": result}
        except (VfioUserError, Lost, TimeoutError, OSError, ValueError) as error:
            answer = {"ok": False, "error": _told(error)}
        except Exception as error:  # a defect of ours must not leave the controller without an answer
            answer = {"ok": False, "error": {"what": f"internal: {type(error).__name__}: {error}"}}
        finally:
            close_all(line.fds)
        if isinstance(document, dict) and "id" in document:
            answer["id"] = document["id"]
        if self in self._others:
            self._outlet.send(json.dumps(answer).encode() + b"\n")
            if behind:
                self._outlet.send(behind)
            self._update()

    async def _run(self, document: Any, line: _Line) -> dict[str, Any]:
        from pydantic import ValidationError

        from vfio_user.interposer.control.commands import COMMANDS

        name = document.get("command") if isinstance(document, dict) else None
        if name not in COMMANDS:
            raise UserError(f"{name!r} is no command", hint=", ".join(COMMANDS))
        try:
            command = COMMANDS[name].model_validate(document)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = ".".join(map(str, first["loc"]))
            raise UserError(f"{place}: {first['msg']}" if place else str(first["msg"])) from None
        if line.fds and not command.fds:
            raise UserError("this command takes no descriptors")
        if line.behind:
            command.follow(line.behind)
        return await command.run(self._interposer, line.fds)

    def _update(self) -> None:
        if self in self._others:
            events = 0 if self._over else READ
            self._loop.change(self._stream.fileno(), events | (WRITE if self._outlet.waiting else 0))


def _announced(text: bytes) -> int:
    """How many bytes a command says will follow its line."""
    if b'"raw"' not in text:
        return 0
    try:
        size = json.loads(text)["raw"]
    except (ValueError, TypeError, KeyError):  # it will be refused for what it is
        return 0
    return size if type(size) is int and size > 0 else 0  # true asks for raw bytes


def _told(error: Exception) -> dict[str, Any]:
    """An error for a program: what, what to do about it, and the errno where there is one."""
    told: dict[str, Any] = {"what": str(error) or type(error).__name__}
    if isinstance(error, UserError) and error.hint:
        told["hint"] = error.hint
    number = getattr(error, "errno", None)
    if isinstance(number, int):
        told["errno"] = number
        told["name"] = os.strerror(number)
    if isinstance(error, ProtocolError):
        told["what"] = f"the peer's reply is malformed: {error}"
    return told
