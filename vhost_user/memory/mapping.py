"""A piece of a file that is mapped."""

from __future__ import annotations

import errno
import mmap
import os
import stat
from contextlib import suppress

from userdev.errors import ProtocolError
from userdev.memory.guard import guard
from userdev.memory.shrinking import can_shrink, check_size


class FileMapping:
    """A piece of a regular file that is mapped, as the dirty log and the in-flight region are."""

    def __init__(self, fd: int, offset: int, size: int) -> None:
        """Map it; `fd` stays the caller's.

        Raises:
            ProtocolError: it is empty, or beyond its file; or the errno of mmap.
        """
        status = os.fstat(fd)
        if not size or not stat.S_ISREG(status.st_mode) or offset + size > status.st_size:
            raise ProtocolError(f"{size:#x} bytes at {offset:#x} of a file that has {status.st_size:#x}")
        before = offset % mmap.PAGESIZE
        try:
            self._map = mmap.mmap(fd, size + before, offset=offset - before)
        except (OSError, ValueError, OverflowError) as error:
            number = error.errno if isinstance(error, OSError) else None
            raise ProtocolError(f"a file cannot be mapped: {error}", number or errno.EINVAL) from None
        self.view = memoryview(self._map)[before:]
        self._end = offset + size
        self._can_shrink = can_shrink(fd)
        if self._can_shrink:
            guard(self._map)

    def check(self) -> None:
        """Look whether the file still has it; free where it is sealed against shrinking.

        Raises:
            ProtocolError: it has shrunk.
        """
        if self._can_shrink:
            check_size(self._map, self._end)

    def close(self) -> None:
        """Unmap it; where there are views of it, once the last of them is gone, and `check` is for them until then."""
        self.view = memoryview(b"")
        with suppress(BufferError):
            self._map.close()
