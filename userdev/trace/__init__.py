"""The trace file: what crossed the wire, written so that a SIGKILL loses nothing that was written before it.

Its messages are those of any protocol, which the header names.
"""

from userdev.trace.format import Header, Note, Raw, RecordKind, Traced, TracedProtocol, TraceFrame, TraceRecord, View
from userdev.trace.reader import Trace, TraceReader, read_trace
from userdev.trace.writer import TraceWriter

__all__ = [
    "Header",
    "Note",
    "Raw",
    "RecordKind",
    "Trace",
    "TraceFrame",
    "TraceReader",
    "TraceRecord",
    "TraceWriter",
    "Traced",
    "TracedProtocol",
    "View",
    "read_trace",
]
