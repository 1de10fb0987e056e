"""libblkio, Debian's front-end of vhost-user-blk in Rust, by ctypes: blkio.h of 1.5, as far as is needed here."""

from __future__ import annotations

import ctypes as c
from pathlib import Path
from typing import Any

DRIVER = b"virtio-blk-vhost-user"
_REQ_NO_UNMAP = 1 << 1


class _Region(c.Structure):
    _fields_ = [
        ("addr", c.c_void_p),
        ("len", c.c_size_t),
        ("iova", c.c_uint64),
        ("fd_offset", c.c_int64),
        ("fd", c.c_int),
        ("flags", c.c_uint32),
    ]


class _Completion(c.Structure):
    _fields_ = [
        ("user_data", c.c_void_p),
        ("error_msg", c.c_char_p),
        ("ret", c.c_int),
        ("reserved", c.c_uint8 * 12),
    ]


class Blkio:
    """One connection to a back-end, with a buffer that it shares. Errors are OSErrors in libblkio's words."""

    def __init__(self, library: Path, path: Path) -> None:
        self._library = c.CDLL(str(library))
        self._library.blkio_get_error_msg.restype = c.c_char_p
        self._library.blkio_get_queue.restype = c.c_void_p
        self._handle = c.c_void_p()
        self._region = _Region()
        self._call("create", DRIVER, c.byref(self._handle))
        self._call("set_str", self._handle, b"path", str(path).encode())
        self._call("connect", self._handle)

    def set(self, name: str, value: int) -> None:
        """Set a property, before `start`."""
        self._call("set_int", self._handle, name.encode(), value)

    def get(self, name: str) -> str:
        """A property as text."""
        found = c.c_char_p()
        self._call("get_str", self._handle, name.encode(), c.byref(found))
        return (found.value or b"").decode()

    def start(self, size: int) -> None:
        """Begin, with a buffer of so many bytes."""
        self._call("start", self._handle)
        self._call("alloc_mem_region", self._handle, c.byref(self._region), c.c_size_t(size))
        self._call("map_mem_region", self._handle, c.byref(self._region))

    def write(self, offset: int, data: bytes, queue: int = 0) -> int:
        """Write, and wait for it; 0 or a negative errno."""
        c.memmove(self._region.addr or 0, data, len(data))
        return self._do(
            queue, "write", c.c_uint64(offset), c.c_void_p(self._region.addr), c.c_size_t(len(data)), None, 0
        )

    def read(self, offset: int, size: int, queue: int = 0) -> bytes:
        """Read, and wait for it."""
        c.memset(self._region.addr or 0, 0xEE, size)
        wrong = self._do(queue, "read", c.c_uint64(offset), c.c_void_p(self._region.addr), c.c_size_t(size), None, 0)
        assert wrong == 0, wrong
        return c.string_at(self._region.addr or 0, size)

    def flush(self, queue: int = 0) -> int:
        """Flush, and wait for it; 0 or a negative errno."""
        return self._do(queue, "flush", None, 0)

    def discard(self, offset: int, size: int, queue: int = 0) -> int:
        """Discard, and wait for it; 0 or a negative errno."""
        return self._do(queue, "discard", c.c_uint64(offset), c.c_uint64(size), None, 0)

    def write_zeroes(self, offset: int, size: int, queue: int = 0, *, unmap: bool = True) -> int:
        """Write zeroes, which need a place on the disk unless `unmap`, and wait for it; 0 or a negative errno."""
        return self._do(
            queue, "write_zeroes", c.c_uint64(offset), c.c_uint64(size), None, 0 if unmap else _REQ_NO_UNMAP
        )

    def unmap(self) -> None:
        """Take the buffer back from the back-end."""
        self._library.blkio_unmap_mem_region(self._handle, c.byref(self._region))

    def close(self) -> None:
        """End the connection, in libblkio's way: without a word."""
        self._library.blkio_destroy(c.byref(self._handle))

    def _do(self, queue: int, what: str, *arguments: Any) -> int:
        on = c.c_void_p(self._library.blkio_get_queue(self._handle, queue))
        getattr(self._library, f"blkioq_{what}")(on, *arguments)
        done = _Completion()
        self._check(self._library.blkioq_do_io(on, c.byref(done), 1, 1, None), "do_io")
        return int(done.ret)

    def _call(self, what: str, *arguments: Any) -> None:
        self._check(getattr(self._library, f"blkio_{what}")(*arguments), what)

    def _check(self, result: int, what: str) -> None:
        if result < 0:
            raise OSError(-result, f"{what}: {self._library.blkio_get_error_msg().decode()}")
