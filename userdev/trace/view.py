"""A trace file of any protocol as those see it who show it: its entries, lines, exchanges, packets and picture."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, overload

from userdev.errors import UserError
from userdev.trace.exchanges import Event, Exchanges, Reading
from userdev.trace.format import Header, Note, TracedProtocol, TraceRecord
from userdev.trace.lines import Decoded, Entry, TraceLine, decoded_lines
from userdev.trace.pcapng import PacketForm
from userdev.trace.perfetto import Lanes
from userdev.trace.reader import TraceReader

R = TypeVar("R", bound=TraceReader[Any])


@dataclass(frozen=True)
class ShownProtocol:
    """What there is to know of a protocol to show its traces."""

    protocol: TracedProtocol[Any]
    decode: Callable[[TraceRecord[Any], Decoded | None], Decoded]
    """Takes a record apart, given what the message says that it answers."""
    reading: Callable[[], Reading]
    packets: PacketForm
    lanes: Lanes
    note: Callable[[Note], Note] = lambda note: note
    """Says a note's details by their names, as people read them."""


class TraceView:
    """A trace file. Each pass reads it anew, to where it ends then, and keeps nothing of it.

    Each raises UserError where the file cannot be read any more.
    """

    def __init__(self, path: Path, header: Header, shown: ShownProtocol) -> None:
        self.path = path
        self.header = header
        self.shown = shown
        self.truncated = ""
        """From the end of a pass on: where and why the trace ends early, empty where it does not."""

    def entries(self) -> Iterator[Entry]:
        """Every entry but the header."""
        with opened(self.path, self.shown.protocol) as reader:
            yield from reader
            self.truncated = reader.truncated

    def lines(self) -> Iterator[TraceLine]:
        """Every entry with what it says, and requests with what they were answered."""
        note = self.shown.note
        entries = (note(entry) if isinstance(entry, Note) else entry for entry in self.entries())
        return decoded_lines(entries, self.shown.decode)

    def events(self, *, keep: bool = False) -> Iterator[Event]:
        """Exchanges as they were complete, those without an answer last, and all else in between.

        For long traces: a million records are read in seconds. `keep` has exchanges keep their messages.
        """
        with opened(self.path, self.shown.protocol) as reader:
            exchanges = Exchanges(reader, self.shown.reading(), keep=keep)
            yield from exchanges.events()
            yield from exchanges.rest()
            self.truncated = reader.truncated


@overload
def opened(path: Path, *protocols: TracedProtocol[Any]) -> AbstractContextManager[TraceReader[Any]]: ...
@overload
def opened(path: Path, *protocols: TracedProtocol[Any], kind: type[R]) -> AbstractContextManager[R]: ...
@contextmanager
def opened(path: Path, *protocols: TracedProtocol[Any], kind: Any = TraceReader) -> Iterator[Any]:
    """A reader of the trace in a file, of this kind.

    Raises:
        UserError: there is no such file, it cannot be read, or is no trace of one of these protocols.
    """
    try:
        with open(path, "rb") as stream:
            yield kind(stream, str(path), *protocols)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
