"""Changes of files as events (inotify(7))."""

from __future__ import annotations

import ctypes
import os
from enum import IntFlag
from pathlib import Path

from userdev.errors import UserError
from userdev.process.owned import OwnedDescriptor

_libc = ctypes.CDLL(None, use_errno=True)


class Change(IntFlag):
    """The events of inotify(7) to be told of (linux/inotify.h)."""

    WRITTEN = 0x2
    """IN_MODIFY: to a file, or to one in a folder."""
    MOVED_HERE = 0x80
    """IN_MOVED_TO: into a folder."""
    MADE = 0x100
    """IN_CREATE: in a folder."""


ARRIVAL = Change.MADE | Change.MOVED_HERE


class Watch(OwnedDescriptor):
    """`fd` is readable when a file or a folder has changed since it was `drain`ed. A context manager."""

    def __init__(self, path: Path, changes: Change = ARRIVAL) -> None:
        """Begin to watch.

        Raises:
            UserError: the kernel does not let us; there are bounds for a user's watches.
        """
        super().__init__(_libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))
        if self.fd < 0 or _libc.inotify_add_watch(self.fd, os.fsencode(path), int(changes)) < 0:
            number = ctypes.get_errno()
            self.close()
            raise UserError(
                f"cannot watch {path}: {os.strerror(number)}", hint="fs.inotify in sysctl has the limits of a user"
            )

    def drain(self) -> None:
        """Forget what has changed so far."""
        try:
            while os.read(self.fd, 4096):
                pass
        except BlockingIOError:
            return
