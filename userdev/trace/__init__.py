"""The trace file: what crossed the wire, written so that a SIGKILL loses nothing that was written before it.

Its messages are those of any protocol, which the header names.
"""

from userdev.trace.format import Header, Note, Raw, RecordKind, Traced, TracedProtocol, TraceFrame, TraceRecord, View
from userdev.trace.lines import Decoded, Filter, TraceLine, as_json, decoded_lines, text
from userdev.trace.reader import Trace, TraceReader, read_trace
from userdev.trace.writer import TraceWriter

__all__ = [
    "Decoded",
    "Filter",
    "Header",
    "Note",
    "Raw",
    "RecordKind",
    "Trace",
    "TraceFrame",
    "TraceLine",
    "TraceReader",
    "TraceRecord",
    "TraceWriter",
    "Traced",
    "TracedProtocol",
    "View",
    "as_json",
    "decoded_lines",
    "read_trace",
    "text",
]
