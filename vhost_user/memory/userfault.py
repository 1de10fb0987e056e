"""Pages that have not come yet, of a migration that runs on before its memory is there (userfaultfd(2)).

Who is told of them is the front-end: the descriptor goes to it. An access waits in the kernel until it has the page; so
does one of a system call's, such as preadv, for which the kernel wants CAP_SYS_PTRACE or the right to open
/dev/userfaultfd. Without that there is no postcopy.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import struct
from contextlib import suppress
from functools import cache

from userdev.errors import ProtocolError

_API = struct.Struct("=QQQ")
_REGISTER = struct.Struct("=QQQQ")
_UFFD_API = 0xAA
_IOC_NEW, _IOC_API, _IOC_REGISTER = 0xAA00, 0xC018AA3F, 0xC020AA00
_MODE_MISSING = 1
_MISSING_SHMEM = 1 << 5
"""UFFD_FEATURE_MISSING_SHMEM: of files in memory."""

_SYSCALL = 323
"""userfaultfd's number on x86-64."""

_FLAGS = os.O_CLOEXEC | os.O_NONBLOCK


class UserFault:
    """One userfaultfd of this process; `fd` stays its own."""

    def __init__(self) -> None:
        """Open it.

        Raises:
            OSError: this process may not, or the kernel cannot do it for files in memory.
        """
        self.fd = _open()
        api = bytearray(_API.pack(_UFFD_API, 0, 0))
        with suppress(OSError):
            fcntl.ioctl(self.fd, _IOC_API, api)
        if not _API.unpack(api)[1] & _MISSING_SHMEM:
            os.close(self.fd)
            raise OSError(errno.ENOTSUP, "this kernel has no userfaultfd for files in memory")

    def register(self, mapped: mmap.mmap, start: int, size: int) -> None:
        """Have accesses to a piece of a mapping wait for pages that its file does not have yet.

        Raises:
            ProtocolError: it does not begin and end with a page; or the errno of the kernel.
        """
        if start % mmap.PAGESIZE or size % mmap.PAGESIZE:
            raise ProtocolError(f"{size:#x} bytes at {start:#x} of a file are no whole pages, as postcopy needs them")
        mapped.madvise(mmap.MADV_DONTNEED, start, size)
        with suppress(OSError):  # a kernel without huge pages
            mapped.madvise(mmap.MADV_NOHUGEPAGE, start, size)
        range_ = bytearray(_REGISTER.pack(address_of(mapped) + start, size, _MODE_MISSING, 0))
        try:
            fcntl.ioctl(self.fd, _IOC_REGISTER, range_)
        except OSError as error:
            raise ProtocolError(f"memory cannot be waited for: {error.strerror}", error.errno or errno.EIO) from None

    def close(self) -> None:
        """Have no descriptor of it any more; accesses wait as long as the front-end has its own."""
        os.close(self.fd)


def address_of(mapped: mmap.mmap) -> int:
    """The address of a mapping in this process."""
    import ctypes  # only where there is postcopy

    return ctypes.addressof(ctypes.c_char.from_buffer(mapped))


@cache
def is_allowed() -> bool:
    """Whether there can be postcopy here: looked at once."""
    try:
        UserFault().close()
    except OSError:
        return False
    return True


def _open() -> int:
    try:
        device = os.open("/dev/userfaultfd", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return _by_system_call()
    try:
        return int(fcntl.ioctl(device, _IOC_NEW, _FLAGS))
    finally:
        os.close(device)


def _by_system_call() -> int:
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if (fd := libc.syscall(_SYSCALL, _FLAGS)) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return int(fd)
