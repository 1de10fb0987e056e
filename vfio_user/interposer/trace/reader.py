"""Reads trace files back: lazily, and up to where they end, wherever that is."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from userdev.errors import ProtocolError, UserError
from vfio_user.interposer.trace.format import LENGTH, MAGIC, MAX_RECORD, PREFIX, Entry, Header, decode
from vfio_user.wire import Dialect
from vfio_user.wire.dialects import dialect_named


@dataclass
class Trace:
    """A trace as a whole; `truncated` says where and why it ends early, and is empty where it does not."""

    path: Path
    header: Header
    entries: list[Entry]
    truncated: str = ""

    @property
    def dialect(self) -> Dialect:
        return dialect_named(self.header.dialect)


class TraceReader:
    """Iterates over the records of an open trace. `truncated` is set once the end is reached."""

    def __init__(self, stream: io.BufferedIOBase, name: str) -> None:
        """Read the header.

        Raises:
            UserError: this is no trace, or one of another format.
        """
        self._stream = stream
        self._number = 0
        self.truncated = ""
        if stream.read(len(MAGIC)) != MAGIC:
            raise UserError(f"{name} is no trace", hint="record one with: vfio-user interpose --trace FILE")
        header = next(iter(self), None)
        if not isinstance(header, Header):
            raise UserError(f"{name}: the trace has no header", hint="it was cut off before its first record")
        self.header = header

    def __iter__(self) -> Iterator[Entry]:
        while (record := self._record()) is not None:
            self._number += 1
            try:
                yield decode(self._number, record)
            except ProtocolError as error:
                self.truncated = str(error)
                return

    def _record(self) -> bytes | None:
        prefix = self._stream.read(LENGTH.size)
        if not prefix:
            return None
        if len(prefix) < LENGTH.size:
            self.truncated = f"cut off within record {self._number + 1}"
            return None
        length: int = LENGTH.unpack(prefix)[0]
        if not PREFIX.size - LENGTH.size <= length <= MAX_RECORD:
            self.truncated = f"damaged at record {self._number + 1}: its length is {length}"
            return None
        body = self._stream.read(length)
        if len(body) < length:
            self.truncated = f"cut off within record {self._number + 1}"
            return None
        return prefix + body


def read_trace(path: str | Path) -> Trace:
    """The whole trace.

    Raises:
        UserError: there is no such file, or it is no trace.
    """
    try:
        with open(path, "rb") as stream:
            reader = TraceReader(stream, str(path))
            entries = list(reader)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    return Trace(Path(path), reader.header, entries, reader.truncated)
