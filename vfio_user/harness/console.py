"""The serial console: always drained, kept in a file, and matchable."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from userdev.errors import UserError
from userdev.process import Deadline, tail
from vfio_user.harness.log import LogFile

MAX_KEPT = 16 << 20
"""Bytes that are at hand for those who wait for something; the log has more."""
MAX_LINE = 64 << 10
"""Bytes of a line, in the log with times: a longer one is several there."""


class ConsoleError(UserError):
    """The console did not show what was waited for. The evidence is its last lines."""


class Console:
    """One serial line, read by a thread of its own from the beginning to the end of the machine.

    A console that nobody reads stops QEMU (its socket fills up), and one that is read only by those who wait for
    something loses the rest.
    """

    def __init__(self, connection: socket.socket, log: Path) -> None:
        self.log = log
        self.timed_log = log.with_suffix(".timed.log")
        """Each line with its time, in seconds since 1970, before it."""
        self.logs = (LogFile(self.log), LogFile(self.timed_log))
        self._connection = connection
        self._seen = bytearray()
        self._forgotten = 0  # bytes that came before those
        self._ended = False
        self._changed = threading.Condition()
        self._listeners: list[Callable[[bytes], None]] = []
        self._thread = threading.Thread(target=self._drain, name="console", daemon=True)
        self._thread.start()

    def send(self, data: bytes) -> None:
        """Type into the console."""
        self._connection.sendall(data)

    def wait_for(self, pattern: str | bytes, limit: float | Deadline = 30.0, *, since: int = 0) -> re.Match[bytes]:
        """The first match of a regular expression in what came after byte `since`, come or to come.

        Raises:
            ConsoleError: the deadline passes, or the machine ends first; it has the last lines.
        """
        expression = re.compile(pattern.encode() if isinstance(pattern, str) else pattern)
        deadline = Deadline.of(limit)
        with self._changed:
            while True:
                start = max(0, since - self._forgotten)
                if expression.search(self._seen, start):
                    found = expression.search(bytes(self._seen), start)  # what comes and goes does not change that
                    assert found is not None
                    return found
                if self._ended:
                    raise ConsoleError("the machine ended before " + self._wanted(pattern), evidence=self.last_lines())
                if not self._changed.wait(deadline.remaining):
                    raise ConsoleError(
                        f"in {deadline.seconds:g} s there was no " + self._wanted(pattern), evidence=self.last_lines()
                    )

    @property
    def has_ended(self) -> bool:
        """Whether nothing more will come."""
        return self._ended

    @property
    def position(self) -> int:
        """How many bytes have come so far: `since` for a wait for something new."""
        with self._changed:
            return self._forgotten + len(self._seen)

    @property
    def text(self) -> str:
        """All that has come so far, the last `MAX_KEPT` bytes at least."""
        with self._changed:
            return self._seen.decode(errors="replace")

    def last_lines(self, lines: int = 20) -> str:
        """The end of it, for an error message."""
        return tail(self.log, lines) or "(the console is empty)"

    def listen(self, listener: Callable[[bytes], None]) -> None:
        """Call `listener` with everything that comes from now on, in the console's own thread."""
        with self._changed:
            self._listeners.append(listener)

    def close(self) -> None:
        """Stop reading."""
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._connection.close()

    def _drain(self) -> None:
        log, timed = self.logs
        with closing(log), closing(timed):
            unfinished, moment = b"", b""
            while data := self._receive():
                log.write(data)
                *lines, unfinished = (unfinished + data).split(b"\n")
                if len(unfinished) > MAX_LINE:
                    lines, unfinished = [*lines, unfinished], b""
                moment = f"{time.time():.6f} ".encode()
                timed.write(b"".join(moment + line.rstrip(b"\r") + b"\n" for line in lines))
                with self._changed:
                    listeners = list(self._listeners)
                for listener in listeners:  # before those who wait: what befell the guest is known to whoever sees it
                    listener(data)
                with self._changed:
                    self._keep(data)
                    self._changed.notify_all()
            if unfinished:  # what a guest stopped in the middle of is what it said last
                timed.write(moment + unfinished.rstrip(b"\r") + b"\n")
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def _keep(self, data: bytes) -> None:
        self._seen += data
        if len(self._seen) > 2 * MAX_KEPT:
            self._forgotten += len(self._seen) - MAX_KEPT
            del self._seen[:-MAX_KEPT]

    def _receive(self) -> bytes:
        try:
            return self._connection.recv(65536)
        except OSError:
            return b""

    @staticmethod
    def _wanted(pattern: str | bytes) -> str:
        return f"{pattern if isinstance(pattern, str) else pattern.decode(errors='replace')!r} on the console"
