"""The 12-byte header that every message starts with (specification, "Header").

=======  ======  ====  ===================================================================
field    offset  size  meaning
=======  ======  ====  ===================================================================
request  0       4     a number of the channel that the message is on: `vhost_user.wire.messages`
flags    4       4     bits 0-1 version, bit 2 reply, bit 3 need_reply
size     8       4     bytes of the payload, this header not included
=======  ======  ====  ===================================================================

Integers are in the byte order of the machine. Messages carry no identification: replies pair with requests by order.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import ClassVar

HEADER = struct.Struct("=III")
HEADER_SIZE = HEADER.size
_SIZE = struct.Struct("=I")

VERSION = 0x1
VERSION_MASK = 0x3
REPLY = 0x4
NEED_REPLY = 0x8

MAX_PAYLOAD = 4096
"""Bytes; the longest are 256 sizes of shared memory regions (2056) and sessions of crypto devices (below 2 KiB)."""

MAX_FDS = 8
"""Descriptors of one message: one for each region of SET_MEM_TABLE ("Multiple Memory regions description")."""


@dataclass(slots=True)
class Message:
    """One message, with the file descriptors that came or go beside its bytes.

    Whoever holds the message owns `fds` and closes those that nobody takes.
    """

    header_size: ClassVar[int] = HEADER_SIZE
    max_size: ClassVar[int] = HEADER_SIZE + MAX_PAYLOAD

    request: int
    flags: int = VERSION
    payload: bytes = b""
    fds: list[int] = field(default_factory=list)

    @classmethod
    def size_at(cls, buffer: bytearray, at: int) -> int:
        """Bytes of the message that begins at `at`, its header included, as that says."""
        size: int = _SIZE.unpack_from(buffer, at + 8)[0]
        return HEADER_SIZE + size

    @classmethod
    def decode(cls, buffer: bytes | bytearray, at: int, payload: bytes, fds: list[int]) -> Message:
        """The message whose header is at `at`, of what follows it and of the descriptors that belong to it."""
        request, flags, _ = HEADER.unpack_from(buffer, at)
        return cls(request, flags, payload, fds)

    def __str__(self) -> str:
        return f"{'reply to ' if self.is_reply else ''}request {self.request}"

    @property
    def version(self) -> int:
        """The protocol's version: 1."""
        return self.flags & VERSION_MASK

    @property
    def is_reply(self) -> bool:
        """Whether this answers a request."""
        return bool(self.flags & REPLY)

    @property
    def needs_reply(self) -> bool:
        """Whether the sender asks for a reply; it means something where REPLY_ACK is negotiated."""
        return bool(self.flags & NEED_REPLY)

    @property
    def size(self) -> int:
        """Bytes of the whole message, its header included."""
        return HEADER_SIZE + len(self.payload)

    def encode(self) -> bytes:
        """The bytes of this message; a decoded message encodes to the bytes it came from."""
        return HEADER.pack(self.request, self.flags, len(self.payload)) + self.payload
