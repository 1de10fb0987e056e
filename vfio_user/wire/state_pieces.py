"""How much of a device's state goes to a server in one message.

What the specification bounds by `max_data_xfer_size` is the data of DMA_READ, DMA_WRITE, REGION_READ and REGION_WRITE
("Message sizes"); of MIG_DATA_READ and MIG_DATA_WRITE it says nothing. libvfio-user refuses both above what its client
announced (lib/migration.c). So each side keeps to what it may expect of the other:

- who asks (client, interposer) stays below what both sides announced;
- our server gives no more in MIG_DATA_READ's reply than the client announced for itself, which has to receive it, and
  takes as much in MIG_DATA_WRITE as it announced itself, as in REGION_WRITE.

What was announced is no promise, though: libvfio-user announces 1 MiB, and takes the body of a message out of the
socket in one receive (lib/tran_sock.c); what has not come by then is missing, and the rest of it is taken for the next
message. Linux puts up to 36 KiB of what is sent at once into one buffer (net/unix/af_unix.c, unix_stream_sendmsg), and
only what is in one buffer comes in one receive for sure: of messages of 64 KiB one in seventy came in two to a receiver
that polls, and all of 266 KB do.
"""

from __future__ import annotations

PIECE = 32 << 10
"""Bytes of state that every server takes in one message."""

OUR_STATE = b"VFUSTATE"
"""What the state of this project's own servers begins with. They take messages of any size, in any number of receives,
and nobody else takes a state that begins so."""


class StatePieces:
    """The size of the pieces of one state that is handed to one server."""

    def __init__(self) -> None:
        self._known = False

    def size(self, agreed: int) -> int:
        """Bytes to send at once, where both sides have announced that they take `agreed` of data."""
        return agreed if self._known else min(agreed, PIECE)

    def taken(self, piece: bytes) -> None:
        """The server has taken this piece."""
        self._known = self._known or piece.startswith(OUR_STATE)


def write_of(command: str, size: int) -> str:
    """The name, for errors, of a message with so many bytes of data: a server may have refused it for its size."""
    if size <= PIECE:
        return command
    return f"{command} of {size:,} bytes, more than the {PIECE:,} that every server takes at once,"
