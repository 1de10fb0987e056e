"""io_uring with a thread of the kernel that takes requests by itself, by the standard library alone.

A program writes its request into memory that it shares with the kernel, stores an index, and looks at another one for
the end: no system call, nobody is woken, and the copying is on another core meanwhile. Source: io_uring(7),
io_uring_setup(2), io_uring_enter(2), and include/uapi/linux/io_uring.h, whose structures are the tables below.

Stores and loads of a memoryview are one instruction each, which x86-64 keeps in order; elsewhere there is none.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import platform
from collections.abc import Sequence
from struct import Struct
from threading import Lock
from typing import NamedTuple

_SETUP, _ENTER = 425, 426  # system calls

_POLLED = 1 << 1  # IORING_SETUP_SQPOLL
_NEEDED = 1 << 0 | 1 << 7 | 1 << 9  # IORING_FEAT_: SINGLE_MMAP, SQPOLL_NONFIXED, NATIVE_WORKERS (which end with us)
_GET_EVENTS, _WAKE = 1 << 0, 1 << 1  # IORING_ENTER_
_SLEEPS = 1 << 0  # IORING_SQ_NEED_WAKEUP
_REQUESTS_AT = 0x10000000  # IORING_OFF_SQES
_READV, _READ = 1, 22  # IORING_OP_

_PARAMETERS = Struct("<IIIIII16x 7I4x8x 7I4x8x")
"""struct io_uring_params: entries of both rings, flags, core, ms of idleness, features; then where in the rings
things are: head, tail, mask, entries, flags, dropped, array; and head, tail, mask, entries, overflow, completions."""
_REQUEST = Struct("<BBHiQQIIQ24x")
"""struct io_uring_sqe: opcode, flags, priority, descriptor, offset, address, bytes or pieces, RWF_ flags, user data."""
_COMPLETION = Struct("<QiI")
"""struct io_uring_cqe: user data, result, flags."""
_PIECE = Struct("@PN")
"""struct iovec."""

_WRAP = 0xFFFF_FFFF
_libc = ctypes.CDLL(None, use_errno=True)
_lock = Lock()


class Completion(NamedTuple):
    """What became of a request: bytes, or an errno below 0."""

    tag: int
    result: int


class Uring:
    """Rings for `entries` requests at a time, a power of two. One thread uses them."""

    def __init__(self, entries: int, idle_ms: int = 1) -> None:
        """Have the kernel's thread, which sleeps when there was nothing for so long.

        Raises:
            OSError: it is not to be had: EPERM or ENOSYS where somebody forbids it, in a container for example.
        """
        if platform.machine() != "x86_64":
            raise OSError(errno.ENOSYS, "not on this architecture")
        parameters = ctypes.create_string_buffer(
            _PARAMETERS.pack(0, 0, _POLLED, 0, idle_ms, 0, *bytes(14)), _PARAMETERS.size
        )
        self._fd = _call(_SETUP, entries, parameters)
        try:
            self._map(*_PARAMETERS.unpack(parameters.raw))
        except OSError:
            os.close(self._fd)
            raise
        self._tail = self._head = 0
        self._held: dict[int, object] = {}

    def _map(self, count: int, completions: int, _: int, __: int, ___: int, features: int, *places: int) -> None:
        if features & _NEEDED != _NEEDED:
            raise OSError(errno.ENOSYS, "the kernel's io_uring is older than that of Linux 5.12")
        _, tail, _, _, flags, _, array = places[:7]
        end, last, _, _, _, entries, _ = places[7:]
        size = max(array + 4 * count, entries + _COMPLETION.size * completions)
        rings = memoryview(mmap.mmap(self._fd, size))
        self._requests = memoryview(mmap.mmap(self._fd, _REQUEST.size * count, offset=_REQUESTS_AT))
        self._request_tail = rings[tail : tail + 4].cast("I")
        self._flags = rings[flags : flags + 4].cast("I")
        self._completion_head = rings[end : end + 4].cast("I")
        self._completion_tail = rings[last : last + 4].cast("I")
        self._completions = rings[entries : entries + _COMPLETION.size * completions]
        self._last_request, self._last_completion = count - 1, completions - 1  # of each ring, for its indices
        order = rings[array : array + 4 * count].cast("I")
        for index in range(count):
            order[index] = index

    @property
    def outstanding(self) -> int:
        """Requests whose end was not told yet."""
        return len(self._held)

    def read(self, fd: int, pieces: Sequence[memoryview], offset: int, flags: int, tag: int) -> None:
        """Begin to read into `pieces`, which are held until the end is told; `flags` are RWF_, `tag` is another's."""
        buffers = [ctypes.c_char.from_buffer(piece) for piece in pieces]
        if len(buffers) == 1:
            operation, address, count = _READ, ctypes.addressof(buffers[0]), len(pieces[0])
            self._held[tag] = buffers
        else:
            vector = bytearray(_PIECE.size * len(pieces))
            for index, (buffer, piece) in enumerate(zip(buffers, pieces, strict=True)):
                _PIECE.pack_into(vector, _PIECE.size * index, ctypes.addressof(buffer), len(piece))
            held = ctypes.c_char.from_buffer(vector)
            operation, address, count = _READV, ctypes.addressof(held), len(pieces)
            self._held[tag] = (buffers, held)
        at = (self._tail & self._last_request) * _REQUEST.size
        _REQUEST.pack_into(self._requests, at, operation, 0, 0, fd, offset, address, count, flags, tag)
        self._tail = self._tail + 1 & _WRAP
        self._request_tail[0] = self._tail
        with _lock:  # a full barrier: the kernel's thread says that it sleeps, and looks once more
            pass
        if self._flags[0] & _SLEEPS:
            _call(_ENTER, self._fd, 0, 0, _WAKE)

    def ended(self) -> list[Completion]:
        """Those that have ended since it was asked last."""
        head, told = self._head, []
        while head != self._completion_tail[0]:
            tag, result, _ = _COMPLETION.unpack_from(
                self._completions, (head & self._last_completion) * _COMPLETION.size
            )
            self._held.pop(tag, None)
            told.append(Completion(tag, result))
            head = head + 1 & _WRAP
        if told:
            self._head = self._completion_head[0] = head
        return told

    def wait(self) -> None:
        """Sleep until all of them have ended, without Python's lock."""
        while (self._completion_tail[0] - self._head & _WRAP) < len(self._held):
            try:
                _call(_ENTER, self._fd, 0, len(self._held), _GET_EVENTS | _WAKE)
            except InterruptedError:
                continue

    def close(self) -> None:
        """Let what is under way end, and be gone."""
        self.wait()
        os.close(self._fd)


def _call(number: int, *arguments: object) -> int:
    padded = [*arguments, *(0 for _ in range(6 - len(arguments)))]
    given = [ctypes.c_long(each) if isinstance(each, int) else each for each in padded]
    result = int(_libc.syscall(ctypes.c_long(number), *given))
    if result < 0:
        found = ctypes.get_errno()
        raise OSError(found, os.strerror(found))
    return result
