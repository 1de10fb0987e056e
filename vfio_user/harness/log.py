"""Logs of threads that have to go on whatever becomes of the disk: who reads a console, or hears QMP's events."""

from __future__ import annotations

from pathlib import Path

from vfio_user.errors import about


class Log:
    """A file that is appended to. After a failure nothing more is written, and `failure` says which that was."""

    def __init__(self, path: Path) -> None:
        """Raises `OSError` when the file cannot be opened."""
        self.path = path
        self.failure: OSError | None = None
        self._file = path.open("ab", buffering=0)

    def write(self, data: bytes) -> None:
        """Append; what came after `close` is dropped."""
        if self.failure is not None or self._file.closed:
            return
        try:
            with about(self.path):
                while data:
                    data = data[self._file.write(data) :]
        except OSError as error:
            self.failure = error

    def close(self) -> None:
        self._file.close()
