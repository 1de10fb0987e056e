"""Eventfds of the client: whether a descriptor is one, and adding to it without ever waiting."""

from __future__ import annotations

import os
import select
from pathlib import Path


def is_eventfd(fd: int) -> bool:
    """As the kernel's VFIO insists; True too where /proc cannot tell."""
    try:
        return str(Path(f"/proc/self/fd/{fd}").readlink()) == "anon_inode:[eventfd]"
    except OSError:
        return True


def signal(fd: int) -> None:
    """Add one. A full counter, which a client can make, holds its event already; a broken one is the client's."""
    try:  # noqa: SIM105 - on every interrupt's way, and suppress() takes as long as the system call
        os.eventfd_write(fd, 1)
    except OSError:
        pass


def signal_blocking(fd: int) -> None:
    """`signal` for a descriptor that would make the writer wait at a full counter."""
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    if poll.poll(0):
        signal(fd)


def drain(fd: int) -> int:
    """Take the counter; 0 if nobody added to it."""
    try:
        return os.eventfd_read(fd)
    except OSError:
        return 0


def close_all(fds: list[int]) -> None:
    while fds:
        os.close(fds.pop())
