"""File descriptors that are kept, and what they are.

A guest behind a vIOMMU maps the same memfd up to 65,535 times, each time with a descriptor of its own: those that name
the same file are kept once.
"""

from __future__ import annotations

import fcntl
import os
import stat
from enum import IntEnum
from pathlib import Path
from typing import NamedTuple


class FdKind(IntEnum):
    """What a descriptor is; the value is the trace file's."""

    OTHER = 0
    FILE = 1
    MEMFD = 2
    EVENTFD = 3
    SOCKET = 4
    PIPE = 5
    DEVICE = 6
    HUGETLB = 7


class FdInfo(NamedTuple):
    """A descriptor as the trace has it. The inode tells equal memory apart; eventfds all share one."""

    kind: FdKind
    size: int
    inode: int


class FileKey(NamedTuple):
    """The same for all descriptors of one file. One that is `nameless`, such as a memfd, nobody else can open."""

    device: int
    inode: int
    nameless: bool


def file_key(fd: int) -> FileKey:
    status = os.fstat(fd)
    return FileKey(status.st_dev, status.st_ino, not status.st_nlink)


def describe(fd: int) -> FdInfo:
    """What `fd` is. Never fails: a descriptor that cannot be asked is of kind OTHER."""
    try:
        status = os.fstat(fd)
    except OSError:
        return FdInfo(FdKind.OTHER, 0, 0)
    return FdInfo(_kind(fd, status.st_mode), status.st_size, status.st_ino)


def _kind(fd: int, mode: int) -> FdKind:
    if stat.S_ISSOCK(mode):
        return FdKind.SOCKET
    if stat.S_ISFIFO(mode):
        return FdKind.PIPE
    if stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
        return FdKind.DEVICE
    try:
        name = str(Path(f"/proc/self/fd/{fd}").readlink())
    except OSError:
        name = ""
    if stat.S_ISREG(mode):
        return FdKind.MEMFD if name.startswith("/memfd:") else FdKind.FILE
    return FdKind.EVENTFD if "[eventfd" in name else FdKind.OTHER


class FdStore:
    """Keeps descriptors of others: each regular file (memfds are) once per way of access, everything else singly."""

    def __init__(self) -> None:
        self._by_file: dict[tuple[int, int, int], int] = {}
        self._uses: dict[int, int] = {}
        self._key: dict[int, tuple[int, int, int]] = {}

    def __len__(self) -> int:
        return len(self._uses)

    def keep(self, fd: int) -> int:
        """A descriptor of the same open file, or of the same file, as `fd`; to be given back to `drop`."""
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            kept = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 0)
            self._uses[kept] = 1
            return kept
        access = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE
        key = status.st_dev, status.st_ino, access
        known = self._by_file.get(key)
        if known is not None:
            self._uses[known] += 1
            return known
        kept = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 0)
        self._by_file[key], self._key[kept], self._uses[kept] = kept, key, 1
        return kept

    def drop(self, fd: int) -> None:
        self._uses[fd] -= 1
        if self._uses[fd]:
            return
        del self._uses[fd]
        if (key := self._key.pop(fd, None)) is not None:
            del self._by_file[key]
        os.close(fd)

    def close(self) -> None:
        for fd in self._uses:
            os.close(fd)
        self._uses.clear()
        self._by_file.clear()
        self._key.clear()
