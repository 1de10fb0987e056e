"""Short private directories for sockets, which disappear even when their owner was killed.

The owner holds a lock on a file inside for as long as it lives; the kernel drops the lock with the process, however
it ends. Whoever makes the next directory removes those whose lock is free, and ends what their owners' children left
running (a child dies with its owner, see process.py; a child's own children need not): all of them carry the
directory's path in their environment.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import socket
import tempfile
from pathlib import Path
from types import TracebackType

import psutil

from userdev.errors import UserError

# sockaddr_un.sun_path is 108 bytes with the final NUL (unix(7)).
SOCKET_PATH_LIMIT = 107

OWNER_VARIABLE = "VFIO_USER_SCRATCH"

_PREFIX = "vfio-user-"
_LOCK = "owner.lock"


class Scratch:
    """A private directory under the system's temporary directory; a context manager that removes it."""

    def __init__(self) -> None:
        base = _base()
        reap(base)
        self.path, self._lock = _make(base)

    @property
    def environment(self) -> dict[str, str]:
        """The environment for children of this directory's owner."""
        return {**os.environ, OWNER_VARIABLE: str(self.path)}

    def socket_path(self, name: str) -> Path:
        """A path for a socket in it, checked for its length."""
        return checked_socket_path(self.path / name)

    def close(self) -> None:
        """Remove the directory and what is in it; a second call does nothing."""
        if self._lock >= 0:
            shutil.rmtree(self.path, ignore_errors=True)
            os.close(self._lock)
            self._lock = -1

    def __enter__(self) -> Scratch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def checked_socket_path(path: Path) -> Path:
    """`path`, or `UserError` when the kernel would not take it as the name of a UNIX socket."""
    length = len(os.fsencode(path))
    if length > SOCKET_PATH_LIMIT:
        raise UserError(
            f"the socket path is {length} bytes long and the kernel takes {SOCKET_PATH_LIMIT}: {path}",
            hint="choose a shorter directory",
        )
    return path


def listen(path: Path) -> socket.socket:
    """A listening UNIX socket at `path`: clients may connect from now on, whenever the server gets to accept."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(os.fspath(checked_socket_path(path)))
        listener.listen(8)
    except OSError as error:
        listener.close()
        raise UserError(f"cannot listen on {path}: {error.strerror}") from error
    return listener


def reap(base: Path) -> list[Path]:
    """Remove the scratch directories of this user in `base` whose owner is dead; returns what was removed."""
    removed = []
    for directory in base.glob(_PREFIX + "*"):
        try:
            if directory.stat().st_uid != os.getuid():
                continue
            lock = os.open(directory / _LOCK, os.O_RDWR | os.O_CLOEXEC)  # absent: not one of these
        except OSError:
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _end_processes_of(directory)
            shutil.rmtree(directory, ignore_errors=True)
            removed.append(directory)
        except BlockingIOError:
            pass  # its owner lives
        finally:
            os.close(lock)
    return removed


def processes_of(directory: Path) -> list[psutil.Process]:
    """The processes that carry `directory` in their environment: the owner's children, and theirs."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(OWNER_VARIABLE) == str(directory):
                found.append(process)
    return found


def _end_processes_of(directory: Path) -> None:
    for process in processes_of(directory):
        with contextlib.suppress(psutil.Error):
            process.send_signal(signal.SIGKILL)


def _make(base: Path) -> tuple[Path, int]:
    """A new directory and the locked descriptor of its lock file."""
    while True:
        path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=base))
        lock = os.open(path / _LOCK, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (path / _LOCK).exists():
            return path, lock
        os.close(lock)  # somebody's reaper took it between its making and its locking


def _base() -> Path:
    """The temporary directory, or /tmp when its path leaves no room for the name of a socket."""
    base = Path(tempfile.gettempdir())
    return base if len(os.fsencode(base)) <= 60 else Path("/tmp")
