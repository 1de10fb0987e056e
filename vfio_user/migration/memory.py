"""Memory of a device that migrates in place, and the file that it is in, where what was never used costs nothing.

A memfd has pages where something was written, and holes elsewhere (memfd_create(2); lseek(2), SEEK_DATA). Looking at a
hole through a mapping would make it a page: whoever walks memory asks for the next data first, and reads by pread(2).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import weakref
from collections.abc import Iterator
from typing import Protocol

from userdev.whole import read_whole, write_whole

PIECE = 64 << 10
"""Bytes that are looked at at once, and sent in one frame."""
PAGE = mmap.PAGESIZE
_ZERO = bytes(PIECE)

F_ADD_SEALS = 1033
SIZE_SEALS = 0x1 | 0x2 | 0x4  # F_SEAL_SEAL, F_SEAL_SHRINK, F_SEAL_GROW


class Content(Protocol):
    """Bytes at offsets, with holes: memory or storage."""

    @property
    def size(self) -> int:
        """Bytes."""

    def next_data(self, offset: int) -> int:
        """Where, from `offset` on, something else than zeros may be: `size` if nowhere."""

    def read(self, offset: int, size: int) -> bytes:
        """Read `size` bytes at `offset`, or fewer behind the end."""


class Memory:
    """A device's memory: `view` is writable, of bytes, and as large as the memory. All of it may be used."""

    def __init__(self, name: str, view: memoryview) -> None:
        self.name = name
        self.view = view

    @property
    def size(self) -> int:
        """Bytes of it."""
        return len(self.view)

    def next_data(self, offset: int) -> int:
        """Find the next data, as `Content.next_data`."""
        return offset

    def read(self, offset: int, size: int) -> bytes:
        """Read bytes, as `Content.read`."""
        return bytes(self.view[offset : offset + size])

    def write(self, offset: int, data: bytes) -> None:
        """Replace bytes; zeros become a hole where there can be one."""
        if is_zero(data):
            self.clear(offset, len(data))
        else:
            self._put(offset, data)

    def clear(self, offset: int, size: int) -> None:
        """Make bytes zero."""
        for at in range(offset, offset + size, PIECE):
            end = min(at + PIECE, offset + size)
            if not is_zero(bytes(self.view[at:end])):  # comparing views is slow
                self.view[at:end] = bytes(end - at)

    def _put(self, offset: int, data: bytes) -> None:
        self.view[offset : offset + len(data)] = data


class Memfd:
    """An anonymous file of a fixed size, mapped here. Its descriptor may be given to others, who map it too."""

    def __init__(self, name: str, size: int) -> None:
        self.size = size
        self.fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        self._close_fd = weakref.finalize(self, os.close, self.fd)  # also of a device that nobody closed
        try:
            os.ftruncate(self.fd, size)
            # Whoever gets this file must not be able to shrink it under our feet.
            fcntl.fcntl(self.fd, F_ADD_SEALS, SIZE_SEALS)
            self._map = mmap.mmap(self.fd, size)
        except BaseException:
            self._close_fd()
            raise
        self.view = memoryview(self._map)

    def next_data(self, offset: int) -> int:
        """Where, from `offset` on, the file has no hole: its size if nowhere."""
        try:
            return os.lseek(self.fd, offset, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return self.size
            raise

    def punch(self, offset: int, size: int) -> None:
        """Make a hole, of whole pages; every mapping has zeros there."""
        if size > 0:
            self._map.madvise(mmap.MADV_REMOVE, offset, size)

    def close(self) -> None:
        """Unmap and close; views that others still hold keep the mapping alive."""
        self.view.release()
        with contextlib.suppress(BufferError):
            self._map.close()
        self._close_fd()


class MemfdMemory(Memory):
    """Memory in a part of a memfd that begins at a page; the rest of its last page is nobody else's."""

    def __init__(self, name: str, file: Memfd, offset: int, size: int) -> None:
        super().__init__(name, file.view[offset : offset + size])
        self._file = file
        self._offset = offset
        self._size = size

    @property
    def size(self) -> int:
        """Bytes of it."""
        return self._size

    def next_data(self, offset: int) -> int:
        """Find where from `offset` on something was written: holes of the file are zeros."""
        return min(self._file.next_data(self._offset + offset) - self._offset, self._size)

    def read(self, offset: int, size: int) -> bytes:
        """Read bytes by the file: holes stay holes."""
        return read_whole(self._file.fd, min(size, self._size - offset), self._offset + offset)

    def clear(self, offset: int, size: int) -> None:
        """Make a range zero; whole pages of it become holes."""
        end = offset + size
        first, last = -(-offset // PAGE) * PAGE, end if end == self._size else end // PAGE * PAGE
        if first >= last:
            self._zero(offset, end)
            return
        self._zero(offset, first)
        self._file.punch(self._offset + first, last - first)
        self._zero(last, end)

    def _put(self, offset: int, data: bytes) -> None:
        write_whole(self._file.fd, data, self._offset + offset)  # a mapping would fault for each page

    def _zero(self, start: int, end: int) -> None:
        """A part of a page, unless it is in a hole."""
        if not is_zero(self.read(start, end - start)):
            self._put(start, bytes(end - start))


def is_zero(data: bytes) -> bool:
    """Whether all of up to `PIECE` bytes are zero."""
    return data == _ZERO[: len(data)]


def pieces_with_data(*contents: Content, since: int = 0) -> Iterator[int]:
    """Offsets of the pieces in which any of these, of one size, may have something else than zeros.

    `since` is where a piece begins, or the end.
    """
    at, size = since, contents[0].size
    while at < size:
        data_at = min(content.next_data(at) for content in contents)
        if data_at >= size:
            return
        at = data_at - data_at % PIECE
        yield at
        at += PIECE
