"""Files behind client memory, each mapped once however many DMA_MAPs and descriptors name it.

A guest behind a vIOMMU makes QEMU send one DMA_MAP with a descriptor of its own for every 4 KiB page; a mapping each
would hit vm.max_map_count (65530) and the limit of descriptors. Here all descriptors of one file, told by device and
inode, share one mapping of the whole file, and are closed as soon as they are looked at.
"""

from __future__ import annotations

import errno
import mmap
import os
import stat
from dataclasses import dataclass, field

from userdev.errors import ProtocolError
from userdev.memory.guard import guard
from userdev.memory.shrinking import can_shrink, check_size

MappingKey = tuple[int, int, bool]
"""(st_dev, st_ino, writable)"""


@dataclass
class MemoryFile:
    """A mapping of a file from `base` on."""

    key: MappingKey
    map: mmap.mmap
    base: int = 0
    can_shrink: bool = False
    """Whoever shares it may make it smaller under the mapping: see `check`."""
    users: int = 0
    view: memoryview = field(init=False)

    def __post_init__(self) -> None:
        self.view = memoryview(self.map)
        if self.can_shrink:
            guard(self.map)

    @property
    def end(self) -> int:
        """Offset in the file behind the last byte that is mapped."""
        return self.base + len(self.view)

    def check(self, end: int) -> None:
        """Ask the file for its size, where it can shrink, before the mapping is used up to `end`.

        Raises:
            ProtocolError: EFAULT, it has shrunk.
        """
        if self.can_shrink:
            check_size(self.map, self.base + end)

    def close(self) -> None:
        """Unmap; if the author still holds views of it, it goes when the last of them does."""
        self.view.release()
        try:
            self.map.close()
        except BufferError:
            del self.map


class MemoryFiles:
    """The files that a client's memory is in. `take` and `give_back` count the users."""

    def __init__(self) -> None:
        self._files: dict[MappingKey, MemoryFile] = {}

    def __len__(self) -> int:
        return len(self._files)

    def key(self, fd: int, writable: bool) -> MappingKey:
        """The identity of one file and its protection."""
        status = os.fstat(fd)
        return status.st_dev, status.st_ino, writable

    def take(self, fd: int, writable: bool, offset: int, size: int) -> MemoryFile:
        """The mapping that has these bytes of the file; made if there is none. `fd` stays the caller's.

        Raises:
            ProtocolError: EINVAL, the file ends before offset + size, where an access would kill the process
                with SIGBUS; otherwise the errno of mmap, such as EACCES for a read-only fd or ENODEV for a pipe.
        """
        status = os.fstat(fd)
        key = status.st_dev, status.st_ino, writable
        regular = stat.S_ISREG(status.st_mode)
        if regular and offset + size > status.st_size:
            raise ProtocolError(
                f"memory at {offset:#x} to {offset + size:#x} of a file that has {status.st_size:#x} bytes",
                errno.EINVAL,
            )
        file = self._files.get(key)
        if file is None or not (file.base <= offset and offset + size <= file.end):
            # A device's memory has no size to ask for: its mappings are made one by one.
            base, end = (0, status.st_size) if regular else (offset & ~(mmap.PAGESIZE - 1), offset + size)
            file = MemoryFile(key, _map(fd, writable, base, end - base), base, can_shrink(fd))
            self._files[key] = file  # where the file has grown, the old mapping lives on with its users
        file.users += 1
        return file

    def give_back(self, file: MemoryFile) -> None:
        """Undo a `take`: the mapping goes with its last user."""
        file.users -= 1
        if not file.users:
            if self._files.get(file.key) is file:
                del self._files[file.key]
            file.close()


def _map(fd: int, writable: bool, base: int, size: int) -> mmap.mmap:
    protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
    try:
        return mmap.mmap(fd, size, flags=mmap.MAP_SHARED, prot=protection, offset=base)
    except OSError as error:
        raise ProtocolError(f"memory cannot be mapped: {error.strerror}", error.errno or errno.EINVAL) from error
    except (ValueError, OverflowError) as error:
        raise ProtocolError(f"memory cannot be mapped: {error}", errno.EINVAL) from error
