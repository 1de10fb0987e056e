"""Which pages of client memory the device has written: marked by each write, read and cleared by the client.

One bit per 4 KiB granule of a DMA region, counted from its start. A report at another page size is made of the
granules: larger pages combine several, smaller ones repeat one (dialects.md 10.4).

A writer marks *after* it has written. A report in between takes no bit, and the mark is there for the next one; marked
before, the bit could be taken, the page be copied by the client, and only then be written.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from threading import Lock

from vfio_user.errors import ProtocolError

GRANULE_SHIFT = 12
GRANULE = 1 << GRANULE_SHIFT

_BLOCK_SHIFT = 18
_BLOCK = (1 << _BLOCK_SHIFT) // 8
"""Bytes of bits that are folded at a time: 1 GiB of memory. Most are clean, and skipped."""
_CLEAN = bytes(_BLOCK)
_BITS = tuple(1 << bit for bit in range(8))


def bitmap_size(length: int, page_size: int) -> int:
    """Bytes of a bitmap over `length` bytes: a bit a page, rounded up to whole 64-bit words."""
    pages = -(-length // page_size)
    return -(-pages // 64) * 8


def check_page_size(page_size: int) -> None:
    """Raises ProtocolError (EINVAL) unless it is a power of two."""
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
        if low >= high:
            return
        first, end = low >> GRANULE_SHIFT, _granules(high)
        bits = _from_bit(self._swap_out(low, high), first & 7, end - first)
        offset = self._start + (first << GRANULE_SHIFT) - address
        """Where the first granule is in the range; before its start, if that is inside of the granule."""
        shift = page_size.bit_length() - 1 - GRANULE_SHIFT
        if offset & (GRANULE - 1) or shift < 0:
            for granule in _ones(bits):
                start = offset + (granule << GRANULE_SHIFT)
                last = min(start + GRANULE, length) - 1
                _set_bits(bitmap, max(start, 0) // page_size, last // page_size + 1)
        elif shift or offset & 7 * GRANULE:
            for at in range(0, len(bits), _BLOCK):
                block = bytes(bits[at : at + _BLOCK])
                if block != _CLEAN[: len(block)]:
                    _fold(bitmap, block, (offset >> GRANULE_SHIFT) + at * 8, shift)
        else:
            at = offset >> GRANULE_SHIFT + 3
            bitmap[at : at + len(bits)] = bits

    def part(self, start: int, size: int) -> DirtyPages:
        """A log of its own for a part of the range, with the marks that it has."""
        part = DirtyPages(start, size)
        with self._lock:
            bits = bytes(self._bits)
        for granule in _ones(bits):
            low = max(self._start + (granule << GRANULE_SHIFT), start)
            high = min(self._start + (granule + 1 << GRANULE_SHIFT), start + size)
            part.mark(low, high - low)
        return part

    def _swap_out(self, low: int, high: int) -> bytes | bytearray:
        """The bytes with the bits of these bytes of memory. What of it is whole granules is cleared."""
        whole_first, whole_end = _granules(low), _granules(high) if high == self._size else high >> GRANULE_SHIFT
        with self._lock:
            if not low and high == self._size:
                bits, self._bits = self._bits, bytearray(len(self._bits))
                return bits
            taken = bytes(self._bits[low >> GRANULE_SHIFT + 3 : _granules(high) + 7 >> 3])
            if whole_first < whole_end:
                _clear_bits(self._bits, whole_first, whole_end)
            return taken


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


def _from_bit(bits: bytes | bytearray, start: int, count: int) -> bytes | bytearray:
    """`count` bits from bit `start` of the first byte on, with nothing beyond them."""
    if not start and not count & 7:
        return bits
    number = int.from_bytes(bits, "little") >> start & ((1 << count) - 1)
    return number.to_bytes(count + 7 >> 3, "little")


def _ones(bits: bytes | bytearray) -> Iterator[int]:
    """The numbers of the bits that are set."""
    for index, byte in enumerate(bits):
        if byte:
            for bit in range(8):
                if byte & _BITS[bit]:
                    yield index * 8 + bit


_OR_PAIRS = bytes(sum(1 << pair for pair in range(4) if byte >> 2 * pair & 3) for byte in range(256))
_OR_PAIRS_HIGH = bytes(nibble << 4 for nibble in _OR_PAIRS)


def _halve(bits: bytes) -> bytes:
    """A bitmap of twice the page size: each bit is the OR of two. The length is a multiple of two bytes."""
    low, high = bits[::2].translate(_OR_PAIRS), bits[1::2].translate(_OR_PAIRS_HIGH)
    return (int.from_bytes(low, "little") | int.from_bytes(high, "little")).to_bytes(len(low), "little")


_FEW_PAGES = 9
"""From pages of 2**9 granules on, looking at each page's bytes is faster than halving again and again."""


def _fold(bitmap: bytearray, block: bytes, offset: int, shift: int) -> None:
    """OR a block of granules, of which the first is number `offset` of the range, into pages of 2**shift granules."""
    if shift >= _FEW_PAGES and not offset & 7:
        step = 1 << shift - 3
        at = -(offset >> 3) % step - step  # where a page starts, at or before the block
        for start in range(at, len(block), step):
            piece = block[max(start, 0) : start + step]
            if piece != _CLEAN[: len(piece)]:
                page = offset + start * 8 >> shift
                bitmap[page >> 3] |= _BITS[page & 7]
        return
    number = int.from_bytes(block, "little") << (offset & (1 << shift) - 1)
    wide = number.to_bytes(-(-number.bit_length() >> shift + 3) << shift, "little")
    for _ in range(shift):
        wide = _halve(wide)
    page = offset >> shift
    number = int.from_bytes(wide, "little") << (page & 7)
    at, end = page >> 3, (page >> 3) + (number.bit_length() + 7 >> 3)
    bitmap[at:end] = (int.from_bytes(bitmap[at:end], "little") | number).to_bytes(end - at, "little")
