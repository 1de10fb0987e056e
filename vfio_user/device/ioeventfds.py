"""Eventfds that a client's hypervisor signals instead of sending a register's writes (GET_REGION_IO_FDS).

A plain one tells that a value was written, a shadow one what: the hypervisor puts the value into memory that both share
before it signals, and of several writes in a row the last is seen (libvfio-user, vfu_create_ioeventfd; patches of
KVM and QEMU that are not in mainline). A client that knows no shadows signals them like plain ones, and the writer
gets what is in the memory: 0, until somebody writes there.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial

from userdev.eventfd import drain
from vfio_user.device.link import Link
from vfio_user.device.region import IoFd
from vfio_user.migration.memory import PAGE, Memfd
from vfio_user.wire.constants import IoFdType

_DATAMATCH = 1  # KVM_IOEVENTFD_FLAG_DATAMATCH
_WIDEST = 8


class IoEventFds:
    """Those of one device."""

    def __init__(self, run: Callable[[Callable[[], None]], None]) -> None:
        """`run` does the work of one that was signalled, now or when the device may."""
        self._run = run
        self._ready: dict[int, Callable[[], None]] = {}
        self._shadows = 0
        self._memory: Memfd | None = None

    def add(self, offset: int, width: int, write: Callable[[int], None], datamatch: int | None) -> IoFd:
        """One that calls `write` with `datamatch`, or 0, whenever it was signalled."""
        fd = self._eventfd(lambda: partial(write, datamatch or 0))
        flags = 0 if datamatch is None else _DATAMATCH
        return IoFd(offset, width, fd, flags=flags, datamatch=datamatch or 0)

    def add_shadow(self, offset: int, width: int, write: Callable[[int], None], datamatch: int | None) -> IoFd:
        """One that calls `write` with what the hypervisor says was written."""
        if self._memory is None:
            self._memory = Memfd("vfio-user-shadows", PAGE)
        memory, at = self._memory, self._shadows * _WIDEST
        if at + _WIDEST > memory.size:
            raise ValueError(f"a device has up to {memory.size // _WIDEST} shadow ioeventfds")
        self._shadows += 1
        fd = self._eventfd(lambda: partial(write, int.from_bytes(memory.view[at : at + width], "little")))
        found = IoFd(offset, width, fd, type=IoFdType.IOEVENTFD_SHADOW, shadow_fd=memory.fd, shadow_offset=at)
        if datamatch is not None:
            found.flags, found.datamatch = _DATAMATCH, datamatch
        return found

    def watch(self, link: Link, *fds: int) -> None:
        """Have these watched, or all, without what the client before has signalled and nobody has seen."""
        for fd in fds or self._ready:
            drain(fd)
            link.watch(fd, self._ready[fd])

    def unwatch(self, link: Link) -> None:
        """Stop watching, as the client goes."""
        for fd in self._ready:
            link.unwatch(fd)

    def close(self) -> None:
        """Close the eventfds and the memory of the shadows."""
        for fd in self._ready:
            os.close(fd)
        self._ready.clear()
        if self._memory is not None:
            self._memory.close()
            self._memory = None

    def _eventfd(self, work: Callable[[], Callable[[], None]]) -> int:
        """`work` is asked for what there is to do when it was signalled."""
        fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._ready[fd] = lambda: self._run(work()) if drain(fd) else None
        return fd
