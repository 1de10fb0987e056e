"""Short private directories for sockets, which disappear even when their owner was killed.

Whoever makes the next directory removes those of dead owners (`OwnedFolder`), and ends what their owners' children left
running (a child dies with its owner, see process.py; a child's own children need not): all of them carry the
directory's path in their environment.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import tempfile
from pathlib import Path
from types import TracebackType

import psutil

from userdev.errors import UserError
from userdev.process import OwnedFolder

# sockaddr_un.sun_path is 108 bytes with the final NUL (unix(7)).
SOCKET_PATH_LIMIT = 107

OWNER_VARIABLE = "VFIO_USER_SCRATCH"

_PREFIX = "vfio-user-"


class Scratch:
    """A private directory under the system's temporary directory; a context manager that removes it."""

    def __init__(self) -> None:
        self._folder = OwnedFolder(_PREFIX, _base(), _end_processes_of)
        self.path = self._folder.path

    @property
    def environment(self) -> dict[str, str]:
        """The environment for children of this directory's owner."""
        return {**os.environ, OWNER_VARIABLE: str(self.path)}

    def socket_path(self, name: str) -> Path:
        """A path for a socket in it, checked for its length."""
        return checked_socket_path(self.path / name)

    def close(self) -> None:
        """Remove the directory and what is in it; a second call does nothing."""
        self._folder.close()

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


def _base() -> Path:
    """The temporary directory, or /tmp when its path leaves no room for the name of a socket."""
    base = Path(tempfile.gettempdir())
    return base if len(os.fsencode(base)) <= 60 else Path("/tmp")
