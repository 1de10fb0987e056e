"""An image's lock, as QEMU's: who uses it says so by locks of bytes, which QEMU, qemu-img and every server here see.

A permission is a byte: locked from 100 on is what its holder does, from 200 on what it lets nobody else do (QEMU,
block/file-posix.c, raw_apply_lock_bytes and raw_check_lock_bytes). All of them are shared locks of the open file (OFD),
so that they end with it however the process ends; a conflict is found by asking who could lock a byte alone. They are
of the file, or of a block device's node, and reach other hosts as far as its file system has them do so.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
from contextlib import suppress
from pathlib import Path
from struct import Struct

log = logging.getLogger("vfio_user.servers.block")

DOES, FORBIDS = 100, 200
HANDS_OVER = 300
"""Beyond what QEMU knows: this holder gives the image to the next when it is migrated."""
READ, WRITE, RESIZE = 0, 1, 3

_FLOCK = Struct("hhqqi4x")
"""struct flock: type, whence, start, length, process."""
_NO_LOCKS = {errno.ENOLCK, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS}


class InUse(OSError):
    """Another has the image, and `strerror` says who."""

    def __init__(self, path: Path, who: str, *, hands_over: bool) -> None:
        super().__init__(errno.EBUSY, f"image {path} is in use by {who}")
        self.hands_over = hands_over
        """Its holder is a server that may give it away in a migration."""


class ImageLock:
    """The lock of one open image: for reading, beside other readers, or for writing, alone."""

    def __init__(self, fd: int, path: Path, *, writing: bool) -> None:
        self._fd = fd
        self._path = path
        self._does = (READ, WRITE, RESIZE) if writing else (READ,)
        self._forbids = (WRITE, RESIZE)
        self.held = False
        self.possible = True
        """False once the file system was found to have no locks; then all goes on without, and a warning was given."""

    @property
    def allows_use(self) -> bool:
        """Whether the image may be used: its lock is held, or it is in a file system that has no locks."""
        return self.held or not self.possible

    def take(self) -> None:
        """Hold it, until `release` or the end of the process.

        Raises:
            InUse: another has the image.
        """
        if self.allows_use:
            return
        try:
            self._lock(fcntl.F_RDLCK)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                self._lock(fcntl.F_UNLCK)
                raise
            self.possible = False
            log.warning("image %s cannot be locked (%s): nothing keeps others away", self._path, error.strerror)
            return
        conflicts = [FORBIDS + each for each in self._does] + [DOES + each for each in self._forbids]
        if any(map(self._is_taken, conflicts)):
            hands_over = self._is_taken(HANDS_OVER)
            self._lock(fcntl.F_UNLCK)
            raise InUse(self._path, _who_has(self._fd), hands_over=hands_over)
        self.held = True

    def release(self) -> None:
        """Let others have it."""
        if self.held:
            self._lock(fcntl.F_UNLCK)
            self.held = False

    def _lock(self, kind: int) -> None:
        for byte in (*(DOES + each for each in self._does), *(FORBIDS + each for each in self._forbids), HANDS_OVER):
            fcntl.fcntl(self._fd, fcntl.F_OFD_SETLK, _FLOCK.pack(kind, os.SEEK_SET, byte, 1, 0))

    def _is_taken(self, byte: int) -> bool:
        """Whether another has locked it."""
        question = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0)
        answer = fcntl.fcntl(self._fd, fcntl.F_OFD_GETLK, question)
        return bool(_FLOCK.unpack(answer)[0] != fcntl.F_UNLCK)


def _who_has(fd: int) -> str:
    """The processes that have locked this file, as far as this one may look (proc(5): fdinfo)."""
    ours, found, asking = os.fstat(fd), [], Path(f"/proc/{os.getpid()}/fd/{fd}")
    for folder in Path("/proc").glob("[0-9]*/fd"):
        with suppress(OSError):
            if any(each != asking and _has_locked(each, ours) for each in folder.iterdir()):
                found.append(_describe(folder.parent))
    return " and ".join(found) or "a process that cannot be seen from here, perhaps on another host"


def _has_locked(descriptor: Path, ours: os.stat_result) -> bool:
    with suppress(OSError):
        theirs = descriptor.stat()
        if (theirs.st_dev, theirs.st_ino) == (ours.st_dev, ours.st_ino):
            return "OFDLCK" in (descriptor.parent.parent / "fdinfo" / descriptor.name).read_text()
    return False


def _describe(process: Path) -> str:
    if int(process.name) == os.getpid():
        return "this process itself"
    command = (process / "cmdline").read_bytes().decode(errors="replace").replace("\0", " ").strip()
    shown = "".join(letter if letter.isprintable() else "?" for letter in command)
    return f"process {process.name} ({shown[:160]})"
