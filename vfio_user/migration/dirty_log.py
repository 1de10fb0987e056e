"""Which pages of client memory the device has written: marked by each write, read and cleared by the client.

One bit per 4 KiB granule of a DMA region, counted from its start. A report at another page size is made of the
granules: larger pages combine several, smaller ones repeat one (docs/protocol.md 10.4).

A writer marks *after* it has written. A report in between takes no bit, and the mark is there for the next one; marked
before, the bit could be taken, the page be copied by the client, and only then be written.
"""

from __future__ import annotations

import errno
from threading import Lock

from userdev.errors import ProtocolError
from userdev.memory.bitmap import bitmap_size

GRANULE_SHIFT = 12
GRANULE = 1 << GRANULE_SHIFT

MAX_LOGGED = 16 << 40
"""Bytes of client memory in all logs of a device, at most: the bits of 16 TiB take 512 MiB, twice that while reported.
A guest of 1 TiB takes 32 MiB. Without a bound a few messages that map nothing would take all memory there is."""

_BLOCK_SHIFT = 18
_BLOCK = (1 << _BLOCK_SHIFT) // 8
"""Bytes of bits that are folded at a time: 1 GiB of memory. Most are clean, and skipped."""
_CLEAN = bytes(_BLOCK + 1)
_BITS = tuple(1 << bit for bit in range(8))


def check_page_size(page_size: int) -> None:
    """Look whether a page size is a power of two.

    Raises:
        ProtocolError: EINVAL, it is not.
    """
    if page_size <= 0 or page_size & (page_size - 1):
        raise ProtocolError(f"dirty log: page size {page_size} is not a power of two", errno.EINVAL)


class DirtyPages:
    """The dirty pages of one range of addresses. `mark` and `take` may run in several threads at once.

    >>> pages = DirtyPages(0x10000, 0x8000)
    >>> pages.mark(0x13FFF, 2)
    >>> pages.take(0x10000, 0x8000, 0x1000).hex()
    '1800000000000000'
    """

    __slots__ = ("_bits", "_lock", "_size", "_start")

    def __init__(self, start: int, size: int) -> None:
        self._start = start
        self._size = size
        self._bits = bytearray(-(-size >> GRANULE_SHIFT) + 7 >> 3)
        self._lock = Lock()

    def mark(self, address: int, count: int) -> None:
        """Mark what a write of `count` bytes at `address` has touched. From any thread, after the bytes are written."""
        if count <= 0:
            return
        address -= self._start
        first, last = address >> GRANULE_SHIFT, address + count - 1 >> GRANULE_SHIFT
        with self._lock:
            if first == last:
                self._bits[first >> 3] |= _BITS[first & 7]
            else:
                _set_bits(self._bits, first, last + 1)

    def take(self, address: int, length: int, page_size: int) -> bytes:
        """The bitmap of a range; see `take_into`."""
        bitmap = bytearray(bitmap_size(length, page_size))
        self.take_into(bitmap, address, length, page_size)
        return bytes(bitmap)

    def take_into(self, bitmap: bytearray, address: int, length: int, page_size: int) -> None:
        """Add what is dirty here to the bitmap of a range, in which bit i is the page at `address + i * page_size`.

        What is reported is clean afterwards, but for a granule that the range covers in part: what is dirty in it may
        lie outside, so that it is reported again.
        """
        low, high = max(address - self._start, 0), min(address + length - self._start, self._size)
        if low < high:
            bits = self._swap_out(low, high)
            _report(bitmap, bits, self._start + _byte_start(low) - address, length, page_size)

    def part(self, start: int, size: int) -> DirtyPages:
        """A log of its own for a part of the range, with the marks that it has."""
        part = DirtyPages(start, size)
        low, high = start - self._start, start + size - self._start
        with self._lock:
            bits = self._copy(low, high)
        _report(part._bits, bits, self._start + _byte_start(low) - start, size, GRANULE)
        return part

    def _swap_out(self, low: int, high: int) -> bytearray:
        """The bits of these bytes of memory. What of it is whole granules is cleared."""
        whole_first, whole_end = _granules(low), _granules(high) if high == self._size else high >> GRANULE_SHIFT
        with self._lock:
            if not low and high == self._size:
                bits, self._bits = self._bits, bytearray(len(self._bits))
                return bits
            taken = self._copy(low, high)
            if whole_first < whole_end:
                _clear_bits(self._bits, whole_first, whole_end)
        return taken

    def _copy(self, low: int, high: int) -> bytearray:
        """The bits of the granules that have these bytes of memory, from `_byte_start(low)` on."""
        first, end = low >> GRANULE_SHIFT, _granules(high)
        with memoryview(self._bits) as view:
            taken = bytearray(view[first >> 3 : end + 7 >> 3])
        taken[0] &= 0xFF << (first & 7) & 0xFF
        taken[-1] &= 0xFF >> (-end & 7)
        return taken


def _byte_start(address: int) -> int:
    """Where the memory starts that has its bits in one byte with this address, counted alike."""
    return address >> GRANULE_SHIFT + 3 << GRANULE_SHIFT + 3


def _granules(size: int) -> int:
    """How many granules hold so many bytes."""
    return -(-size >> GRANULE_SHIFT)


def _set_bits(bits: bytearray, start: int, end: int) -> None:
    """Set the bits from `start` to before `end`."""
    first, last = start >> 3, (end - 1) >> 3
    head, tail = 0xFF << (start & 7) & 0xFF, 0xFF >> (-end & 7)
    if first == last:
        bits[first] |= head & tail
        return
    bits[first] |= head
    bits[first + 1 : last] = b"\xff" * (last - first - 1)
    bits[last] |= tail


