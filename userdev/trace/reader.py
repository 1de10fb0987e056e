"""Reads trace files back: lazily, and up to where they end, wherever that is."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Generic

from userdev.errors import ProtocolError, UserError
from userdev.trace.format import LENGTH, MAGIC, MAX_RECORD, PREFIX, Header, Note, R, Raw, TracedProtocol, decode


@dataclass
class Trace(Generic[R]):
    """A trace as a whole; `truncated` says where and why it ends early, and is empty where it does not."""

    path: Path
    header: Header
    entries: list[Header | R | Raw | Note]
    truncated: str = ""


class TraceReader(Generic[R]):
    """Iterates over the records of an open trace. `truncated` is set once the end is reached, and stays."""

    def __init__(self, stream: io.BufferedIOBase, name: str, *protocols: TracedProtocol[R]) -> None:
        """Read the header, which says of which of the protocols it is.

        Raises:
            UserError: this is no trace, or one of another format or protocol.
        """
        self._stream = stream
        self._protocol = protocols[0]  # for the header, which is the same in all of them
        self._number = 0
        self.truncated = ""
        if stream.read(len(MAGIC)) != MAGIC:
            raise UserError(f"{name} is no trace", hint="an interposer writes one: --trace FILE")
        header = next(iter(self), None)
        if not isinstance(header, Header):
            raise UserError(f"{name}: the trace has no header", hint="it was cut off before its first record")
        known = {protocol.name: protocol for protocol in protocols}
        if header.protocol not in known:
            raise UserError(f"{name} is a trace of {header.protocol:.40}, and not of {' or '.join(known)}")
        self._protocol = known[header.protocol]
        self.header = header

    def __iter__(self) -> Iterator[Header | R | Raw | Note]:
        while not self.truncated and (record := self._record()) is not None:
            self._number += 1
            try:
                yield decode(self._number, record, self._protocol)
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


def read_trace(path: str | Path, *protocols: TracedProtocol[R]) -> Trace[R]:
    """The whole trace of one of these protocols, which its header names.

    Raises:
        UserError: there is no such file, or it is no trace.
    """
    try:
        with open(path, "rb") as stream:
            reader = TraceReader(stream, str(path), *protocols)
            entries = list(reader)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    return Trace(Path(path), reader.header, entries, reader.truncated)
