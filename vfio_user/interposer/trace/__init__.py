"""Traces of vfio-user: read and written (`userdev.trace` has the file), and shown."""

from userdev.trace import Header, Note, Raw, RecordKind, TraceFrame, View
from vfio_user.interposer.trace.files import Entry, MessageRecord, VfioTrace, read_trace

__all__ = [
    "Entry",
    "Header",
    "MessageRecord",
    "Note",
    "Raw",
    "RecordKind",
    "TraceFrame",
    "VfioTrace",
    "View",
    "read_trace",
]
