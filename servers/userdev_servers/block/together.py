"""Large reads that came together, copied on another core while the next request is looked at.

Copying 128 KiB takes 7 to 9 us, and is most of such a read. One that comes alone is copied where it is; of several, the
kernel's thread of io_uring does all. To wake a thread takes as long as to copy 256 KiB on a virtual machine, so that a
pool of threads gains nothing, the kernel's own (IOSQE_ASYNC) neither; this one looks by itself while there is work.

It needs a core. Where it has none within a moment, reads are copied here again, for long enough that what was lost is
a hundredth. Where io_uring is not allowed there is no such thread, and nothing else is different.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from time import perf_counter_ns
from typing import Protocol

from userdev_servers.block.uring import Uring

log = logging.getLogger("vfio_user.servers.block")

LARGE = 64 << 10
"""Bytes that take longer to copy than to hand over (4 us)."""

FEW = 8
"""Pieces at most: each address that is to be found out takes as long as copying 6 KiB of it."""

AT_ONCE = 64
"""More than are taken from a ring before what was begun is ended (32)."""

PATIENCE_NS = 150_000
"""The kernel's thread has no core, if it takes longer from one end to the next: others want it."""

REST = 300
"""So many times as long as was waited then, reads are copied here."""


class Readable(Protocol):
    """What is read: `Backing`."""

    @property
    def readable_now(self) -> tuple[int, int]:  # noqa: D102 - Backing has it
        ...

    def try_read(self, pieces: Sequence[memoryview], size: int, offset: int) -> None:  # noqa: D102 - Backing has it
        ...


class Read:
    """One that was begun, by `Together.begin`."""

    __slots__ = ("_together", "is_given", "is_whole", "offset", "pieces", "size")

    def __init__(self, together: Together, pieces: Sequence[memoryview], size: int, offset: int) -> None:
        self._together = together
        self.pieces = pieces
        self.size = size
        self.offset = offset
        self.is_given = False
        """The kernel's thread has it."""
        self.is_whole = False
        """That has read all of it."""

    def end(self) -> None:
        """Have it be done.

        Raises:
            WouldBlock: it is not in the page cache; `Backing.read` waits for it.
            OSError: it cannot be read.
        """
        self._together.end(self)


class Together:
    """The large reads of an image. One thread begins and ends them; all are ended before anything else is done."""

    def __init__(self, backing: Readable) -> None:
        self._backing = backing
        self._uring: Uring | None = None
        self._is_possible = len(os.sched_getaffinity(0)) > 1
        self._first: Read | None = None
        self._given: dict[int, Read] = {}
        self._tag = 0
        self._not_before = 0

    def takes(self, pieces: Sequence[memoryview], size: int) -> bool:
        """Whether it is one that gains by it."""
        return self._is_possible and size >= LARGE and len(pieces) <= FEW and bool(self._backing.readable_now[1])

    def begin(self, pieces: Sequence[memoryview], size: int, offset: int) -> Read:
        """Begin a read. The first waits for a second one, with which it is given to the kernel's thread."""
        read = Read(self, pieces, size, offset)
        first, self._first = self._first, None
        if first is None and not self._given:
            self._first = read
        elif len(self._given) < AT_ONCE - 1 and (uring := self._ring()):
            if first is not None:
                self._give(uring, first)
            self._give(uring, read)
        return read

    def end(self, read: Read) -> None:
        """See `Read.end`. What the kernel's thread has not read whole is done again here, where its error is told."""
        if read is self._first:
            self._first = None
        if read.is_given:
            self._await(read)
        if not read.is_whole:
            self._backing.try_read(read.pieces, read.size, read.offset)

    def close(self) -> None:
        """Let go of the kernel's thread."""
        if self._uring is not None:
            self._uring.close()
            self._uring = None
        self._is_possible = False

    def _ring(self) -> Uring | None:
        if perf_counter_ns() < self._not_before:
            return None
        if self._uring is None and self._is_possible:
            try:
                self._uring = Uring(AT_ONCE)
            except OSError as error:
                self._is_possible = False
                log.info("large reads are copied one after the other: io_uring is not to be had (%s)", error.strerror)
        return self._uring

    def _give(self, uring: Uring, read: Read) -> None:
        fd, flags = self._backing.readable_now
        self._tag += 1
        uring.read(fd, read.pieces, read.offset, flags, self._tag)
        read.is_given = True
        self._given[self._tag] = read

    def _await(self, read: Read) -> None:
        uring = self._uring
        assert uring is not None
        begin = perf_counter_ns()
        while read.is_given:
            for tag, result in uring.ended():
                one = self._given.pop(tag)
                one.is_given, one.is_whole = False, result == one.size
            if read.is_given and perf_counter_ns() - begin > PATIENCE_NS:
                uring.wait()
        waited = perf_counter_ns() - begin
        if waited > PATIENCE_NS:
            self._not_before = begin + REST * waited
