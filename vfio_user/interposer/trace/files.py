"""Trace files of vfio-user: `userdev.trace` with this protocol's messages."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from userdev import trace
from userdev.trace import Header, Note, Raw, TracedProtocol
from vfio_user.wire import HEADER_SIZE, Dialect, Message
from vfio_user.wire.dialects import dialect_named

NAME = "vfio-user"
"""The protocol, as headers have it."""


@dataclass(frozen=True)
class MessageRecord(trace.TraceRecord[Message]):
    """A message of vfio-user's."""


Entry = Header | MessageRecord | Raw | Note
CHANNELS = ("", "twin")
"""The connections of a session: the client's, and the second socket on which a server asks (`interposer.twin`)."""
TWIN = CHANNELS.index("twin")
PROTOCOL = TracedProtocol(NAME, Message, HEADER_SIZE, MessageRecord, CHANNELS)


@dataclass
class VfioTrace(trace.Trace[MessageRecord]):
    """A trace as a whole."""

    @property
    def dialect(self) -> Dialect:
        """The dialect of its messages; raises `UserError` for an unknown one."""
        return dialect_named(self.header.dialect)


def read_trace(path: str | Path) -> VfioTrace:
    """The whole trace.

    Raises:
        UserError: there is no such file, or it is no trace of vfio-user.
    """
    found = trace.read_trace(path, PROTOCOL)
    return VfioTrace(found.path, found.header, found.entries, found.truncated)
