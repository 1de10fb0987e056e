"""Temporary folders that end with their owner, by the hand of the next owner where that was killed.

The owner holds a lock (flock(2)) on a file inside for as long as it lives; the kernel drops the lock with the process,
however it ends. A folder without that file is nobody's concern here.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from userdev.process.owned import OwnedDescriptor

_LOCK = "owner.lock"


class OwnedFolder(OwnedDescriptor):
    """A private folder at `path`, removed by `close`; `fd` is its lock. Those of dead owners are removed first."""

    def __init__(
        self, prefix: str, base: Path | None = None, cleared: Callable[[Path], object] = lambda _: None
    ) -> None:
        """Make one whose name begins with `prefix`, in `base`, or where the system has temporary folders.

        `cleared` is called with each folder of such a prefix that is to be removed, before it is.

        Raises:
            OSError: it cannot be made.
        """
        base = Path(tempfile.gettempdir()) if base is None else base
        for folder in _ownerless(prefix, base):
            cleared(folder)
        self.path, lock = _make(prefix, base)
        super().__init__(lock)

    def close(self) -> None:
        """Remove the folder and what is in it, then let go of the lock; a second call does nothing."""
        if self.fd >= 0:
            shutil.rmtree(self.path, ignore_errors=True)
        super().close()


def _ownerless(prefix: str, base: Path) -> Iterator[Path]:
    """This user's folders in `base` that were an `OwnedFolder` of somebody dead; each is removed behind its turn."""
    with os.scandir(base) as entries:
        found = [entry for entry in entries if entry.name.startswith(prefix)]
    for entry in found:
        try:
            if entry.stat().st_uid != os.getuid():
                continue
            lock = os.open(f"{entry.path}/{_LOCK}", os.O_RDWR | os.O_CLOEXEC)  # absent: not one of these
        except OSError:
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield Path(entry.path)
            shutil.rmtree(entry.path, ignore_errors=True)
        except BlockingIOError:
            pass  # its owner lives
        finally:
            os.close(lock)


def _make(prefix: str, base: Path) -> tuple[Path, int]:
    """A new folder and the locked descriptor of its lock file."""
    while True:
        path = Path(tempfile.mkdtemp(prefix=prefix, dir=base))
        lock = os.open(path / _LOCK, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (path / _LOCK).exists():
            return path, lock
        os.close(lock)  # somebody took it for ownerless between its making and its locking
