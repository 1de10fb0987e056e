"""What a disk's blocks are kept in: a file, block device or memory, read and written straight to guest memory.

The page cache is the disk's volatile write cache: what `sync` has returned for survives a loss of power, what was
merely written survives the death of this process.

The page cache tells once of a write that did not reach the disk, and takes the page for clean from then on (fsync(2);
so QEMU's block/file-posix.c, handle_aiocb_flush). So one failed `sync` is for ever, until the image is opened anew:
what was acknowledged may be lost, and no later success can bring it back. The same goes for an image that was cut or
unlinked.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import stat
import sys
import threading
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from userdev.errors import UserError
from userdev.whole import read_whole, write_whole
from userdev_servers.block.lock import ImageLock
from userdev_servers.block.lost import Lost
from userdev_servers.block.together import Together

log = logging.getLogger("vfio_user.servers.block")

MAX_PIECES: Final = 1024
"""IOV_MAX of Linux: pieces of memory in one system call."""
MEMORY: Final = "memory"
"""In place of a file: blocks that are nowhere else, and gone with the server. A file of this name is ./memory."""

_KEEP_SIZE: Final = 0x01  # linux/falloc.h
_PUNCH_HOLE: Final = 0x02
_ZERO_RANGE: Final = 0x10
_NOT_SUPPORTED: Final = {errno.EOPNOTSUPP, errno.ENOSYS, errno.ENODEV, errno.EINVAL}
_ZEROS: Final = bytes(1 << 20)
_MARK: Final = "user.userdev."  # xattr(7): extended attributes of this namespace are for programs
_libc: Final = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
_libc.fstatfs.argtypes = (ctypes.c_int, ctypes.c_char_p)
_TMPFS: Final = 0x01021994  # linux/magic.h
_RAMFS: Final = 0x858458F6


class WouldBlock(Exception):
    """The data is not in the page cache: reading it has to wait for the disk."""


_lseek: Final = os.lseek  # of each write
_END: Final = os.SEEK_END


class Backing:
    """An open file of `size` bytes. All but `try_read` may block; errors are OSError."""

    def __init__(
        self, path: Path, size: int | None = None, *, read_only: bool = False, in_memory: bool = False
    ) -> None:
        """Open; a regular file that is smaller than `size`, or not there, is made that large, sparse. Not locked yet.

        What is `in_memory` has no file, and `path` only as its name.

        Raises:
            UserError: it cannot be opened, has no size, or cannot be made as large as it should be.
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
            self._seen = self._measured(None)  # all that there is, when this server had it last
            status = os.fstat(self._fd)
            self._has_name = status.st_nlink > 0
            self._has_length = stat.S_ISREG(status.st_mode) or stat.S_ISBLK(status.st_mode)
            self._check_size(size)
        except OSError as error:
            os.close(self._fd)
            raise UserError(f"image {path}: {error.strerror}") from error
        except UserError:
            os.close(self._fd)
            raise
        self.lock = ImageLock(self._fd, path, writing=not read_only)
        """What keeps other programs away. It is for who opens an image to take it."""
        self.failure: Lost | None = None
        """Why nothing that is acknowledged is promised to be kept any more."""
        self._left: int | None = None  # bytes of an image that was cut
        self.is_anothers = False
        """Another has it, and may choose another size for it."""
        self._syncing = threading.Lock()
        self._syncs = 0  # begun so far
        self._no_wait = os.RWF_NOWAIT
        self._has_no_disk = False
        """Reading never waits, though nothing may be asked not to (tmpfs)."""
        self.together = Together(self)
        self.log: deque[tuple[int, int]] | None = None
        """While there is one: offset and size of everything that was written, as soon as it was."""

    def _measured(self, wanted: int | None) -> int:
        status = os.fstat(self._fd)
        if stat.S_ISREG(status.st_mode):
            if wanted and status.st_size < wanted and not self.read_only:
                os.ftruncate(self._fd, wanted)
                if not status.st_size and status.st_nlink:
                    self._keep_name()
                return wanted
            return min(status.st_size, wanted) if wanted else status.st_size
        if stat.S_ISBLK(status.st_mode):
            there = os.lseek(self._fd, 0, os.SEEK_END)
            return min(there, wanted) if wanted else there
        return wanted or 0

    def _keep_name(self) -> None:
        """A new file survives a loss of power with its name, which is in its folder."""
        os.fsync(self._fd)
        with suppress(PermissionError):  # of a folder that may be written, and not read
            folder = os.open(self.path.parent, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)

    def _check_size(self, wanted: int | None) -> None:
        if not self.size:
            example = MEMORY if self.in_memory else self.path
            raise UserError(f"image {self.path} is empty", hint=f"give a size, for example {example}:64M")
        if wanted and self.size < wanted:
            raise UserError(f"image {self.path} has {self.size} bytes, and cannot be made {wanted}")

    def close(self) -> None:
        """Close the file, without a sync, and let go of its lock."""
        self.together.close()
        os.close(self._fd)

    def is_marked(self, mark: str) -> bool:
        """Whether `mark` has marked the file, in this process or in one before it; not where files cannot be marked."""
        try:
            return bool(os.getxattr(self._fd, _MARK + mark))
        except OSError:
            return False

    def mark(self, mark: str, *, on: bool) -> None:
        """Have the file carry a mark, or carry it no longer: what whoever opens it later, anywhere, is to know.

        Raises:
            OSError: its file system has no extended attributes, or it is a device.
        """
        if on:
            os.setxattr(self._fd, _MARK + mark, b"1")
        elif self.is_marked(mark):
            os.removexattr(self._fd, _MARK + mark)

    def measure(self) -> None:
        """Look again how large it is: the other host of a migration may have made it larger."""
        self.size = max(self.size, self._measured(None))

    def measure_again(self) -> None:
        """Look how large it is where another has had it, or has made it larger; what was chosen here stays else."""
        if self.is_anothers or self._measured(None) > self._seen:
            self.measure()
        self.is_anothers = False

    @property
    def length(self) -> int:
        """Bytes of all that there is; a disk may have become smaller than its file."""
        status = os.fstat(self._fd)
        return status.st_size if stat.S_ISREG(status.st_mode) else self.size

    def extend(self, size: int) -> None:
        """Make a regular file at least that large, by zeros. Of anything else it must be so already."""
        self._check_whole()
        if self.length >= size:
            return
        mode = os.fstat(self._fd).st_mode
        if stat.S_ISBLK(mode) and self._measured(size) == size:
            return  # of the device a part was used
        if not stat.S_ISREG(mode):
            raise OSError(errno.ENOSPC, "the image is not that large")
        os.ftruncate(self._fd, size)
        if self.log is not None:
            self.log.append((size - 1, 1))  # that a copy grows too

    def resize(self, size: int) -> None:
        """Make a regular file larger where it has to be; it is never cut, so that a disk can shrink and grow."""
        self.extend(size)
        self.size = self._measured(size)

    def is_same_file(self, other: Backing) -> bool:
        """Whether both are the same file or block device, by whatever paths.

        Raises:
            OSError: one cannot be looked at.
        """
        return os.path.samestat(os.fstat(self._fd), os.fstat(other._fd))

    def take_over(self) -> None:
        """Have the image from now on, if that is not so: what is known of it here may be from before another had it.

        Raises:
            InUse: another has it still.
        """
        if not self.lock.held:
            self.lock.take()
            self.forget()

    def hand_over(self) -> None:
        """Let another have it, who may run elsewhere; `sync` before."""
        self._seen = self._measured(None)
        self.lock.release()

    def forget(self) -> None:
        """Read from the disk what is read next: another host may have written it (so QEMU, raw_co_invalidate_cache)."""
        if self._has_length:
            os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_DONTNEED)

    # Reading and writing

    def try_read(self, pieces: Sequence[memoryview], size: int, offset: int) -> None:
        """Read what is in the page cache; raises WouldBlock if not all of it is."""
        if not (self._no_wait or self._has_no_disk) or len(pieces) > MAX_PIECES:
            raise WouldBlock
        try:
            if os.preadv(self._fd, pieces, offset, self._no_wait) != size:
                raise WouldBlock
        except BlockingIOError:
            raise WouldBlock from None
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise
            self._no_wait, self._has_no_disk = 0, _is_in_memory(self._fd)
            self.try_read(pieces, size, offset)

    @property
    def readable_now(self) -> tuple[int, int]:
        """The file's descriptor, and the flags of a read that takes what is in the page cache; 0: there are none."""
        return self._fd, self._no_wait

    def read(self, pieces: Sequence[memoryview], offset: int) -> None:
        """Fill `pieces`; Lost where the image was cut."""
        for part, size in _parts(pieces):
            self._check_left(offset + size)
            done = 0
            while done < size:
                count = os.preadv(self._fd, _behind(part, done) if done else part, offset + done)
                if not count:
                    raise self._ended(offset + done)
                done += count
            offset += size

    def read_bytes(self, size: int, offset: int) -> bytes:
        """Read `size` bytes; Lost where the image was cut."""
        self._check_left(offset + size)
        data = read_whole(self._fd, size, offset)
        if len(data) != size:
            raise self._ended(offset + len(data))
        return data

    def write(self, pieces: Sequence[memoryview], offset: int) -> None:
        """Write `pieces`; Lost for an image that was cut, all of it: zeros would be in place of what was there.

        Nothing but the kernel knows the image's end: a system call for it with each write, 0.2 us, is the price.
        """
        self._check_whole()
        for part, size in _parts(pieces):
            try:
                done = os.pwritev(self._fd, part, offset)
                while done < size:
                    more = os.pwritev(self._fd, _behind(part, done), offset + done)
                    if not more:
                        raise OSError(errno.EIO, "a write has done nothing")
                    done += more
            finally:
                if self.log is not None:
                    self.log.append((offset, size))
            offset += size

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

    # Keeping

    def sync(self) -> None:
        """Bring everything that was written before to the disk, and return when it is there.

        From any thread: those that wait while the disk is busy share the next turn. One that fails is of all of them,
        whichever thread the page cache tells.

        Raises:
            Lost: it is not, or an earlier one was not.
        """
        begun = self._syncs
        with self._syncing:
            if self._syncs == begun:  # else one that began after all this was written has ended meanwhile
                self._syncs += 1
                self._sync()
        if self.failure is not None:
            raise Lost(*self.failure.args)

    def _sync(self) -> None:
        if self.failure is not None:
            return
        try:
            self._check_whole()
            if self._has_name and not os.fstat(self._fd).st_nlink:
                self._fail(errno.EIO, "it was unlinked, and will be gone with this server")
                return
            self.write_back()
        except Lost:
            pass
        except OSError as error:
            reason = f"the disk has not taken what was written ({error.strerror}), and some of it may be lost"
            self._fail(error.errno or errno.EIO, reason)

    def write_back(self) -> None:
        """Have the kernel bring what was written to the disk. For `sync`, which knows what an error of it means."""
        os.fdatasync(self._fd)

    def _fail(self, number: int, what: str) -> Lost:
        log.error("image %s: %s; it is failed until a server opens it anew", self.path, what)
        if self.failure is None:
            self.failure = Lost(number, what)
        return Lost(number, what)  # another: what is raised has the memory of a request in its traceback

    def _check_whole(self) -> None:
        if self._left is None:
            if not self._has_length or (end := _lseek(self._fd, 0, _END)) >= self.size:
                return
            self._left = end
            self._no_wait, self._has_no_disk = 0, False  # so that `read` sees all that is to be read
            raise self._fail(errno.EIO, f"it was cut to {end} bytes, and had {self.size}")
        self._check_left(self.size)

    def _check_left(self, end: int) -> None:
        """Whoever made it longer again has not brought back what was there."""
        if self._left is not None and end > self._left:
            raise Lost(errno.EIO, f"it was cut to {self._left} bytes")

    def _ended(self, offset: int) -> OSError:
        """Why there is nothing more to read."""
        with suppress(Lost):
            self._check_whole()
        return Lost(errno.EIO, f"it ends at {offset}")

    def _clear(self, mode: int, offset: int, size: int) -> None:
        self._check_whole()
        try:
            if not self._fallocate(mode, offset, size):
                self._write_zeros(offset, size)
        finally:
            if self.log is not None:
                self.log.append((offset, size))

    def _write_zeros(self, offset: int, size: int) -> None:
        with memoryview(_ZEROS) as zeros:
            for at in range(offset, offset + size, len(zeros)):
                write_whole(self._fd, zeros[: offset + size - at], at)

    def _fallocate(self, mode: int, offset: int, size: int) -> bool:
        while size and _libc.fallocate(self._fd, mode, offset, size):
            number = ctypes.get_errno()
            if number in _NOT_SUPPORTED:
                return False
            if number != errno.EINTR:  # a large range takes long enough for a signal, and ctypes does not try again
                raise OSError(number, os.strerror(number))
        return True


def _is_in_memory(fd: int) -> bool:
    """Whether a file is in a file system that has no disk."""
    found = ctypes.create_string_buffer(256)  # zeros, where it cannot be told
    _libc.fstatfs(fd, found)
    return int.from_bytes(found.raw[:8], sys.byteorder) in (_TMPFS, _RAMFS)


def _parts(pieces: Sequence[memoryview]) -> list[tuple[Sequence[memoryview], int]]:
    """Pieces, as many at a time as a system call takes, and their bytes."""
    if len(pieces) == 1:
        return [(pieces, len(pieces[0]))]
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
