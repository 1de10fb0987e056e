"""Logs of threads that have to go on whatever becomes of the disk: who reads a console, or hears QMP's events."""

from __future__ import annotations

import os
import threading
from pathlib import Path

from userdev.errors import about

MAX_SIZE = 64 << 20
"""Bytes of a log; of a longer one the beginning and the end are kept, and what a guest says without end is not."""
KEPT_BEGINNING = 4 << 20
KEPT_END = 16 << 20


class LogFile:
    """A file that is appended to, and never grows beyond `MAX_SIZE` by much.

    After a failure nothing more is written, and `failure` says which that was.
    """

    def __init__(self, path: Path) -> None:
        """Open the file, to append to it.

        Raises:
            OSError: it cannot be opened.
        """
        self.path = path
        self.failure: OSError | None = None
        self._file = path.open("ab", buffering=0)
        self._size = 0
        self._lock = threading.Lock()

    def write(self, data: bytes) -> None:
        """Append; what came after `close` is dropped. From any thread."""
        with self._lock:
            if self.failure is None and not self._file.closed:
                self._append(data)

    def _append(self, data: bytes) -> None:
        try:
            with about(self.path):
                while data:
                    written = self._file.write(data)
                    data = data[written:]
                    self._size += written
                if self._size > MAX_SIZE:
                    self._shorten()
        except OSError as error:
            self.failure = error

    def _shorten(self) -> None:
        """Go on in a file that has the beginning and the end of this one."""
        with self.path.open("rb") as whole:
            size = whole.seek(0, os.SEEK_END)
            if size <= KEPT_BEGINNING + KEPT_END:  # a pipe, a device: nothing that grows
                return
            whole.seek(0)
            beginning = whole.read(KEPT_BEGINNING)
            whole.seek(size - KEPT_END)
            end = whole.read(KEPT_END)
        left_out = f"\n[{size - KEPT_BEGINNING - KEPT_END:,} bytes are not kept]\n".encode()
        shorter = self.path.with_name(self.path.name + ".shorter")
        shorter.write_bytes(beginning + left_out + end)
        self._file.close()
        shorter.replace(self.path)
        self._file = self.path.open("ab", buffering=0)
        self._size = self.path.stat().st_size

    def close(self) -> None:
        """Close the file; what was added is in it already, and what is just being added comes to its end."""
        with self._lock:
            self._file.close()
