"""A control socket for the host's side of a device: JSON objects, one a line, each answered by one.

    {"command": "resize", "nsid": 1, "size": "128M"}   ->   {"size": 134217728}
    {"command": "what"}                                ->   {"error": "..."}

Commands run where the device's handlers run. A connection that sent {"command": "watch"} also receives what `tell`
is given. Nothing waits for a controller: one that does not read what it has asked for is hung up on.
"""

from __future__ import annotations

import contextlib
import json
import logging
import reprlib
import socket
import threading
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TypeVar

from userdev.errors import AUTHORS_FAILURES, UserError
from vfio_user import Listener, MigrationState, Stream
from vfio_user.device import PciDevice

log = logging.getLogger("vfio_user.control")

D = TypeVar("D", bound=PciDevice)
Commands = Mapping[str, Callable[[D, Mapping[str, Any]], dict[str, Any]]]

ANSWER_SECONDS = 10.0
"""How long a device may take for a command."""
MAX_LINE = 1 << 16
MAX_CONTROLLERS = 16
MAX_UNREAD = 1 << 16
"""Bytes that are kept for a controller which does not read, beside what its socket holds."""
UNREAD_SECONDS = 10.0
"""How long they are kept."""

Answer = Callable[[bytes, "_Controller"], Mapping[str, Any] | None]
"""Makes the answer to a line; None where it has been given."""

_NO_REQUEST = {"error": 'a request is one line of JSON: {"command": NAME, ...}'}


class ControlSocket:
    """Listens at `path`, a private socket, until `close`, which removes it."""

    def __init__(self, path: Path, device: D, commands: Commands[D], *, changing: Collection[str] = ()) -> None:
        """`changing` are those commands that change what a guest can see: they are refused while migration has the
        device stopped, as the state that moves may have been saved.

        Raises:
            UserError: another server lives at `path`, or nothing can.
        """
        self._device: Any = device
        self._commands: Mapping[str, Any] = commands
        self._changing = changing
        self._lock = threading.Lock()
        self._controllers: set[_Controller] = set()
        self._listener = Listener(f"unix:{path}", backlog=MAX_CONTROLLERS)
        threading.Thread(target=self._accept, name="control", daemon=True).start()

    def tell(self, event: Mapping[str, Any]) -> None:
        """Send an event to those who watch; from any thread, and without waiting."""
        for controller in self._connected():
            if controller.watches:
                controller.send(event)

    def close(self) -> None:
        self._listener.shutdown()
        for controller in self._connected():
            controller.hang_up()
        self._listener.close()

    def _connected(self) -> list[_Controller]:
        with self._lock:
            return list(self._controllers)

    def _accept(self) -> None:
        while True:
            try:
                stream = self._listener.accept()
            except OSError:
                return
            try:
                self._take(stream)
            except RuntimeError:  # no thread to be had
                stream.close()

    def _take(self, stream: Stream) -> None:
        controller = _Controller(stream, self._answer, self._forget)
        with self._lock:
            if len(self._controllers) < MAX_CONTROLLERS:
                self._controllers.add(controller)
        if controller in self._connected():
            controller.start()
        else:
            controller.start({"error": f"{MAX_CONTROLLERS} controllers are connected already"})

    def _forget(self, controller: _Controller) -> None:
        with self._lock:
            self._controllers.discard(controller)

    def _answer(self, line: bytes, controller: _Controller) -> Mapping[str, Any] | None:
        try:
            request = json.loads(line)
            name = request["command"]
        except (ValueError, TypeError, KeyError, RecursionError):
            return _NO_REQUEST
        if name == "watch":
            controller.watch()
            return None
        command = self._commands.get(name) if isinstance(name, str) else None
        if command is None:
            known = ", ".join([*self._commands, "watch"])
            return {"error": f"there is no command {reprlib.repr(name)}; there are: {known}"}
        future: Future[dict[str, Any]] = Future()

        def run() -> None:
            try:
                if name in self._changing:
                    _check_running(self._device)
                future.set_result(command(self._device, request))
            except AUTHORS_FAILURES as error:
                future.set_exception(error)

        self._device.link.call_soon(run)  # what the device itself plans would wait until it runs
        try:
            return future.result(ANSWER_SECONDS)
        except UserError as error:
            return {"error": str(error)}
        except TimeoutError:
            return {"error": "the device did not answer"}
        except AUTHORS_FAILURES as error:
            log.exception("control command %s failed", reprlib.repr(name))
            return {"error": f"{type(error).__name__}: {error}"}


def _check_running(device: PciDevice) -> None:
    running = (MigrationState.RUNNING, MigrationState.PRE_COPY)
    if device.migration is not None and device.migration.state not in running:
        raise UserError("migration has the device stopped: nothing of it can be changed until it runs")


class _Controller:
    """One connection: a thread that reads and has answers made, and one that sends."""

    def __init__(self, stream: Stream, answer: Answer, gone: Callable[[_Controller], None]) -> None:
        self.watches = False
        self._stream = stream
        self._stream.limit_sends(UNREAD_SECONDS)
        self._answer = answer
        self._gone = gone
        self._lines: SimpleQueue[bytes | None] = SimpleQueue()
        self._lock = threading.RLock()
        self._unread = 0

    def start(self, refusal: Mapping[str, Any] | None = None) -> None:
        """Begin to serve it; or tell it why not, and let go."""
        if refusal is None:
            threading.Thread(target=self._read, name="control", daemon=True).start()
        else:
            self.send(refusal)
            self._lines.put(None)
        threading.Thread(target=self._write, name="control", daemon=True).start()

    def send(self, message: Mapping[str, Any]) -> None:
        """Send it as soon as the controller reads; from any thread, and without waiting."""
        line = json.dumps(message).encode() + b"\n"
        with self._lock:
            if self._unread > MAX_UNREAD:
                self.hang_up()
                return
            self._unread += len(line)
            self._lines.put(line)

    def watch(self) -> None:
        """From now on it receives events: none before it is told so, and all that come behind."""
        with self._lock:
            self.send({"watching": True})
            self.watches = True

    def hang_up(self) -> None:
        self._stream.shutdown()
        self._lines.put(None)

    def _read(self) -> None:
        try:
            with self._stream.socket.makefile("rb") as lines:
                while line := lines.readline(MAX_LINE):
                    if len(line) == MAX_LINE and not line.endswith(b"\n"):
                        self.send({"error": f"a request has less than {MAX_LINE} bytes"})
                        break
                    answer = self._answer(line, self)
                    if answer is not None:
                        self.send(answer)
        except OSError:
            pass
        finally:
            self._lines.put(None)

    def _write(self) -> None:
        try:
            while (line := self._lines.get()) is not None:
                self._stream.send(line)
                with self._lock:
                    self._unread -= len(line)
        except OSError:
            pass
        finally:
            self._gone(self)
            self._stream.close()


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
        with contextlib.suppress(BrokenPipeError):  # a server that hung up has said why
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
