"""Traces of vfio-user: read and written (`userdev.trace` has the file), and shown."""

from userdev.trace import Frame, Header, Kind, Note, Raw, View
from vfio_user.interposer.trace.files import Entry, Record, Trace, TraceWriter, read_trace

__all__ = ["Entry", "Frame", "Header", "Kind", "Note", "Raw", "Record", "Trace", "TraceWriter", "View", "read_trace"]
