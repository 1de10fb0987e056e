"""The trace file: what crossed the wire, written so that a SIGKILL loses nothing that was written before it."""

from vfio_user.interposer.trace.format import Frame, Header, Kind, Note, Raw, Record, View
from vfio_user.interposer.trace.reader import Trace, read_trace
from vfio_user.interposer.trace.writer import TraceWriter

__all__ = ["Frame", "Header", "Kind", "Note", "Raw", "Record", "Trace", "TraceWriter", "View", "read_trace"]
