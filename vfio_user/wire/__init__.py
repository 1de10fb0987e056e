"""The protocol without I/O: header, dialects, structures. Bytes in, messages out; fds travel beside.

Nothing here opens a file, reads a clock or knows which side it is on: the server, the client, the interposer and the
tests share it. A peer's mistake raises `ProtocolError` with the errno to answer; nothing else may escape.
"""

from vfio_user.wire.capabilities import Capabilities
from vfio_user.wire.dialects import (
    CURRENT,
    DIALECTS,
    DRAFT_V6,
    REGION_MIGRATION,
    Command,
    Dialect,
    Sender,
    Shape,
)
from vfio_user.wire.header import (
    COMMAND,
    ERROR,
    HEADER,
    HEADER_SIZE,
    MAX_DATA,
    MAX_MESSAGE,
    NO_REPLY,
    REPLY,
    Message,
    split_messages,
)
from vfio_user.wire.version import Proposal, decode_version, encode_version

__all__ = [
    "COMMAND",
    "CURRENT",
    "DIALECTS",
    "DRAFT_V6",
    "ERROR",
    "HEADER",
    "HEADER_SIZE",
    "MAX_DATA",
    "MAX_MESSAGE",
    "NO_REPLY",
    "REGION_MIGRATION",
    "REPLY",
    "Capabilities",
    "Command",
    "Dialect",
    "Message",
    "Proposal",
    "Sender",
    "Shape",
    "decode_version",
    "encode_version",
    "split_messages",
]
