"""Which pages of client memory the device has written: one byte a page while collecting, bits when reported.

A byte a page makes marking a slice assignment, and costs 1/4096 of the memory that is logged.
"""

from __future__ import annotations

import errno
import threading

from vfio_user.errors import ProtocolError

_DIGITS = bytes.maketrans(b"\0\1", b"01")


def bitmap_size(length: int, page_size: int) -> int:
    """Bytes of a bitmap over `length` bytes: a bit a page, rounded up to whole 64-bit words."""
    pages = -(-length // page_size)
    return -(-pages // 64) * 8


def check_page_size(page_size: int) -> None:
    """Raises ProtocolError (EINVAL) unless it is a power of two."""
    if page_size <= 0 or page_size & (page_size - 1):
        raise ProtocolError(f"dirty log: page size {page_size} is not a power of two", errno.EINVAL)


class DirtyPages:
    """The dirty pages of one range of addresses. Pages lie at multiples of `page_size`, a power of two."""

    def __init__(self, start: int, size: int, page_size: int) -> None:
        self.page_size = page_size
        self._first = start // page_size
        self._pages = bytearray(-(-(start + size) // page_size) - self._first)
        self._lock = threading.Lock()

    def mark(self, address: int, count: int) -> None:
        """From any thread, after the bytes are written."""
        if count:
            first = address // self.page_size - self._first
            last = (address + count - 1) // self.page_size - self._first
            with self._lock:
                self._pages[first : last + 1] = b"\1" * (last + 1 - first)

    def take(self, address: int, count: int, page_size: int) -> int:
        """Report `count` pages of `page_size` from `address` on, one bit each, lowest first; forget what is reported.

        Pages smaller than the log's repeat its bit, larger ones combine several (dialects.md 10.4). A page of the log
        that lies only partly in what is asked for is reported and stays marked.
        """
        log = self.page_size
        end = address + count * page_size
        first, last = address // log - self._first, -(-end // log) - self._first
        lowest, highest = max(first, 0), max(0, min(last, len(self._pages)))
        whole_first = max(-(-address // log) - self._first, 0)
        whole_last = max(whole_first, min(end // log - self._first, len(self._pages)))
        with self._lock:
            pages = bytes(self._pages[lowest:highest])
            self._pages[whole_first:whole_last] = bytes(whole_last - whole_first)
        if 1 not in pages:
            return 0
        if page_size == log and address % log == 0:
            return _pack(pages) << (lowest - first)
        # What is left is rare: other page sizes than logged, or a range that starts within a page.
        bits = 0
        for dirty in (lowest + place for place, mark in enumerate(pages) if mark):
            from_address = max((self._first + dirty) * log, address)
            to_address = min((self._first + dirty + 1) * log, end)
            bit, bit_end = (from_address - address) // page_size, -(-(to_address - address) // page_size)
            bits |= (1 << bit_end) - (1 << bit)
        return bits

    def part(self, start: int, size: int) -> DirtyPages:
        """A log of its own for a part of the range, with the marks that it has."""
        part = DirtyPages(start, size, self.page_size)
        skipped = part._first - self._first
        with self._lock:
            part._pages[:] = self._pages[skipped : skipped + len(part._pages)]
        return part


def _pack(pages: bytes) -> int:
    """One byte a page, 0 or 1, into one bit a page, lowest first. Base 2 is what int() parses in linear time."""
    return int(pages[::-1].translate(_DIGITS), 2)
