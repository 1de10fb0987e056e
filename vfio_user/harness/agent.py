"""The fast way into a guest: its agent on a virtio-serial port (guest_images/programs/agent.py has the protocol).

The connection may be replaced while requests are under way, as after a live migration: they are asked again, and the
agent does none of them twice.
"""

from __future__ import annotations

import contextlib
import secrets
import socket
import struct
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from userdev.errors import UserdevError
from userdev.process import Deadline
from vfio_user.harness.command_log import CommandLog
from vfio_user.harness.guest import (
    Command,
    Guest,
    GuestFailure,
    GuestLost,
    Job,
    Result,
    as_line,
    decode,
    encode,
    outcome_of,
    result_of,
)
from vfio_user.harness.timeouts import waited
from vfio_user.harness.troubles import Look, Wait, nothing_wrong

ANSWER_SECONDS = 15.0
"""Seconds that an answer may need beyond the job that it reports."""
_CAUSE_SECONDS = 1.0  # seconds between the end of a connection and that of its process
_PIECE = 96 << 10  # bytes of a file in one message
MAX_LINE = 80 << 20
"""Bytes of an answer: the agent keeps 16 MiB of each of a job's three streams, which base64 makes 64."""
MAX_FILE = 1 << 30
"""Bytes of a file that is fetched."""


@dataclass(frozen=True)
class _Request:
    """One that is under way: as it was sent, what waits for the answer, and when it was asked (time.monotonic())."""

    line: bytes
    answer: Future[dict[str, Any]]
    asked: float


