"""An image that goes along in a migration, between hosts that do not share it (`--migrate-image=yes`)."""

from __future__ import annotations

import logging
from collections import deque

from servers.nvme.backing import Backing

log = logging.getLogger("vfio_user.servers.nvme")

SYNC_EVERY = 64 << 20
"""Bytes that came, after which they are brought to the disk: little is left to do when all are there."""


class ImageCopy:
    """One image as a `Storage`. Where both sides turn out to have the same file, what comes is left alone: it is there.

    The source locks its image while it saves. Whoever cannot lock its own while it loads has the source's.
    """

    def __init__(self, name: str, backing: Backing) -> None:
        self.name = name
        self._backing = backing
        self._loads = False
        self._unsynced = 0

    @property
    def size(self) -> int:
        return self._backing.length

    def begin_saving(self) -> None:
        self._backing.log = deque()
        try:
            if not self._backing.claim():
                log.warning("%s is locked by another process, and copied all the same", self._backing.path)
        except OSError as error:  # a destination that cannot lock either refuses: it could be the same file
            log.warning("%s cannot be locked: %s", self._backing.path, error.strerror)

    def next_data(self, offset: int) -> int:
        return self._backing.next_data(offset)

    def read(self, offset: int, size: int) -> bytes:
        return self._backing.read_bytes(size, offset)

    def take_written(self) -> list[tuple[int, int]]:
        written = self._backing.log
        taken = sorted(written.popleft() for _ in range(len(written))) if written else []  # threads may append
        return _joined(taken)

    def begin_loading(self, size: int) -> None:
        self._loads = self._backing.claim()
        if not self._loads:
            log.info("%s is what is migrated: nothing is copied", self._backing.path)
            return
        self._backing.extend(size)

    def write(self, offset: int, data: bytes | memoryview) -> None:
        if self._loads:
            with memoryview(data) as piece:
                self._backing.write([piece], offset)
            self._sync_after(len(data))

    def clear(self, offset: int, size: int) -> None:
        if self._loads:
            self._backing.extend(offset + size)
            self._backing.discard(offset, size)

    def settle(self) -> None:
        if self._loads:
            self._backing.sync()

    def end(self) -> None:
        self._backing.log = None
        self._backing.release()
        self._loads = False

    def _sync_after(self, size: int) -> None:
        self._unsynced += size
        if self._unsynced >= SYNC_EVERY:
            self._backing.sync()
            self._unsynced = 0


def _joined(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Sorted ranges that touch each other or overlap, as one."""
    joined: list[tuple[int, int]] = []
    for offset, size in ranges:
        if joined and offset <= (end := sum(joined[-1])):
            joined[-1] = joined[-1][0], max(end, offset + size) - joined[-1][0]
        else:
            joined.append((offset, size))
    return joined
