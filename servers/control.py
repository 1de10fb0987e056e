"""A control socket for the host's side of a device: JSON objects, one a line, each answered by one.

    {"command": "resize", "nsid": 1, "size": "128M"}   ->   {"size": 134217728}
    {"command": "what"}                                ->   {"error": "..."}

Commands run where the device's handlers run. A connection that sent {"command": "watch"} also receives what `tell`
is given.
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

from vfio_user.device import PciDevice
from vfio_user.errors import UserError

D = TypeVar("D", bound=PciDevice)
Commands = Mapping[str, Callable[[D, Mapping[str, Any]], dict[str, Any]]]

ANSWER_SECONDS = 10.0
"""How long a device may take for a command."""
MAX_LINE = 1 << 16


class ControlSocket:
    """Listens at `path` until `close`, which removes the socket; a thread a connection."""

    def __init__(self, path: Path, device: D, commands: Commands[D]) -> None:
        self._device: Any = device
        self._commands: Mapping[str, Any] = commands
        self._path = path
        self._lock = threading.Lock()
        self._connections: set[socket.socket] = set()
        self._watching: set[socket.socket] = set()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with contextlib.suppress(FileNotFoundError):
                if path.is_socket():
                    path.unlink()
            self._listener.bind(str(path))
            self._listener.listen()
        except OSError as error:
            self._listener.close()
            raise UserError(f"control socket {path}: {error.strerror or error}") from error
        self._inode = path.stat().st_ino
        self._thread = threading.Thread(target=self._accept, name="control", daemon=True)
        self._thread.start()

    def tell(self, event: Mapping[str, Any]) -> None:
        """Send an event to those who watch; from any thread."""
        line = json.dumps(event).encode() + b"\n"
        with self._lock:
            for connection in list(self._watching):
                try:
                    connection.send(line, socket.MSG_DONTWAIT)
                except OSError:  # one that does not read is no longer told
                    self._watching.discard(connection)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            for connection in self._connections:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
        with contextlib.suppress(OSError):
            if self._path.stat().st_ino == self._inode:  # and not that of the server which has taken over
                self._path.unlink()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                self._connections.add(connection)
            threading.Thread(target=self._serve, args=(connection,), name="control", daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            with connection, connection.makefile("rb") as lines, contextlib.suppress(OSError):
                while line := lines.readline(MAX_LINE):
                    answer = self._answer(line, connection)
                    with self._lock:
                        connection.sendall(json.dumps(answer).encode() + b"\n")
        finally:
            with self._lock:
                self._connections.discard(connection)
                self._watching.discard(connection)

    def _answer(self, line: bytes, connection: socket.socket) -> dict[str, Any]:
        try:
            request = json.loads(line)
            name = request["command"]
        except (ValueError, TypeError, KeyError):
            return {"error": 'a request is one line of JSON: {"command": NAME, ...}'}
        if name == "watch":
            with self._lock:
                self._watching.add(connection)
            return {"watching": True}
        command = self._commands.get(name) if isinstance(name, str) else None
        if command is None:
            return {"error": f"there is no command {name!r}; there are: {', '.join([*self._commands, 'watch'])}"}
        future: Future[dict[str, Any]] = Future()

        def run() -> None:
            try:
                future.set_result(command(self._device, request))
            except Exception as error:
                future.set_exception(error)

        self._device.call_soon(run)
        try:
            return future.result(ANSWER_SECONDS)
        except UserError as error:
            return {"error": str(error)}
        except TimeoutError:
            return {"error": "the device did not answer"}
        except Exception as error:
            return {"error": f"{type(error).__name__}: {error}"}


class ControlClient:
    """The other end: `ControlClient(path).ask("resize", nsid=1, size="128M")`. Blocking, for one thread.

    Events come in between answers, so a connection that watches is best left to that: `ask("watch")`, then `next()`.
    """

    def __init__(self, path: Path | str, timeout: float = ANSWER_SECONDS) -> None:
        """Raises UserError if nobody listens at `path`."""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(timeout)
        try:
            self._socket.connect(str(path))
        except OSError as error:
            self._socket.close()
            raise UserError(f"control socket {path}: {error.strerror or error}") from error
        self._lines = self._socket.makefile("rb")

    def ask(self, command: str, **parameters: Any) -> dict[str, Any]:
        """The answer to a command; raises UserError with what the device says against it."""
        self._socket.sendall(json.dumps({"command": command, **parameters}).encode() + b"\n")
        answer = self.next()
        if "error" in answer:
            raise UserError(answer["error"])
        return answer

    def next(self) -> dict[str, Any]:
        """The next event or answer; raises TimeoutError, and UserError when the server has gone."""
        line = self._lines.readline()
        if not line:
            raise UserError("the server has closed its control socket")
        found: dict[str, Any] = json.loads(line)
        return found

    def close(self) -> None:
        self._lines.close()
        self._socket.close()

    def __enter__(self) -> ControlClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
