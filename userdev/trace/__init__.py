"""The trace file: what crossed the wire, written so that a SIGKILL loses nothing that was written before it.

Its messages are those of any protocol, which the header names.
"""

from userdev.trace.format import Frame, Header, Kind, Note, Raw, Record, Traced, TracedProtocol, View
from userdev.trace.reader import Trace, TraceReader, read_trace
from userdev.trace.writer import TraceWriter

__all__ = [
    "Frame",
    "Header",
    "Kind",
    "Note",
    "Raw",
    "Record",
    "Trace",
    "TraceReader",
    "TraceWriter",
    "Traced",
    "TracedProtocol",
    "View",
    "read_trace",
]
