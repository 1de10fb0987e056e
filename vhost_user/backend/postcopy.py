"""A migration whose memory comes after its start ("Migration"; POSTCOPY_ADVISE, POSTCOPY_LISTEN, POSTCOPY_END).

The front-end has the descriptor that tells of missing pages, and this end keeps none once the memory is agreed on: a
front-end that dies closes the last one then, and whoever waits for a page goes on. Its thread has Python's lock, so
that nothing else could free it.
"""

from __future__ import annotations

import errno
import os

from userdev.errors import ProtocolError
from userdev.memory.files import MemoryFile
from vhost_user.memory.table import MappedRegion
from vhost_user.memory.userfault import UserFault, address_of


class Postcopy:
    """What a connection has of it; nothing, for most."""

    def __init__(self) -> None:
        self._userfault: UserFault | None = None
        self._registered: set[tuple[int, int, int]] = set()
        self._files: list[MemoryFile] = []
        """Those that are registered, so that none gets the identity of another."""
        self.is_listening = False

    def advise(self) -> int:
        """A new userfaultfd for the front-end, which the caller closes.

        Raises:
            ProtocolError: there is none to be had.
        """
        self.end()
        try:
            self._userfault = UserFault()
        except OSError as error:
            raise ProtocolError(f"no userfaultfd: {error.strerror}", error.errno or errno.EPERM) from None
        return os.dup(self._userfault.fd)

    def listen(self) -> None:
        """Memory that is shared from now on is waited for.

        Raises:
            ProtocolError: POSTCOPY_ADVISE has not come.
        """
        if self._userfault is None:
            raise ProtocolError("POSTCOPY_LISTEN without POSTCOPY_ADVISE")
        self.is_listening = True

    def register(self, region: MappedRegion) -> int:
        """Have accesses to a region wait for its pages; where it is mapped.

        Raises:
            ProtocolError: it is no whole pages, or comes when all memory was agreed on.
        """
        start = region.file_start
        key = id(region.file), start, region.size
        if key not in self._registered:
            if self._userfault is None:
                raise ProtocolError("memory that postcopy has not agreed on")
            self._userfault.register(region.file.map, start, region.size)
            self._registered.add(key)
            self._files.append(region.file)
        return address_of(region.file.map) + start

    def agree(self) -> None:
        """The front-end knows where all memory is: the userfaultfd is its own."""
        if self._userfault is not None:
            self._userfault.close()
            self._userfault = None

    def end(self) -> None:
        """All pages have come. Idempotent."""
        self.agree()
        self._registered.clear()
        self._files.clear()
        self.is_listening = False
