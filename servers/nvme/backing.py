"""What a namespace's blocks are kept in: a file, block device or memory, read and written straight to guest memory.

The page cache is the volatile write cache of the controller: what `sync` has returned for survives a loss of power,
what was merely written survives the death of this process.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import stat
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from secrets import token_hex

from vfio_user.errors import UserError

MAX_PIECES = 1024
"""IOV_MAX of Linux: pieces of memory in one system call."""
SUFFIXES = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
READ_ONLY = "ro"
MEMORY = "memory"
"""In place of a file: blocks that are nowhere else, and gone with the server. A file of this name is ./memory."""

_KEEP_SIZE, _PUNCH_HOLE, _ZERO_RANGE = 0x01, 0x02, 0x10  # linux/falloc.h
_NOT_SUPPORTED = {errno.EOPNOTSUPP, errno.ENOSYS, errno.ENODEV, errno.EINVAL}
_ZEROS = bytes(1 << 20)
_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


class WouldBlock(Exception):
    """The data is not in the page cache: reading it has to wait for the disk."""


class Backing:
    """An open file of `size` bytes. All but `try_read` may block; errors are OSError."""

    def __init__(
        self, path: Path, size: int | None = None, *, read_only: bool = False, in_memory: bool = False
    ) -> None:
        """Open; a regular file that is smaller than `size`, or not there, is made that large, sparse.

        What is `in_memory` has no file, and `path` only as its name.

        Raises:
            UserError: it cannot be opened, or has no size.
        """
        self.path = path
        self.read_only = read_only
        self.in_memory = in_memory
        mode = os.O_RDONLY if read_only else os.O_RDWR | (os.O_CREAT if size else 0)
        try:
            self._fd = os.memfd_create(path.name) if in_memory else os.open(path, mode | os.O_CLOEXEC, 0o644)
        except OSError as error:
            hint = "FILE:SIZE makes a new one, for example disk.img:64M" if error.errno == errno.ENOENT else ""
            raise UserError(f"image {path}: {error.strerror}", hint=hint) from error
        try:
            self.size = self._measured(size)
        except OSError as error:
            os.close(self._fd)
            raise UserError(f"image {path}: {error.strerror}") from error
        if not self.size:
            os.close(self._fd)
            raise UserError(
                f"image {path} is empty", hint=f"give a size, for example {path if not in_memory else MEMORY}:64M"
            )
        self._no_wait = os.RWF_NOWAIT
        self.log: deque[tuple[int, int]] | None = None
        """While there is one: offset and size of everything that was written, as soon as it was."""

    def _measured(self, wanted: int | None) -> int:
        status = os.fstat(self._fd)
        if stat.S_ISREG(status.st_mode):
            if wanted and status.st_size < wanted and not self.read_only:
                os.ftruncate(self._fd, wanted)
                return wanted
            return min(status.st_size, wanted) if wanted else status.st_size
        if stat.S_ISBLK(status.st_mode):
            there = os.lseek(self._fd, 0, os.SEEK_END)
            return min(there, wanted) if wanted else there
        return wanted or 0

    def close(self) -> None:
        os.close(self._fd)

    def measure(self) -> None:
        """Look again how large it is: the other host of a migration may have made it larger."""
        self.size = max(self.size, self._measured(None))

    @property
    def length(self) -> int:
        """Bytes of all that there is; a namespace may have become smaller than its file."""
        status = os.fstat(self._fd)
        return status.st_size if stat.S_ISREG(status.st_mode) else self.size

    def extend(self, size: int) -> None:
        """Make a regular file at least that large, by zeros. Of anything else it must be so already."""
        if self.length >= size:
            return
        if not stat.S_ISREG(os.fstat(self._fd).st_mode):
            raise OSError(errno.ENOSPC, "the image is not that large")
        os.ftruncate(self._fd, size)
        if self.log is not None:
            self.log.append((size - 1, 1))  # that a copy grows too

    def resize(self, size: int) -> None:
        """Make a regular file larger where it has to be; it is never cut, so that a namespace can shrink and grow."""
        self.extend(size)
        self.size = self._measured(size)

    def try_read(self, pieces: Sequence[memoryview], size: int, offset: int) -> None:
        """Read what is in the page cache; raises WouldBlock if not all of it is."""
        if not self._no_wait or len(pieces) > MAX_PIECES:
            raise WouldBlock
        try:
            if os.preadv(self._fd, pieces, offset, self._no_wait) != size:
                raise WouldBlock
        except BlockingIOError:
            raise WouldBlock from None
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise
            self._no_wait = 0
            raise WouldBlock from None

    def read(self, pieces: Sequence[memoryview], offset: int) -> None:
        """Fill `pieces`; EIO where the file ends before."""
        for part, size in _parts(pieces):
            done = 0
            while done < size:
                count = os.preadv(self._fd, _behind(part, done) if done else part, offset + done)
                if not count:
                    raise OSError(errno.EIO, "the image has been cut")
                done += count
            offset += size

    def write(self, pieces: Sequence[memoryview], offset: int) -> None:
        for part, size in _parts(pieces):
            try:
                done = os.pwritev(self._fd, part, offset)
                while done < size:
                    done += os.pwritev(self._fd, _behind(part, done), offset + done)
            finally:
                if self.log is not None:
                    self.log.append((offset, size))
            offset += size

    def sync(self) -> None:
        """Everything that was written before is on the disk when this returns."""
        os.fdatasync(self._fd)

    def read_bytes(self, size: int, offset: int) -> bytes:
        data = os.pread(self._fd, size, offset)
        if len(data) != size:
            raise OSError(errno.EIO, "the image has been cut")
        return data

    def zero(self, offset: int, size: int) -> None:
        """Zeros that keep their place on the disk."""
        self._clear(_ZERO_RANGE | _KEEP_SIZE, offset, size)

    def discard(self, offset: int, size: int) -> None:
        """Zeros that need no place, where the file system can."""
        self._clear(_PUNCH_HOLE | _KEEP_SIZE, offset, size)

    def next_data(self, offset: int) -> int:
        """Where, from `offset` on, something else than zeros may be; `length` if nowhere."""
        try:
            return min(os.lseek(self._fd, offset, os.SEEK_DATA), self.length)
        except OSError as error:
            return self.length if error.errno == errno.ENXIO else offset  # EINVAL: a device cannot tell

    def claim(self) -> bool:
        """Lock the image until `release`; False where it has been locked already, by whoever has opened it too.

        Raises OSError (ENOLCK) where its file system has no locks.
        """
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def release(self) -> None:
        fcntl.flock(self._fd, fcntl.LOCK_UN)

    def _clear(self, mode: int, offset: int, size: int) -> None:
        try:
            if not self._fallocate(mode, offset, size):
                self._write_zeros(offset, size)
        finally:
            if self.log is not None:
                self.log.append((offset, size))

    def _write_zeros(self, offset: int, size: int) -> None:
        with memoryview(_ZEROS) as zeros:
            while size:
                done = os.pwrite(self._fd, zeros[:size], offset)
                offset += done
                size -= done

    def _fallocate(self, mode: int, offset: int, size: int) -> bool:
        if not size or not _libc.fallocate(self._fd, mode, offset, size):
            return True
        number = ctypes.get_errno()
        if number in _NOT_SUPPORTED:
            return False
        raise OSError(number, os.strerror(number))


def _parts(pieces: Sequence[memoryview]) -> list[tuple[Sequence[memoryview], int]]:
    """Pieces, as many at a time as a system call takes, and their bytes."""
    if len(pieces) <= MAX_PIECES:
        return [(pieces, sum(map(len, pieces)))]
    cut = (pieces[at : at + MAX_PIECES] for at in range(0, len(pieces), MAX_PIECES))
    return [(part, sum(map(len, part))) for part in cut]


def _behind(pieces: Sequence[memoryview], done: int) -> list[memoryview]:
    """What is left of pieces once `done` bytes of them are."""
    left: list[memoryview] = []
    for piece in pieces:
        if done < len(piece):
            left.append(piece[done:])
        done = max(0, done - len(piece))
    return left


def open_images(text: str) -> list[Backing]:
    """FILE[:SIZE][:ro], several with commas between them.

    Raises:
        UserError: one of them cannot be had.
    """
    opened: list[Backing] = []
    try:
        opened.extend(_open_image(item) for item in text.split(","))
    except UserError:
        for backing in opened:
            backing.close()
        raise
    return opened


def _open_image(text: str) -> Backing:
    path, size, read_only = text, None, False
    if path.endswith(":" + READ_ONLY):
        path, read_only = path.removesuffix(":" + READ_ONLY), True
    name, colon, end = path.rpartition(":")
    if colon and end[:1].isdigit():
        path, size = name, parse_size(end)
    if not path:
        raise UserError("an image needs a file", hint="--image FILE[:SIZE][:ro], several with commas between them")
    if path == MEMORY:
        # The name goes into the serial number, and no two controllers in a guest may have the same.
        return Backing(Path(f"{MEMORY}-{token_hex(8)}"), size, read_only=read_only, in_memory=True)
    return Backing(Path(path), size, read_only=read_only)


def parse_size(text: str) -> int:
    """Bytes from `64M`, `1G`, `512K` or a plain number. Raises UserError."""
    digits = text.rstrip("KMGTkmgt")
    suffix = text[len(digits) :].upper()
    if not digits.isdigit() or suffix not in SUFFIXES or not int(digits):
        raise UserError(f"{text!r} is no size", hint="bytes, or with K, M, G or T behind them")
    return int(digits) * SUFFIXES[suffix]
