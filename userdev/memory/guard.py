"""Files that shrink in the moment of an access: the process goes on, with a page of its own in place of what was lost.

The kernel answers an access behind the end of a mapped file with SIGBUS. Asking for the size before cannot help where
the file shrinks just then (`userdev.memory.shrinking`), and Python cannot handle the signal: its handlers run later,
and the access is tried again for ever. So a handler of C's is made of a function here, which the thread that made the
access runs at once, and which maps an empty page there. What is done with that page reaches nobody; the next look at
the file says that it has shrunk, even if it has grown again.

The handler is there once a file has been mapped that may shrink, and is put there again with each such file where
another has taken its place, as faulthandler's does when it is enabled. Any other SIGBUS is what it was without.
"""

from __future__ import annotations

import mmap
import os
import weakref
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

_SIGBUS, _BUS_ADRERR = 7, 2
_SA_SIGINFO, _SA_NODEFER = 0x4, 0x40000000
_READ_WRITE, _FIXED_ANONYMOUS = 0x3, 0x32
_CODE, _ADDRESS = 8, 16
"""Of si_code and si_addr in siginfo_t, on x86-64."""
_BUFFER_WORDS = 10
"""Of Python's Py_buffer, which begins with the address."""

_ranges: dict[int, tuple[int, int, weakref.ref[mmap.mmap]]] = {}
"""By the identity of a mapping: its first address, the one behind it, and itself."""
_damaged: set[int] = set()
_kept: list[Any] = []
"""What the kernel calls."""


class _Handling(NamedTuple):
    put_in_place: Callable[[], None]
    """Have the handler be there."""
    address_of: Callable[[mmap.mmap], int]


def guard(mapped: mmap.mmap) -> None:
    """Survive accesses to this mapping behind the end of its file, as long as it is there."""
    handling = _handling()
    handling.put_in_place()
    start = handling.address_of(mapped)
    _ranges[id(mapped)] = start, start + len(mapped), weakref.ref(mapped)
    weakref.finalize(mapped, _forget, id(mapped)).atexit = False


def is_damaged(mapped: mmap.mmap) -> bool:
    """Whether an access was survived, so that not all of it is the file's any more."""
    return bool(_damaged) and id(mapped) in _damaged


def _is_there(mapped: mmap.mmap | None) -> bool:
    """Whether its addresses are its own: what is closed may be kept for long, as by an error that came through it."""
    return mapped is not None and not mapped.closed


def _forget(identity: int) -> None:
    _ranges.pop(identity, None)
    _damaged.discard(identity)


@cache
def _handling() -> _Handling:
    import ctypes  # only where files can shrink: it takes some ms

    class Action(ctypes.Structure):
        """struct sigaction of the C library."""

        _fields_ = (
            ("handler", ctypes.c_void_p),
            ("mask", ctypes.c_char * 128),
            ("flags", ctypes.c_int),
            ("restorer", ctypes.c_void_p),
        )

    libc = ctypes.PyDLL(None)  # Python's lock stays with whoever has it
    map_page, set_action = libc.mmap, libc.sigaction
    map_page.restype = ctypes.c_void_p
    map_page.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    befores: list[
        Action
    ] = []  # whose place it has taken; each has one turn, as it may give the signal back to this one

    def survive(_: int, info: int, __: object) -> None:
        address = ctypes.c_size_t.from_address(info + _ADDRESS).value
        code = ctypes.c_int.from_address(info + _CODE).value
        if code == _BUS_ADRERR:
            for identity, (start, end, mapped) in list(_ranges.items()):
                if start <= address < end and _is_there(mapped()):
                    _damaged.add(identity)
                    page = address & -mmap.PAGESIZE
                    if map_page(page, mmap.PAGESIZE, _READ_WRITE, _FIXED_ANONYMOUS, -1, 0) == page:
                        return
        before = befores.pop() if befores else Action()
        set_action(_SIGBUS, ctypes.byref(before), None)  # the access is made again, and is somebody else's affair
        if code <= 0:  # nobody's access: somebody has sent it
            os.kill(os.getpid(), _SIGBUS)

    handler = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)(survive)
    action = Action(ctypes.cast(handler, ctypes.c_void_p), b"", _SA_SIGINFO | _SA_NODEFER, None)
    _kept.append(handler)

    def put_in_place() -> None:
        there = Action()
        set_action(_SIGBUS, None, ctypes.byref(there))
        if there.handler != action.handler:
            befores.append(there)
            set_action(_SIGBUS, ctypes.byref(action), None)

    get_buffer, release = ctypes.pythonapi.PyObject_GetBuffer, ctypes.pythonapi.PyBuffer_Release
    get_buffer.argtypes = [ctypes.py_object, ctypes.c_void_p, ctypes.c_int]
    release.argtypes = [ctypes.c_void_p]
    release.restype = None

    def address_of(mapped: mmap.mmap) -> int:
        buffer = (ctypes.c_size_t * _BUFFER_WORDS)()  # `from_buffer` takes none that is read-only
        get_buffer(mapped, buffer, 0)
        release(buffer)
        return buffer[0]

    return _Handling(put_in_place, address_of)