def _clear_bits(bits: bytearray, start: int, end: int) -> None:
    """Clear the bits from `start` to before `end`."""
    first, last = start >> 3, (end - 1) >> 3
    head, tail = 0xFF << (start & 7) & 0xFF, 0xFF >> (-end & 7)
    if first == last:
        bits[first] &= ~(head & tail)
        return
    bits[first] &= ~head
    bits[first + 1 : last] = bytes(last - first - 1)
    bits[last] &= ~tail


_OR_PAIRS = bytes(sum(1 << pair for pair in range(4) if byte >> 2 * pair & 3) for byte in range(256))
_OR_PAIRS_HIGH = bytes(nibble << 4 for nibble in _OR_PAIRS)


def _halve(bits: bytes) -> bytes:
    """A bitmap of twice the page size: each bit is the OR of two. The length is a multiple of two bytes."""
    low, high = bits[::2].translate(_OR_PAIRS), bits[1::2].translate(_OR_PAIRS_HIGH)
    return (int.from_bytes(low, "little") | int.from_bytes(high, "little")).to_bytes(len(low), "little")


_LOW_TWICE = bytes(sum(3 << 2 * bit for bit in range(4) if byte >> bit & 1) for byte in range(256))
_HIGH_TWICE = bytes(_LOW_TWICE[byte >> 4] for byte in range(256))


def _double(bits: bytes) -> bytes:
    """A bitmap of half the page size: each bit is there twice."""
    twice = bytearray(2 * len(bits))
    twice[::2], twice[1::2] = bits.translate(_LOW_TWICE), bits.translate(_HIGH_TWICE)
    return bytes(twice)


_FEW_PAGES = 9
"""From pages of 2**9 granules on, looking at each page's bytes is faster than halving again and again."""


def _report(bitmap: bytearray, bits: bytearray, offset: int, length: int, page_size: int) -> None:
    """Add granules to the bitmap of a range of `length` bytes: `bits` are of those from `offset` bytes into it on.

    It may begin before the range. A granule across the border of two pages makes both of them dirty.
    """
    shift = page_size.bit_length() - 1 - GRANULE_SHIFT
    if not shift and offset >= 0 and not offset % (8 * GRANULE):
        at = offset >> GRANULE_SHIFT + 3
        bitmap[at : at + len(bits)] = bits
        return
    pages = -(-length // page_size)
    step = max(_BLOCK >> max(-shift, 0), 1)  # of smaller pages there are more
    unit = GRANULE_SHIFT + min(shift, 0)
    places = (0, 1) if offset & (1 << unit) - 1 else (0,)
    view = memoryview(bits)
    for start in range(0, len(bits), _BLOCK):
        block = bytes(view[start : start + _BLOCK])
        if block == _CLEAN[: len(block)]:
            continue
        for at in range(0, len(block), step):
            first = offset + (start + at) * 8 * GRANULE >> unit
            for place in places:
                _fold(bitmap, block[at : at + step], first + place, shift, pages)


def _fold(bitmap: bytearray, block: bytes, first: int, shift: int, pages: int) -> None:
    """OR a block of granules into pages of 2**shift granules, of which there are so many.

    The first granule is number `first` of the range; with a negative `shift`, it begins with page `first`. The one that
    is usual, 0, is kept short: a report of a part of the log costs a shift more than one of all of it.
    """
    if shift <= 0:
        for _ in range(-shift):
            block = _double(block)
        _or(bitmap, block, first, pages)
        return
    if shift >= _FEW_PAGES:
        _look_at_pages(bitmap, block, first, shift, pages)
        return
    number = int.from_bytes(block, "little") << (first & (1 << shift) - 1)
    wide = number.to_bytes(-(-number.bit_length() >> shift + 3) << shift, "little")
    for _ in range(shift):
        wide = _halve(wide)
    _or(bitmap, wide, first >> shift, pages)


def _look_at_pages(bitmap: bytearray, block: bytes, first: int, shift: int, pages: int) -> None:
    if first & 7:
        number = int.from_bytes(block, "little") << (first & 7)
        block, first = number.to_bytes(len(block) + 1, "little"), first & ~7
    step, page = 1 << shift - 3, first >> shift
    begin = -((first >> 3) % step)  # where that page starts, at or before the block
    end = min(len(block), begin + (pages - page) * step)
    for start in range(begin + max(-page, 0) * step, end, step):
        piece = block[max(start, 0) : start + step]
        if piece != _CLEAN[: len(piece)]:
            page = first + start * 8 >> shift
            bitmap[page >> 3] |= _BITS[page & 7]


def _or(bitmap: bytearray, bits: bytes, page: int, pages: int) -> None:
    """Add bits to a bitmap from page `page` on, without those before its first page or behind its last."""
    number = int.from_bytes(bits, "little")
    if page < 0:
        number, page = number >> -page, 0
    if page + number.bit_length() > pages:
        number &= (1 << max(pages - page, 0)) - 1
    if page & 7:
        number <<= page & 7
    at, end = page >> 3, (page >> 3) + (number.bit_length() + 7 >> 3)
    there = bitmap[at:end]
    if there != bytes(end - at):
        number |= int.from_bytes(there, "little")
    bitmap[at:end] = number.to_bytes(end - at, "little")
