"""Sockets that carry file descriptors, and where messages begin and end in them. Knows no protocol."""

from userdev.transport.address import MAX_PATH, Address, Listener, connect, connect_within
from userdev.transport.dialing import Dialer
from userdev.transport.framing import MAX_FDS, BadFrame, Framed, Framer
from userdev.transport.peer import is_other_end
from userdev.transport.stream import MAX_FDS_PER_SEND, DescriptorsLost, Stream, close_all

__all__ = [
    "MAX_FDS",
    "MAX_FDS_PER_SEND",
    "MAX_PATH",
    "Address",
    "BadFrame",
    "DescriptorsLost",
    "Dialer",
    "Framed",
    "Framer",
    "Listener",
    "Stream",
    "close_all",
    "connect",
    "connect_within",
    "is_other_end",
]
