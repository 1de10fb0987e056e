"""Eventfds of a peer: whether a descriptor is one, adding to it and taking from it.

The peer shares more than the counter: whether a descriptor blocks is a flag of the open file, which either side can
change at any time. Reading asks for no wait with each call (RWF_NOWAIT); for writing the kernel has no such thing, so
that a peer which fills the counter and makes it blocking holds the thread that signals it. Another thread looks whether
it `is_full` then, and drains it.
"""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Callable
from functools import partial

_AT_ONCE = 64  # what an eventfd is counted up by at one time


def is_eventfd(fd: int) -> bool:
    """Whether it is an eventfd, as the kernel's VFIO insists; True too where /proc cannot tell."""
    try:
        return os.readlink(f"/proc/self/fd/{fd}") == "anon_inode:[eventfd]"  # noqa: PTH115 - pathlib takes 5 ms to load
    except OSError:
        return True


def signaller(fd: int) -> Callable[[], None]:
    """A function that adds one to an eventfd, and never waits.

    A full counter, which a peer can make, holds its event already; one that blocks at a full counter is asked
    first. A broken descriptor is the peer's own loss.
    """
    if not os.get_blocking(fd):
        return partial(_signal, fd)
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    return partial(_signal_unless_full, fd, poll)


def _signal(fd: int) -> None:
    try:  # noqa: SIM105 - on every interrupt's way, and suppress() takes as long as the system call
        os.eventfd_write(fd, 1)
    except OSError:
        pass


def _signal_unless_full(fd: int, poll: select.poll) -> None:
    if poll.poll(0):
        _signal(fd)


def signal_eventfd(fd: int, count: int = 1) -> None:
    """Add to an eventfd as far as there is room: it may have been filled, and be one that waits."""
    for _ in range(min(count, _AT_ONCE)):
        if is_full(fd):
            return
        os.eventfd_write(fd, 1)


def drain(fd: int) -> int:
    """Take the counter; 0 if nobody added to it. Never waits."""
    counter = bytearray(8)
    try:
        os.preadv(fd, [counter], -1, os.RWF_NOWAIT)
    except OSError:
        return 0
    return int.from_bytes(counter, sys.byteorder)


def is_full(fd: int) -> bool:
    """Whether a signal would have to wait, if the descriptor is one that does."""
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    return not poll.poll(0)
