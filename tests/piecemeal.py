"""System calls on files that do a part of what they are asked for, or nothing."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest

TRIED_FOR_EVER = 100
"""Writes in a row that have done nothing."""


class Piecemeal:
    """What the kernel may do of a call on a file or memfd: `most` bytes of it, and nothing once `stops` were written.

    Sockets, pipes and eventfds are left alone.
    """

    def __init__(self, most: int, stops: int | None = None) -> None:
        self.most = most
        self.left = stops
        self.calls = 0
        """Those that were cut."""
        self._in_vain = 0
        self._real: dict[str, Callable[..., Any]] = {
            name: getattr(os, name) for name in ("read", "pread", "preadv", "write", "pwrite", "pwritev")
        }

    def patch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in self._real:
            monkeypatch.setattr(os, name, getattr(self, name))

    def read(self, fd: int, size: int) -> bytes:
        return self._read("read", fd, size)

    def pread(self, fd: int, size: int, offset: int) -> bytes:
        return self._read("pread", fd, size, offset)

    def preadv(self, fd: int, pieces: Sequence[memoryview], offset: int, *flags: int) -> int:
        return int(self._real["preadv"](fd, self._cut_all(fd, pieces, self.most), offset, *flags))

    def write(self, fd: int, data: bytes) -> int:
        return self._write(fd, len(data), lambda most: self._real["write"](fd, memoryview(data)[:most]))

    def pwrite(self, fd: int, data: bytes, offset: int) -> int:
        return self._write(fd, len(data), lambda most: self._real["pwrite"](fd, memoryview(data)[:most], offset))

    def pwritev(self, fd: int, pieces: Sequence[memoryview], offset: int, *flags: int) -> int:
        size = sum(map(len, pieces))
        real = self._real["pwritev"]
        return self._write(fd, size, lambda most: real(fd, self._cut_all(fd, pieces, most), offset, *flags))

    def _read(self, name: str, fd: int, size: int, *rest: Any) -> bytes:
        self.calls += _is_file(fd) and size > self.most
        return bytes(self._real[name](fd, min(size, self.most) if _is_file(fd) else size, *rest))

    def _write(self, fd: int, size: int, write: Callable[[int], int]) -> int:
        if not _is_file(fd) or not size:
            return write(size)
        most = min(size, self.most if self.left is None else min(self.most, self.left))
        self.calls += most < size
        done = write(most) if most else 0
        if self.left is not None:
            self.left -= done
        self._in_vain = 0 if done else self._in_vain + 1
        assert self._in_vain < TRIED_FOR_EVER, "a write that does nothing is tried for ever"
        return done

    def _cut_all(self, fd: int, pieces: Sequence[memoryview], most: int) -> list[memoryview]:
        if not _is_file(fd):
            return list(pieces)
        cut, left = [], most
        for piece in pieces:
            cut.append(piece[:left])
            left -= len(cut[-1])
        self.calls += left == 0
        return cut


@contextmanager
def piecemeal(most: int, stops: int | None = None) -> Iterator[Piecemeal]:
    """Within the block, files are read and written so."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        found = Piecemeal(most, stops)
        found.patch(monkeypatch)
        yield found


def _is_file(fd: int) -> bool:
    return stat.S_ISREG(os.fstat(fd).st_mode)
