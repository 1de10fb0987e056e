"""Serves the control socket in the interposer's loop."""

from __future__ import annotations

import json
import os
from collections import deque
from typing import TYPE_CHECKING, Any

from vfio_user.errors import ProtocolError, UserError, VfioUserError
from vfio_user.interposer.loop import READ, WRITE, Loop, Task
from vfio_user.interposer.pump import Outlet
from vfio_user.interposer.requests import Lost
from vfio_user.transport import Listener, Stream, close_all

if TYPE_CHECKING:
    from vfio_user.interposer.interposer import Interposer

MAX_LINE = 64 << 20
"""Bytes of one command, base64 included."""


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
        connection = _Connection(self._interposer, self._listener.accept(), self._connections)
        self._connections.add(connection)


class _Connection:
    """One controller."""

    def __init__(self, interposer: Interposer, stream: Stream, others: set[_Connection]) -> None:
        self._interposer = interposer
        self._loop: Loop = interposer.loop
        self._stream = stream
        self._outlet = Outlet(stream)
        self._others = others
        self._input = bytearray()
        self._fds: list[int] = []  # of the line that has not come to its end
        self._lines: deque[tuple[bytes, list[int]]] = deque()
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
            for fds in (self._fds, *(fds for _, fds in self._lines)):
                close_all(fds)
                fds.clear()

    def _ready(self, events: int) -> None:
        if events & WRITE:
            self._outlet.flush()
            self._update()
        if events & ~WRITE and not self._over:
            self._receive()

    def _receive(self) -> None:
        room = memoryview(bytearray(1 << 16))
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
        *lines, self._input = self._input.split(b"\n")
        came: list[tuple[bytes, list[int]]] = [(bytes(line), []) for line in lines]
        rest = self._fds
        if came:
            came[0][1].extend(self._fds)
            rest = []
        # Descriptors belong to the line that has the last byte of the receive they came with (wire/framing.py).
        (rest if self._input else came[-1][1]).extend(fds)
        self._fds = rest
        self._lines.extend((line, mine) for line, mine in came if line.strip() or mine)
        self._next()

    def _next(self) -> None:
        """Run the next command, if none is running."""
        if self._lines and self._task is None:
            self._task = task = Task(self._answer(*self._lines.popleft()))
            task.when_done(self._answered)

    def _answered(self) -> None:
        self._task = None
        if self._lines:
            # Through the loop: a thousand commands in one packet must not nest.
            self._loop.after(0, self._next)
        elif self._over:
            self.close()

    async def _answer(self, line: bytes, fds: list[int]) -> None:
        document: Any = None
        try:
            document = json.loads(line)
            answer = {"ok": True, "result": await self._run(document, fds)}
        except (VfioUserError, Lost, TimeoutError, OSError, ValueError) as error:
            answer = {"ok": False, "error": _told(error)}
        except Exception as error:  # a defect of ours must not leave the controller without an answer
            answer = {"ok": False, "error": {"what": f"internal: {type(error).__name__}: {error}"}}
        finally:
            close_all(fds)
        if isinstance(document, dict) and "id" in document:
            answer["id"] = document["id"]
        if self in self._others:
            self._outlet.send(json.dumps(answer).encode() + b"\n")
            self._update()

    async def _run(self, document: Any, fds: list[int]) -> dict[str, Any]:
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
        if fds and not command.fds:
            raise UserError("this command takes no descriptors")
        return await command.run(self._interposer, fds)

    def _update(self) -> None:
        if self in self._others:
            events = 0 if self._over else READ
            self._loop.change(self._stream.fileno(), events | (WRITE if self._outlet.waiting else 0))


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
