"""The in-flight region of a session: made for a front-end that asks for one, taken back from one that kept it."""

from __future__ import annotations

import errno
import fcntl
import os

from userdev.errors import ProtocolError
from vhost_user.memory import FileMapping
from vhost_user.rings import PackedInflight, SplitInflight, region_size
from vhost_user.wire.payloads import Inflight

MAX_SIZE = 32768
"""Descriptors of a ring."""

_ALIGN = 64


class InflightRegion:
    """The requests of all rings that are under way, in memory that outlives this process."""

    def __init__(self, described: Inflight, fd: int, *, packed: bool, queues: int) -> None:
        """Map it, as SET_INFLIGHT_FD describes it; `fd` stays the caller's.

        Raises:
            ProtocolError: it is for more rings than the device's `queues`, or too small; or the errno of mmap.
        """
        _check(described, queues)
        if described.mmap_offset % _ALIGN:
            raise ProtocolError(f"an in-flight region at {described.mmap_offset:#x} of its file")
        self._part = region_size(described.queue_size, packed=packed)
        self._slots = described.queue_size
        self._count = described.num_queues
        self._packed = packed
        if described.mmap_size < self._part * self._count:
            raise ProtocolError(f"an in-flight region of {described.mmap_size} bytes for {self._count} rings")
        self._mapping = FileMapping(fd, described.mmap_offset, described.mmap_size)

    def split(self, index: int) -> SplitInflight | None:
        """The part of a split ring; None where it has none.

        Raises:
            ProtocolError: the region is of packed rings.
        """
        part = self._of(index, packed=False)
        return None if part is None else SplitInflight(part, self._slots, self._mapping.check)

    def packed(self, index: int) -> PackedInflight | None:
        """The part of a packed ring; None where it has none.

        Raises:
            ProtocolError: the region is of split rings.
        """
        part = self._of(index, packed=True)
        return None if part is None else PackedInflight(part, self._slots, self._mapping.check)

    def close(self) -> None:
        """Unmap it; rings that run still have their parts."""
        self._mapping.close()

    def _of(self, index: int, *, packed: bool) -> memoryview | None:
        if packed is not self._packed:
            raise ProtocolError("the in-flight region came when other rings were agreed on, split or packed")
        if index >= self._count:
            return None
        return self._mapping.view[index * self._part : (index + 1) * self._part]


def make_region(wanted: Inflight, *, packed: bool, queues: int) -> tuple[Inflight, int]:
    """The file of a region for so many rings as GET_INFLIGHT_FD asks for, and what describes it; the caller closes it.

    Raises:
        ProtocolError: for more rings than the device's `queues`; or ENOMEM.
    """
    _check(wanted, queues)
    size = region_size(wanted.queue_size, packed=packed) * wanted.num_queues
    fd = os.memfd_create("vhost-user in-flight", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.posix_fallocate(fd, 0, size)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    except OSError as error:
        os.close(fd)
        raise ProtocolError(f"no memory for an in-flight region: {error}", error.errno or errno.ENOMEM) from None
    return wanted._replace(mmap_size=size, mmap_offset=0), fd


def _check(described: Inflight, queues: int) -> None:
    if not 0 < described.num_queues <= queues or not 0 < described.queue_size <= MAX_SIZE:
        raise ProtocolError(
            f"an in-flight region for {described.num_queues} rings of {described.queue_size}; the device has {queues}"
        )
