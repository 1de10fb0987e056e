"""A control socket for the host's side of a device: JSON objects, one a line, each answered by one.

    {"command": "resize", "nsid": 1, "size": "128M"}   ->   {"ok": true, "result": {"size": 134217728}}
    {"command": "what"}                                ->   {"ok": false, "error": {"what": "..."}}

Protocol and client are those of `userdev.control`. Commands run where the device's handlers run. A connection that sent
{"command": "watch"} also receives what `tell` is given, as {"event": {...}}. Nothing waits for a controller: one that
does not read what it has asked for is hung up on.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TypeVar

from userdev.control import (
    ControlLine,
    ControlResult,
    LineReader,
    answer_line,
    command_of,
    document_of,
    event_line,
    refusal_line,
)
from userdev.errors import AUTHORS_FAILURES, UserError
from userdev.transport import Listener, Stream, close_all
from vfio_user.device import PciDevice, function_of
from vhost_user.device import VhostDevice, model_of

log = logging.getLogger("vfio_user.control")

Device = PciDevice | VhostDevice
D = TypeVar("D", bound=Device)
Commands = Mapping[str, Callable[[D, Mapping[str, Any]], ControlResult]]

ANSWER_SECONDS = 10.0
"""How long a device may take for a command."""
MAX_LINE = 1 << 16
"""Bytes of a command."""
MAX_CONTROLLERS = 16
MAX_UNREAD = 1 << 16
"""Bytes that are kept for a controller which does not read, beside what its socket holds."""
UNREAD_SECONDS = 10.0
"""How long they are kept."""

AnswerMaker = Callable[[ControlLine, "_Controller"], bytes | None]
"""Makes the answer to a line; None where it has been given."""
_ROOM = 1 << 12  # bytes that are received at once


class ControlSocket:
    """Listens at `path`, a private socket, until `close`, which removes it."""

    def __init__(self, path: Path, device: D, commands: Commands[D], *, changing: Collection[str] = ()) -> None:
        """`changing` are those commands that change what a guest can see: they are refused while migration has the
        device stopped, as the state that moves may have been saved.

        Raises:
            UserError: another server lives at `path`, or nothing can.
        """
        self._device: Device = device
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
                controller.send(event_line(event))

    def close(self) -> None:
        """Stop listening, hang up on controllers, and remove the socket."""
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
            self._take(stream)

    def _take(self, stream: Stream) -> None:
        controller = _Controller(stream, self._answer, self._forget)
        with self._lock:
            if len(self._controllers) < MAX_CONTROLLERS:
                self._controllers.add(controller)
        too_many = UserError(f"{MAX_CONTROLLERS} controllers are connected already")
        try:
            controller.start(None if controller in self._connected() else refusal_line(too_many))
        except RuntimeError:  # no thread to be had
            self._forget(controller)
            stream.close()

    def _forget(self, controller: _Controller) -> None:
        with self._lock:
            self._controllers.discard(controller)

    def _answer(self, line: ControlLine, controller: _Controller) -> bytes | None:
        if line.refusal or line.fds or line.behind:
            why = line.refusal or "no descriptors come with a command here, and no bytes follow it"
            return refusal_line(UserError(why))
        document: Any = None
        try:
            document = document_of(line.text)
            name = command_of(document, [*self._commands, "watch"])
        except UserError as error:
            return refusal_line(error, document)
        if name == "watch":
            controller.watch(document)
            return None
        try:
            return answer_line(self._run(name, document), document)
        except UserError as error:
            return refusal_line(error, document)
        except TimeoutError as error:
            return refusal_line(error, document, what="the device did not answer")
        except AUTHORS_FAILURES as error:
            log.exception("control command %s failed", name)
            return refusal_line(error, document, what=f"{type(error).__name__}: {error}")

    def _run(self, name: str, request: Mapping[str, Any]) -> ControlResult:
        """Run a command where the device's handlers run."""
        future: Future[ControlResult] = Future()

        def run() -> None:
            try:
                if name in self._changing:
                    _check_running(self._device)
                future.set_result(self._commands[name](self._device, request))
            except AUTHORS_FAILURES as error:
                future.set_exception(error)

        _run_soon(self._device, run)
        return future.result(ANSWER_SECONDS)


def _run_soon(device: Device, work: Callable[[], None]) -> None:
    """Run `work` where the device's handlers run, whether it runs itself or not."""
    if isinstance(device, VhostDevice):
        model_of(device).run(work)
    else:
        function_of(device).run(work)  # what the device itself plans would wait until it runs


def _check_running(device: Device) -> None:
    """Of vhost-user's the back-end knows nothing of a migration."""
    if isinstance(device, PciDevice) and not function_of(device).may_run:
        raise UserError("migration has the device stopped: nothing of it can be changed until it runs")


class _Controller:
    """One connection: a thread that reads and has answers made, and one that sends."""

    def __init__(self, stream: Stream, answer: AnswerMaker, gone: Callable[[_Controller], None]) -> None:
        self.watches = False
        self._stream = stream
        self._stream.limit_sends(UNREAD_SECONDS)
        self._answer = answer
        self._gone = gone
        self._lines: SimpleQueue[bytes | None] = SimpleQueue()
        self._lock = threading.RLock()
        self._unread = 0

    def start(self, refusal: bytes | None = None) -> None:
        """Begin to serve it; or tell it why not, and let go."""
        if refusal is None:
            threading.Thread(target=self._read, name="control", daemon=True).start()
        else:
            self.send(refusal)
            self._lines.put(None)
        threading.Thread(target=self._write, name="control", daemon=True).start()

    def send(self, line: bytes) -> None:
        """Send it as soon as the controller reads; from any thread, and without waiting."""
        with self._lock:
            if self._unread > MAX_UNREAD:
                self.hang_up()
                return
            self._unread += len(line)
            self._lines.put(line)

    def watch(self, document: Mapping[str, Any]) -> None:
        """Have it receive events from now on: none before it is told so, and all that come behind."""
        with self._lock:
            self.send(answer_line({"watching": True}, document))
            self.watches = True

    def hang_up(self) -> None:
        self._stream.shutdown()
        self._lines.put(None)

    def _read(self) -> None:
        room = memoryview(bytearray(_ROOM))
        reader = LineReader(MAX_LINE)
        try:
            while not reader.refused:
                count, fds = self._stream.receive(room)
                if not count:
                    break
                for line in reader.feed(room[:count], fds):
                    close_all(line.fds)
                    if (answer := self._answer(line, self)) is not None:
                        self.send(answer)
        except OSError:
            pass
        finally:
            reader.close()
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
