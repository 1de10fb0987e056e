"""The 16-byte header that every message of every dialect starts with (specification, "Header").

=======  ======  ====  =====================================================
field    offset  size  meaning
=======  ======  ====  =====================================================
id       0       2     owned by the sender of the command, echoed in the reply
command  2       2     a number of the dialect, see `vfio_user.wire.dialects`
size     4       4     bytes of the whole message, this header included
flags    8       4     bits 0-3 type, bit 4 No_reply, bit 5 Error
errno    12      4     UNIX errno, only in a reply that has the Error flag
=======  ======  ====  =====================================================

Integers are little-endian: the draft says so, and every later peer uses the host's order on a little-endian host.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import ClassVar

HEADER = struct.Struct("<HHIII")
HEADER_SIZE = HEADER.size
_SIZE = struct.Struct("<I")

TYPE_MASK = 0xF
COMMAND = 0x0
REPLY = 0x1
NO_REPLY = 0x10
ERROR = 0x20


MAX_DATA = 1 << 20
"""Bytes of data in one message unless negotiated otherwise (`max_data_xfer_size`)."""

MAX_MESSAGE = MAX_DATA + (64 << 10)
"""Longest message taken: the data, and a generous allowance for the structures around it."""


@dataclass(slots=True)
class Message:
    """One message, with the file descriptors that came or go beside its bytes.

    Whoever holds the message owns `fds` and closes those that nobody takes.
    """

    header_size: ClassVar[int] = HEADER_SIZE
    max_size: ClassVar[int] = MAX_MESSAGE

    id: int
    command: int
    flags: int = COMMAND
    errno: int = 0
    payload: bytes = b""
    fds: list[int] = field(default_factory=list)

    @classmethod
    def size_at(cls, buffer: bytearray, at: int) -> int:
        """Bytes of the message that begins at `at`, its header included, as that says."""
        size: int = _SIZE.unpack_from(buffer, at + 4)[0]
        return size

    @classmethod
    def decode(cls, buffer: bytes | bytearray, at: int, payload: bytes, fds: list[int]) -> Message:
        """The message whose header is at `at`, of what follows it and of the descriptors that belong to it."""
        id, command, _, flags, errno = HEADER.unpack_from(buffer, at)
        return cls(id, command, flags, errno, payload, fds)

    def __str__(self) -> str:
        return f"message {self.id}, command {self.command}"

    @property
    def type(self) -> int:
        """COMMAND or REPLY; other numbers are no type of the protocol's."""
        return self.flags & TYPE_MASK

    @property
    def is_reply(self) -> bool:
        """Whether this answers a command."""
        return self.flags & TYPE_MASK == REPLY

    @property
    def wants_reply(self) -> bool:
        """Whether this is a command that is to be answered."""
        return self.flags & TYPE_MASK == COMMAND and not self.flags & NO_REPLY

    @property
    def failed(self) -> bool:
        """Whether this is a reply that reports an error; `errno` may still be 0 (draft v6 allows it)."""
        return self.is_reply and bool(self.flags & ERROR)

    @property
    def refuses(self) -> bool:
        """Whether this is a reply by which nothing was done: one that reports an error, and says which."""
        return self.failed and self.errno != 0

    @property
    def size(self) -> int:
        """Bytes of the whole message, its header included."""
        return HEADER_SIZE + len(self.payload)

    def encode(self) -> bytes:
        """The bytes of this message; a decoded message encodes to the bytes it came from."""
        return HEADER.pack(self.id, self.command, self.size, self.flags, self.errno) + self.payload

    def reply(self, payload: bytes = b"", fds: list[int] | None = None) -> Message:
        """The good answer to this command."""
        return Message(self.id, self.command, REPLY, 0, payload, fds or [])

    def error(self, errno: int, payload: bytes = b"") -> Message:
        """The answer that reports `errno`; header only unless the dialect wants a body."""
        return Message(self.id, self.command, REPLY | ERROR, errno, payload)


MessageHeader = tuple[int, int, int, int, int]
"""id, command, size, flags, errno."""


def split_messages(view: memoryview, at: int, end: int) -> tuple[list[tuple[MessageHeader, memoryview]], int]:
    """The complete messages between `at` and `end`, up to a header that cannot be right; where they stop."""
    messages: list[tuple[MessageHeader, memoryview]] = []
    while end - at >= HEADER_SIZE:
        header: MessageHeader = HEADER.unpack_from(view, at)
        size = header[2]
        after = at + size
        if after > end or size < HEADER_SIZE:
            break
        messages.append((header, view[at:after]))
        at = after
    return messages, at