class AgentGuest(Guest):
    """A guest behind its agent. `connection` is the host's end of the virtio-serial port.

    `check` is asked before every request, and when no answer will come any more, with the seconds that the cause may
    take to show: it raises that if it knows one. `look` is that of any `Guest`; `log` has what is run there.
    """

    def __init__(
        self,
        connection: socket.socket,
        *,
        patience: float = 1.0,
        console: Callable[[], str] = str,
        check: Callable[[float], None] = lambda _seconds: None,
        look: Look = nothing_wrong,
        log: CommandLog | None = None,
    ) -> None:
        super().__init__(patience=patience, console=console, look=look)
        self.kernel = ""
        """The release of its kernel, as `uname -r` has it; known from its first answer on."""
        self._check = check
        self._log = log
        self._session = secrets.token_hex(8)
        self._asked = 0  # the last id
        self._sending = threading.Lock()
        self._pending: dict[int, _Request] = {}
        self._done: list[int] = []
        self._given_up = 0.0  # what was asked before this moment
        self._lost = ""
        self._connection = connection
        self._begin()

    def attach(self, connection: socket.socket) -> None:
        """Go on over another connection to the same guest; what is under way is asked again.

        Call it before the old machine is ended: when the connection in use breaks, all that wait are told so.
        """
        with self._sending:
            old, self._connection = self._connection, connection
            reader = self._reader
            self._lost = ""
        _shut(old, reader)
        self._begin()
        with self._sending:  # also what was asked since: it may have become the rest of another host's half line
            again = [request.line for request in self._pending.values()]
        for line in again:
            self._send(line)

    def renew(self) -> None:
        """Begin a new session, as after a reboot: what was under way is given up and never asked again."""
        with self._sending:
            self._session = secrets.token_hex(8)
            self._done.clear()
        self.give_up("the guest was rebooted")
        self._send(b"\n")

    def give_up(self, why: str, before: float | None = None) -> None:
        """Tell those who asked before that moment of time.monotonic(), or until now, that no answer will come."""
        before = time.monotonic() if before is None else before
        with self._sending:
            self._given_up = max(self._given_up, before)
            given_up = {identity: request for identity, request in self._pending.items() if request.asked < before}
            for identity in given_up:
                del self._pending[identity]
        for request in given_up.values():
            request.answer.set_exception(GuestLost(why))

    def hello(self, timeout: float) -> dict[str, Any]:
        """Wait until the agent answers.

        Raises:
            GuestLost: it does not in time.
        """
        answer = self._answer(self._ask("hello"), self.waiting(timeout), "hello")
        self.kernel = str(answer.get("kernel", ""))
        return answer

    def tell_restored(self) -> None:
        """Give a guest from a checkpoint the host's time, and random numbers of its own.

        It has them before it does what it is asked next, so that its answer is not waited for.
        """
        self._ask("restored", time=time.time(), random=secrets.token_bytes(32))

    def prepare(self) -> list[str]:
        """Have the agent load the guest's own programs, so that each runs in a fork that need not; their drivers."""
        return [str(driver) for driver in self._do("prepare").get("drivers", ())]

    def start(self, command: Command, timeout: float = 60.0) -> Job:
        """Start a command through the agent's `run`; `timeout` is kept in the guest, where the agent ends it.

        Raises:
            GuestLost: the connection to the agent is closed.
        """
        identity, future = self._ask_job(
            "run",
            command=command if isinstance(command, str) else list(command),
            timeout=timeout * self.patience,
        )
        return _AgentJob(self, command, identity, future, self.waiting(timeout + ANSWER_SECONDS))

    def put(self, source: Path | bytes, target: str, mode: int = 0o644) -> None:
        """Write a file of the guest in pieces of 96 KiB; the last one sets its permissions to `mode`.

        Raises:
            OSError: `source` cannot be read on the host.
            GuestFailure: the guest refuses.
            GuestLost: the agent does not answer.
        """
        data = source if isinstance(source, bytes) else source.read_bytes()
        for offset in range(0, len(data) or 1, _PIECE):
            piece = data[offset : offset + _PIECE]
            last = offset + len(piece) == len(data)
            self._do("put", path=target, offset=offset, data=piece, mode=mode if last else None)

    def get(self, source: str) -> bytes:
        """Read a file of the guest whole, in pieces of 96 KiB.

        Raises:
            GuestFailure: the guest refuses, or the file has more than `MAX_FILE` bytes.
            GuestLost: the agent does not answer.
        """
        data = bytearray()
        while piece := self._do("get", path=source, offset=len(data), size=_PIECE).get("data"):
            if not isinstance(piece, bytes) or len(piece) > _PIECE:
                raise GuestFailure(f"the guest's agent sends no piece of {source}")
            data += piece
            if len(data) > MAX_FILE:
                raise GuestFailure(f"{source} has more than {MAX_FILE >> 20} MiB, or no end")
        return bytes(data)

    def invoke(self, request: Mapping[str, object], timeout: float) -> dict[str, Any]:
        """Do one `call` (see `shipped`) by the agent and return its outcome.

        Raises:
            GuestFailure: the process of the function ended without a result, or took too long.
            GuestLost: the agent does not answer.
        """
        future = self._ask("call", **request, timeout=timeout * self.patience)
        answer = self._answer(future, self.waiting(timeout + ANSWER_SECONDS), f"{request['function']}()")
        if answer.get("result") and not answer.get("timed_out"):
            return outcome_of(request["function"], answer["result"])
        result = result_of(f"{request['function']}()", answer)
        fate = f"did not end in {waited(timeout, self.patience)}" if result.timed_out else "ended without a result"
        raise self._failure(f"in the guest, {request['function']}() {fate}", result)

    def close(self) -> None:
        """Shut the connection down, and join the thread that reads it; those that still wait are told `GuestLost`."""
        self._lose(self._connection, "the connection was closed")
        _shut(self._connection, self._reader)
        if self._log is not None:
            self._log.close()

    # -- requests -------------------------------------------------------------------------------------------------

    def _do(self, operation: str, **arguments: object) -> dict[str, Any]:
        return self._answer(self._ask(operation, **arguments), self.waiting(ANSWER_SECONDS), operation)

    def _ask(self, operation: str, **arguments: object) -> Future[dict[str, Any]]:
        return self._ask_job(operation, **arguments)[1]

    def _ask_job(self, operation: str, **arguments: object) -> tuple[int, Future[dict[str, Any]]]:
        future: Future[dict[str, Any]] = Future()
        if self._log is not None and operation in _LOGGED:
            future.add_done_callback(self._log.begin(_LOGGED[operation](arguments)))
        asked = time.monotonic()
        self._check(_CAUSE_SECONDS if self._lost else 0.0)
        with self._sending:
            if self._lost:
                raise GuestLost(f"cannot reach the guest's agent: {self._lost}")
            identity = self._asked + 1
            body = {"session": self._session, "id": identity, "do": operation, "done": self._done, **arguments}
            line = encode(body).encode() + b"\n"
            self._asked, self._done = identity, []
            if asked < self._given_up:
                future.set_exception(GuestLost("the guest's answers were given up"))
            else:
                self._pending[identity] = _Request(line, future, asked)
        self._send(line)
        return identity, future

    def _answer(self, future: Future[dict[str, Any]], wait: Wait, what: str) -> dict[str, Any]:
        try:
            answer = self._result(future, wait, what)
        except GuestLost:
            try:
                self._check(_CAUSE_SECONDS)
            except UserdevError as cause:
                cause.add_note(f"the guest was at: {what}")
                raise cause from None
            raise
        if "error" in answer:
            raise GuestFailure(f"the guest's agent could not do {what!r}: {answer['error']}")
        body: dict[str, Any] = answer["ok"]
        return body

    def _result(self, future: Future[dict[str, Any]], wait: Wait, what: str) -> dict[str, Any]:
        while True:
            try:
                return future.result(wait.turn)
            except FutureTimeout:
                if not wait.remaining:
                    why = f"the guest's agent did not answer {what!r}"
                    raise GuestLost.after(wait, why, evidence=self._console()) from None

    # -- the connection -------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        # A guest that does not read must not block us for ever; a receive still waits as long as it has to.
        limit = struct.pack("ll", int(30 * self.patience), 0)
        self._connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
        self._reader = threading.Thread(target=self._receive, args=(self._connection,), name="agent", daemon=True)
        self._reader.start()
        self._send(b"\n")  # ends whatever half line another host left

    def _send(self, line: bytes) -> None:
        try:
            with self._sending:
                connection = self._connection
                connection.sendall(line)
        except OSError as error:
            self._lose(connection, f"sending failed: {error.strerror}")

    def _receive(self, connection: socket.socket) -> None:
        buffer = bytearray()
        with contextlib.suppress(OSError):
            while data := connection.recv(1 << 18):
                buffer += data
                if len(buffer) > MAX_LINE:
                    self._lose(connection, f"its agent sent {MAX_LINE >> 20} MiB that are no answer")
                    connection.shutdown(socket.SHUT_RDWR)
                    return
                if b"\n" in data:
                    *lines, rest = buffer.split(b"\n")
                    buffer = bytearray(rest)
                    for line in lines:
                        self._received(bytes(line))
        self._lose(connection, "QEMU closed the connection")

    def _received(self, line: bytes) -> None:
        try:
            answer = decode(line)
        except ValueError:
            return  # the end of a line that was meant for another host
        if not isinstance(answer, dict) or answer.get("session") != self._session:
            return
        identity = answer.get("id")
        with self._sending:
            if not isinstance(identity, int) or not 0 < identity <= self._asked or identity in self._done:
                return
            request = self._pending.pop(identity, None)
            self._done.append(identity)
        if not isinstance(answer.get("ok"), dict) and not isinstance(answer.get("error"), str):
            answer = {"error": "it answers what is no answer"}
        if request is not None:
            request.answer.set_result(answer)

    def _lose(self, connection: socket.socket, why: str) -> None:
        """Tell everybody who waits for an answer over `connection` that none will come."""
        with self._sending:
            if connection is not self._connection or self._lost:
                return
            self._lost = why
            waiting, self._pending = self._pending, {}
        for request in waiting.values():
            request.answer.set_exception(GuestLost(f"the guest went away: {why}"))


_LOGGED: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "run": lambda arguments: as_line(arguments["command"]),
    "call": lambda arguments: f"{arguments['function']}()",
}
"""What is run in the guest, and what it is called."""


def _shut(connection: socket.socket, reader: threading.Thread) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    reader.join()
    connection.close()


class _AgentJob(Job):
    def __init__(
        self, guest: AgentGuest, command: Command, identity: int, future: Future[dict[str, Any]], wait: Wait
    ) -> None:
        self._guest = guest
        self._command = command
        self._identity = identity
        self._future = future
        self._wait = wait

    def wait(self, limit: float | Deadline | None = None) -> Result:
        wait = self._wait if limit is None else self._guest.waiting_until(limit)
        return result_of(self._command, self._guest._answer(self._future, wait, str(self._command)))

    def kill(self, number: int = 15) -> None:
        self._guest._do("signal", job=self._identity, signal=number)
