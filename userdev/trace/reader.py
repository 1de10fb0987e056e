"""Reads trace files back: lazily, and up to where they end, wherever that is."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Generic

from userdev.errors import ProtocolError, UserError
from userdev.trace.format import LENGTH, MAGIC, MAX_RECORD, PREFIX, Header, Note, R, Raw, TracedProtocol, decode

_CHUNK = 1 << 18
"""Bytes that are read at once."""
_LEAST = PREFIX.size - LENGTH.size


@dataclass
class Trace(Generic[R]):
    """A trace as a whole; `truncated` says where and why it ends early, and is empty where it does not."""

    path: Path
    header: Header
    entries: list[Header | R | Raw | Note]
    truncated: str = ""


class TraceReader(Generic[R]):
    """Reads an open trace: as entries, which is what iterating gives, or as bytes, with `records`.

    `number` is that of the record that came last, and `record` its bytes. `truncated` is set once the end is reached; a
    file that grows can be read on from there, as long as nothing is damaged.
    """

    def __init__(self, stream: io.BufferedIOBase, name: str, *protocols: TracedProtocol[R]) -> None:
        """Read the header, which says of which of the protocols it is.

        Raises:
            UserError: this is no trace, or one of another format or protocol.
        """
        self._stream = stream
        self._buffer, self._at = b"", 0
        self._damage = self._cut = ""
        self.protocol = protocols[0]  # for the header, which is the same in all of them
        self.number = 0
        self.record = b""
        if stream.read(len(MAGIC)) != MAGIC:
            raise UserError(f"{name} is no trace", hint="an interposer writes one: --trace FILE")
        header = next(iter(self), None)
        if not isinstance(header, Header):
            raise UserError(f"{name}: the trace has no header", hint="it was cut off before its first record")
        known = {protocol.name: protocol for protocol in protocols}
        if header.protocol not in known:
            of = " or ".join(known)
            hint = f"what was asked for needs messages of {of}; `trace show` and `trace stats` read other traces too"
            raise UserError(f"{name} is a trace of {header.protocol:.40}, and not of {of}", hint=hint)
        self.protocol = known[header.protocol]
        self.header = header

    @property
    def truncated(self) -> str:
        """Where and why the trace ends early; empty where it does not, or has not yet been read so far."""
        return self._damage or self._cut

    def __iter__(self) -> Iterator[Header | R | Raw | Note]:
        for record in self.records():
            if (entry := self.decoded(record)) is None:
                return
            yield entry

    def decoded(self, record: bytes) -> Header | R | Raw | Note | None:
        """The entry in the record that came last; None where it is malformed, and the reading ends."""
        try:
            return decode(self.number, record, self.protocol)
        except ProtocolError as error:
            self._damage = str(error)
            return None

    def _goes_on(self) -> bool:
        return not self._damage

    def records(self) -> Iterator[bytes]:
        """Each record with its length before it, undecoded, to the end of what the file has now."""
        self._cut = ""
        needed = 0
        while self._goes_on():
            buffer, at, end = self._buffer, self._at, len(self._buffer)
            while end - at >= LENGTH.size:
                (length,) = LENGTH.unpack_from(buffer, at)
                if not _LEAST <= length <= MAX_RECORD:
                    self._damage = f"damaged at record {self.number + 1}: its length is {length}"
                    return
                after = at + LENGTH.size + length
                if after > end:
                    needed = after - end
                    break
                self.number += 1
                self._at = after
                self.record = buffer[at:after]
                yield self.record
                if not self._goes_on():
                    return
                at = after
            more = self._stream.read(max(_CHUNK, needed))
            if not more:
                self._cut = f"cut off within record {self.number + 1}" if end > at else ""
                return
            self._buffer, self._at = buffer[at:] + more, 0


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
