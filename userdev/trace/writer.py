"""Appends records: one `write` per turn of the loop, nothing kept in the process between turns."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from userdev.counted import counted
from userdev.descriptors import FdInfo, describe
from userdev.errors import UserError
from userdev.relay.direction import Direction
from userdev.trace.format import (
    BOTH,
    FORMAT,
    LENGTH,
    MAGIC,
    MAX_FDS,
    PREFIX,
    RecordKind,
    Traced,
    View,
    encode_body,
    encode_json,
    encode_message,
    towards,
)
from userdev.trace.kept import keep_aside, to_stderr
from userdev.whole import write_whole

_pack, _now = PREFIX.pack, time.monotonic_ns
_PASSED, _MESSAGE, _BOTH = PREFIX.size - LENGTH.size, int(RecordKind.MESSAGE), int(BOTH)
"""Of each message that passes: numbers, as an enumeration's members cost as much to look up as all the rest."""

FLUSH_AT = 1 << 20
"""Bytes that are written before the turn ends."""
INHERITED = "fd:"
"""Before the number of a descriptor, instead of a path."""


class TraceWriter:
    """A trace being written. `message` returns the record's number, for the reply to refer to.

    When the disk is full (or gone) the trace stops, says so to `warn` and in `stopped`; the session goes on.
    """

    def __init__(
        self, path: str | Path, protocol: str, about: dict[str, Any], *, warn: Callable[[str], None] = to_stderr
    ) -> None:
        """Create the file anew, or take a descriptor that is open for writing (`fd:N`), and write the header.

        A trace of a session that is there already is kept aside. `warn` is told of that, and when the trace stops.

        Raises:
            UserError: it cannot be written.
        """
        self.path = Path(path)
        self._warn = warn
        self.stopped = ""
        """Why the trace has stopped; empty while it has not."""
        self.records = 0
        self.size = 0
        self._written = 0  # records, of those
        self._fd = _opened(str(path), warn)
        self._begin = _end_of(self._fd)
        header = {"format": FORMAT, "protocol": protocol, "realtime": time.time_ns(), **about}
        self._batch = bytearray(MAGIC)
        """What this turn has recorded."""
        self._append(encode_json(RecordKind.HEADER, time.monotonic_ns(), header))
        self.flush()

    def message(self, direction: Direction, view: int, message: Traced, pair: int = 0, channel: int = 0) -> int:
        """Record a message; its descriptors, still open, are described. Returns the record's number.

        channel: the connection's number in `TracedProtocol.channels`.
        """
        fds: tuple[FdInfo, ...] = tuple(map(describe, message.fds[:MAX_FDS])) if message.fds else ()
        place = towards(direction, channel)
        number = self._append(encode_message(place, view, time.monotonic_ns(), pair, message, fds))
        if len(message.fds) > MAX_FDS:
            self.note("descriptors-not-described", record=number, count=len(message.fds) - MAX_FDS)
        return number

    def passed(self, direction: Direction, data: memoryview, pair: int = 0, time: int = 0) -> int:
        """Record a message without descriptors that was passed on unchanged, from its bytes; at `time`, 0 is now.

        Returns the record's number.
        """
        batch = self._batch
        batch += _pack(_PASSED + len(data), _MESSAGE, direction, _BOTH, 0, time or _now(), pair)
        batch += data
        self.records = number = self.records + 1
        if len(batch) > FLUSH_AT:
            self.flush()
        return number

    def raw(self, direction: Direction, data: bytes, view: int = View.RECEIVED | View.SENT, channel: int = 0) -> None:
        """Record bytes that are no message."""
        self._append(encode_body(RecordKind.BYTES, towards(direction, channel), view, time.monotonic_ns(), data))

    def note(self, event: str, **details: Any) -> None:
        """Record that something happened."""
        self._append(encode_json(RecordKind.NOTE, time.monotonic_ns(), {"event": event, **details}))

    def flush(self) -> None:
        """Hand to the kernel what this turn has recorded: from then on it survives this process."""
        if not self._batch:
            return
        batch, self._batch = self._batch, bytearray()
        if self.stopped:
            return
        try:
            write_whole(self._fd, batch)
        except OSError as error:
            self._stop(error.strerror or str(error))
        else:
            self.size += len(batch)
            self._written = self.records

    def close(self) -> None:
        """Write what is left, and close the file."""
        self.flush()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _append(self, record: bytes) -> int:
        self.records += 1
        self._batch += record
        if len(self._batch) > FLUSH_AT:
            self.flush()
        return self.records

    def _stop(self, why: str) -> None:
        self.stopped = why
        with suppress(OSError):  # what is no regular file cannot
            os.truncate(self._fd, self._begin + self.size)  # a record that went in only in part is taken back
        self._warn(
            f"THE TRACE {self.path} HAS STOPPED after {counted(self._written, 'record')}: {why};"
            " the session goes on untraced"
        )


def _opened(path: str, warn: Callable[[str], None]) -> int:
    """The descriptor of a trace; `warn` is told where what was there is kept.

    Raises:
        UserError: it cannot be written.
    """
    number = path.removeprefix(INHERITED)
    try:
        if number == path:
            keep_aside(Path(path), warn)
            return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o644)
        os.set_inheritable(int(number), False)
        return int(number)
    except (OSError, ValueError, OverflowError) as error:
        why = error.strerror if isinstance(error, OSError) else f"{number:.20} is no descriptor"
        hint = "name another place for it, or make that one ready" if number == path else ""
        raise UserError(f"cannot write the trace {path}: {why}", hint=hint) from None


def _end_of(fd: int) -> int:
    """Where the next write to a descriptor goes: a file that was handed on may have something in it already."""
    if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_APPEND:
        return os.fstat(fd).st_size
    try:
        return os.lseek(fd, 0, os.SEEK_CUR)
    except OSError:  # it is no file
        return 0
