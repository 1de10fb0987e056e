"""The dirty log of a migration: a bit for each page that was written ("Migration").

QEMU shares one log among all its devices, and clears it while they write: a byte that is read, changed and written
would lose what others set or cleared meanwhile, and Python has no atomic operation on shared memory. So whole bytes are
set, whatever is in them: 8 pages, of which some are sent in vain.
"""

from __future__ import annotations

from typing import Final

from userdev.errors import ProtocolError
from vhost_user.memory.mapping import FileMapping
from vhost_user.wire.payloads import Log

PAGE: Final = 0x1000
"""VHOST_LOG_PAGE, whatever the machine's pages are."""

_BYTE_SHIFT: Final = 15
"""A byte of the log has 8 pages."""


class DirtyLog:
    """One log, as SET_LOG_BASE has given it; `fd` stays the caller's.

    Mark after the data is written and before its request is: the front-end sends a page again that is marked when it
    looks, and a mark that comes first may be taken away before there is anything to see.
    """

    def __init__(self, log: Log, fd: int) -> None:
        """Map it.

        Raises:
            ProtocolError: it is empty, or beyond its file; or the errno of mmap.
        """
        self._mapping = FileMapping(fd, log.offset, log.size)
        self.size = log.size
        self._bytes = self._mapping.view

    def check(self) -> None:
        """Look whether the file still has the log; ProtocolError where it has shrunk."""
        self._mapping.check()

    def mark(self, address: int, length: int) -> None:
        """Mark the pages of `length` bytes at a guest address, written just before.

        Always stored, also over what seems to be set already: the look could be older than the data.

        Raises:
            ProtocolError: the log does not reach so far.
        """
        if not length:
            return
        first, last = address >> _BYTE_SHIFT, address + length - 1 >> _BYTE_SHIFT
        if last >= self.size:
            raise ProtocolError(f"{length:#x} bytes at {address:#x} are beyond the dirty log")
        if first == last:
            self._bytes[first] = 0xFF
        else:
            self._bytes[first : last + 1] = b"\xff" * (last + 1 - first)

    def close(self) -> None:
        """Unmap it."""
        self._bytes = memoryview(b"")
        self.size = 0
        self._mapping.close()
