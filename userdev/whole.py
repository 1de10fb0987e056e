"""Files read and written whole: one system call may do a part of what it is asked for (read(2), write(2)).

A write that does nothing and says no error would be tried for ever; it is an error here. EINTR is Python's to try
again (PEP 475).
"""

from __future__ import annotations

import errno
import os

READ_SIZE = 1 << 20
"""Bytes that are asked for at once: the room for them is taken before anybody knows how many there are."""


def write_whole(fd: int, data: bytes | bytearray | memoryview, offset: int | None = None) -> None:
    """Write all of it: at `offset`, or where the file stands. A memoryview is of bytes.

    Raises:
        OSError: that of write(2), or EIO where it does nothing. A part may have been written.
    """
    done = os.write(fd, data) if offset is None else os.pwrite(fd, data, offset)
    while done < len(data):
        with memoryview(data)[done:] as rest:
            more = os.write(fd, rest) if offset is None else os.pwrite(fd, rest, offset + done)
        if not more:
            raise OSError(errno.EIO, "a write has done nothing")
        done += more


def read_whole(fd: int, size: int, offset: int | None = None) -> bytes:
    """Read `size` bytes: at `offset`, or from where the file stands; fewer at its end alone.

    Raises:
        OSError: that of read(2).
    """
    pieces: list[bytes] = []
    left = size
    while left:
        count = min(left, READ_SIZE)
        piece = os.read(fd, count) if offset is None else os.pread(fd, count, offset + size - left)
        if not piece:
            break
        pieces.append(piece)
        left -= len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)
