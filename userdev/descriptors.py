"""File descriptors that are kept, and what they are.

A guest behind a vIOMMU maps the same memfd up to 65,535 times, each time with a descriptor of its own: those that name
the same file are kept once.
"""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import stat
from collections.abc import Sequence
from enum import IntEnum
from pathlib import Path
from typing import NamedTuple

from userdev.transport import close_all

RESERVE = 64
"""Descriptors that are left for what a program opens itself, however many its peers send."""


def duplicate(fd: int) -> int:
    """A descriptor of our own for the same open file.

    Raises:
        OSError: (EMFILE) this process is about to have as many as it may.
    """
    copy = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 0)
    if copy >= resource.getrlimit(resource.RLIMIT_NOFILE)[0] - RESERVE:  # the lowest free number is taken
        os.close(copy)
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    return copy


def duplicates(fds: Sequence[int]) -> list[int]:
    """Duplicate all of them, or none; see `duplicate`."""
    copies: list[int] = []
    try:
        copies.extend(map(duplicate, fds))
    except OSError:
        close_all(copies)
        raise
    return copies


class FdKind(IntEnum):
    """The kinds of descriptor; the value is the trace file's."""

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
    """The file behind a descriptor."""
    status = os.fstat(fd)
    return FileKey(status.st_dev, status.st_ino, not status.st_nlink)


def describe(fd: int) -> FdInfo:
    """The kind of `fd`, and more of it. Never fails: a descriptor that cannot be asked is of kind OTHER."""
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
        """A descriptor of the same open file, or of the same file, as `fd`; to be given back to `drop`.

        Raises:
            OSError: no more can be kept; or (ENOTSUP) it is a socket, as a peer's own end of its connection is, which
                would never end then.
        """
        status = os.fstat(fd)
        if stat.S_ISSOCK(status.st_mode):
            raise OSError(errno.ENOTSUP, "a socket of a peer's is not kept")
        if not stat.S_ISREG(status.st_mode):
            kept = duplicate(fd)
            self._uses[kept] = 1
            return kept
        access = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE
        key = status.st_dev, status.st_ino, access
        known = self._by_file.get(key)
        if known is not None:
            self._uses[known] += 1
            return known
        kept = duplicate(fd)
        self._by_file[key], self._key[kept], self._uses[kept] = kept, key, 1
        return kept

    def drop(self, fd: int) -> None:
        """Give back what `keep` returned; the last use of it closes it."""
        self._uses[fd] -= 1
        if self._uses[fd]:
            return
        del self._uses[fd]
        if (key := self._key.pop(fd, None)) is not None:
            del self._by_file[key]
        os.close(fd)

    def close(self) -> None:
        """Close all that is kept."""
        for fd in self._uses:
            os.close(fd)
        self._uses.clear()
        self._by_file.clear()
        self._key.clear()
