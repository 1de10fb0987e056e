"""A guest's memory as a file that this process made and QEMU maps: filled while QEMU starts, kept for a checkpoint."""

from __future__ import annotations

import errno
import mmap
import os
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path

from userdev.memory.sealed import sealed

_PIECE = 16 << 10
"""Bytes that are left out of a checkpoint together, where all are zero: in 4096 it is many pieces for little less."""


class MemoryFile:
    """A memfd of so many MiB, with the content of a file. `fd` is the owner's to hand on, until `close`.

    It is filled on a thread of its own: copied within the kernel, without a fault for each page, which takes two thirds
    of the time in which QEMU reads it.
    """

    def __init__(self, mebibytes: int, content: Path | None = None) -> None:
        """`content` is a file that `keep` wrote; that it cannot be read, `await_filled` says."""
        self.size = mebibytes << 20
        self._filled = Future[None]()
        self.fd = sealed("guest-memory", self.size)
        if content is None:
            self._filled.set_result(None)
        else:
            threading.Thread(target=self._fill, args=(content,), name="guest memory", daemon=True).start()

    def await_filled(self) -> None:
        """Wait until all of the content is there.

        Raises:
            OSError: it could not be read.
        """
        self._filled.result()

    def keep(self, path: Path) -> None:
        """Write what is in it to a new file, of the same size, that has holes where all is zero.

        Raises:
            OSError: it cannot be written.
        """
        nothing = bytes(_PIECE)
        with path.open("xb") as file, mmap.mmap(self.fd, self.size, access=mmap.ACCESS_READ) as memory:
            file.truncate(self.size)
            for begin, end in _data(self.fd):
                for at in range(begin - begin % _PIECE, end, _PIECE):
                    piece = memory[at : at + _PIECE]
                    if piece != nothing[: len(piece)]:
                        file.seek(at)
                        file.write(piece)

    def close(self) -> None:
        """Let go of it; QEMU keeps what it has mapped. Idempotent."""
        if self.fd >= 0:
            self._filled.exception()
            os.close(self.fd)
            self.fd = -1

    def _fill(self, content: Path) -> None:
        try:
            with content.open("rb") as source:
                _copy(source.fileno(), self.fd)
        except BaseException as error:
            self._filled.set_exception(error)
        else:
            self._filled.set_result(None)


def _copy(source: int, target: int) -> None:
    for begin, end in _data(source):
        os.lseek(target, begin, os.SEEK_SET)
        while begin < end:
            copied = os.sendfile(target, source, begin, end - begin)
            if not copied:
                raise OSError(errno.EIO, "it became shorter while it was read")
            begin += copied


def _data(fd: int) -> Iterator[tuple[int, int]]:
    """The parts of a file, from where to where, that are no holes."""
    end = 0
    while True:
        try:
            begin = os.lseek(fd, end, os.SEEK_DATA)
        except OSError as none_left:
            if none_left.errno == errno.ENXIO:
                return
            raise
        end = os.lseek(fd, begin, os.SEEK_HOLE)
        yield begin, end
