"""Files in memory that keep their size: whoever maps one need not fear SIGBUS."""

from __future__ import annotations

import fcntl
import mmap
import os


def sealed(name: str, size: int) -> int:
    """Make a memfd of `size` bytes that nobody can shrink or grow; its descriptor is the caller's.

    The seals are those of QEMU's memory-backend-memfd (backends/hostmem-memfd.c).

    Raises:
        OSError: there is no descriptor left, or no file of that size.
    """
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, size)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    except BaseException:
        os.close(fd)
        raise
    return fd


def sealed_and_mapped(name: str, size: int) -> tuple[int, mmap.mmap]:
    """Make such a file and map it; both are the caller's to close.

    Raises:
        OSError: there is no descriptor left, no file of that size, or no room to map it.
        ValueError: `size` is 0.
    """
    fd = sealed(name, size)
    try:
        return fd, mmap.mmap(fd, size)
    except BaseException:
        os.close(fd)
        raise
