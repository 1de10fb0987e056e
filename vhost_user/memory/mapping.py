"""Whether a file that is mapped still has the bytes: an access behind its end kills the process with SIGBUS.

A memfd may be sealed against shrinking, as QEMU's are; then nothing has to be looked at. Any other file is asked for
its size before memory is used. That cannot help where it shrinks at just that moment: who shares memory without a seal
can always end the process that it shares it with.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import stat

from userdev.errors import ProtocolError


def can_shrink(fd: int) -> bool:
    """Whether the file may become smaller: a regular file without that seal. A device's memory is none."""
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        return False
    try:
        return not fcntl.fcntl(fd, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK
    except OSError:
        return True


def check_size(mapped: mmap.mmap, needed: int) -> None:
    """Ask the file behind a mapping for its size; the mapping has a descriptor of its own.

    Raises:
        ProtocolError: it has become smaller than what is used of it.
    """
    if (size := mapped.size()) < needed:
        raise ProtocolError(f"a file has shrunk to {size:#x} bytes, of which {needed:#x} are shared memory")


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

    def check(self) -> None:
        """Look whether the file still has it; free where it is sealed against shrinking.

        Raises:
            ProtocolError: it has shrunk.
        """
        if self._can_shrink:
            check_size(self._map, self._end)

    def close(self) -> None:
        """Unmap it; where there are views of it, once the last of them is gone."""
        self.view = memoryview(b"")
        try:
            self._map.close()
        except BufferError:
            del self._map
