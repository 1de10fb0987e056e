"""An image that goes along in a migration, between hosts that do not share it (`--migrate-image=yes`)."""

from __future__ import annotations

import errno
import logging
from collections import deque

from userdev_servers.block.backing import Backing

log = logging.getLogger("vfio_user.servers.nvme")

SYNC_EVERY = 64 << 20
"""Bytes that came, after which they are brought to the disk: little is left to do when all are there."""


class ImageCopy:
    """One image as a `Storage`. Where both sides turn out to have the same file, what comes is left alone: it is there.

    Whoever has its own image has it locked. Who has not got that lock, as another has it, has the source's.
    """

    def __init__(self, name: str, backing: Backing) -> None:
        self.name = name
        self.backing = backing
        self._loads = False
        self._unsynced = 0

    @property
    def size(self) -> int:
        """Bytes of the image."""
        return self.backing.length

    def begin_saving(self) -> None:
        """Begin the log of what is written."""
        self.backing.log = deque()

    def next_data(self, offset: int) -> int:
        """The first offset from `offset` on where the file is no hole."""
        return self.backing.next_data(offset)

    def read(self, offset: int, size: int) -> bytes:
        """The `size` bytes at `offset`.

        Raises:
            OSError: the disk cannot read.
        """
        return self.backing.read_bytes(size, offset)

    def take_written(self) -> list[tuple[int, int]]:
        """Empty the log; returns offsets and sizes in bytes, in order, neighbours joined."""
        written = self.backing.log
        taken = sorted(written.popleft() for _ in range(len(written))) if written else []  # threads may append
        return _joined(taken)

    def begin_loading(self, size: int) -> None:
        """Make the image as large as the one that comes, unless it is that one.

        Raises:
            OSError: ENOLCK where the image cannot be locked; or it cannot be made that large.
        """
        lock = self.backing.lock
        if not lock.possible:
            raise OSError(errno.ENOLCK, f"{self.backing.path} cannot be locked, and might be what is migrated")
        self._loads = lock.held
        if not self._loads:
            log.info("%s is what is migrated: nothing is copied", self.backing.path)
            return
        self.backing.extend(size)

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Write what came, and sync every 64 MiB.

        Raises:
            OSError: the disk refuses.
        """
        if self._loads:
            with memoryview(data) as piece:
                self.backing.write([piece], offset)
            self._sync_after(len(data))

    def clear(self, offset: int, size: int) -> None:
        """Make a hole where zeros came.

        Raises:
            OSError: the disk refuses.
        """
        if self._loads:
            self.backing.extend(offset + size)
            self.backing.discard(offset, size)

    def settle(self) -> None:
        """Bring all to the disk.

        Raises:
            OSError: that fails.
        """
        if self._loads:
            self.backing.sync()

    def end(self) -> None:
        """Stop the log, and take nothing more."""
        self.backing.log = None
        self._loads = False

    def _sync_after(self, size: int) -> None:
        self._unsynced += size
        if self._unsynced >= SYNC_EVERY:
            self.backing.sync()
            self._unsynced = 0


def _joined(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Join sorted ranges that touch each other or overlap."""
    joined: list[tuple[int, int]] = []
    for offset, size in ranges:
        if joined and offset <= (end := sum(joined[-1])):
            joined[-1] = joined[-1][0], max(end, offset + size) - joined[-1][0]
        else:
            joined.append((offset, size))
    return joined
