"""Whether a file that is mapped still has the bytes: an access behind its end kills the process with SIGBUS.

A memfd may be sealed against shrinking, as QEMU's are; then nothing has to be looked at. Any other file is asked for
its size before memory is used, and where it shrinks at just that moment `userdev.memory.guard` stands in.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import stat

from userdev.errors import ProtocolError
from userdev.memory.guard import is_damaged


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
        ProtocolError: EFAULT, it has become smaller than what is used of it.
    """
    if (size := mapped.size()) < needed or is_damaged(mapped):
        what = f"a file has shrunk to {size:#x} bytes, of which {needed:#x} are shared memory"
        raise ProtocolError(what, errno.EFAULT)
