"""Which pages of client memory the device has written: marked by each write, read and cleared by the client.

One bit per granule of a DMA region, counted from its start. Granules are the pages that the client has asked for when
it started the log, from 4 KiB to 2 MiB, so that a report in these pages is the bits as they are. One at another page
size is made of the granules: larger pages combine several, smaller ones repeat one (docs/protocol.md 10.4).

A writer marks *after* it has written. A report in between takes no bit, and the mark is there for the next one; marked
before, the bit could be taken, the page be copied by the client, and only then be written.

A mark is an offset at the end of a list, which takes no lock (one waits for all stores before it, as long as the rest
of a mark takes), and whose granule is not asked for yet; bits are made of many marks at once, under the lock.
"""

from __future__ import annotations

import errno
from binascii import unhexlify
from struct import iter_unpack
from threading import Lock

from userdev.errors import ProtocolError
from userdev.memory.bitmap import bitmap_size

GRANULE = 4096
"""Bytes of the smallest granules: no host's pages are smaller."""
LARGEST_GRANULE = 2 << 20
"""Of larger pages 1 TiB has 64 KiB of bits at most: what is reported in smaller pages need not suffer for it."""

RECENT = 64
"""Marks that wait to become bits, at most: a report finds them too, and they are to cost it less than its bits do."""

MAX_LOGGED = 16 << 40
"""Bytes of client memory in all logs of a device, at most: the bits of 16 TiB take 512 MiB, twice that while reported.
A guest of 1 TiB takes 32 MiB. Without a bound a few messages that map nothing would take all memory there is."""

_BLOCK = 32 << 10
"""Bytes of bits that are folded at a time: 1 GiB of memory in granules of 4 KiB. Most are clean, and skipped."""
_CLEAN = bytes(_BLOCK)
_BITS = tuple(1 << bit for bit in range(8))
_WORD = 8
"""Bytes: what a bitmap's length is a multiple of."""


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

    __slots__ = ("_bits", "_granule", "_inside", "_lock", "_recent", "_shift", "_size", "_start")

    def __init__(self, start: int, size: int, page_size: int = GRANULE) -> None:
        """A log without marks, in granules of `page_size` bytes, or as near as there are."""
        self._start = start
        self._size = size
        self._shift = min(max(page_size, GRANULE), LARGEST_GRANULE).bit_length() - 1
        self._granule = 1 << self._shift
        self._inside = self._granule - 1  # the bits of an offset in one
        self._bits = bytearray(self._granules(size) + 7 >> 3)
        self._recent: list[int] = []
        self._lock = Lock()

    def mark(self, address: int, count: int) -> None:
        """Mark what a write of `count` bytes at `address` has touched. From any thread, after the bytes are written."""
        if count <= 0:
            return
        offset = address - self._start
        if (offset & self._inside) + count <= self._granule:
            recent = self._recent
            recent.append(offset)
            if len(recent) >= RECENT:
                with self._lock:
                    self._settle()
        else:
            first, last = offset >> self._shift, offset + count - 1 >> self._shift
            with self._lock:
                _set_bits(self._bits, first, last + 1)

    def mark_within(self, address: int, count: int) -> None:
        """Mark what of these bytes is in the range."""
        start, end = max(address, self._start), min(address + count, self._start + self._size)
        self.mark(start, end - start)

    def take(self, address: int, length: int, page_size: int) -> bytearray:
        """The bitmap of a range, which is the caller's; see `take_into`. Of all in its own pages it is no copy."""
        if (address, length, page_size) == (self._start, self._size, 1 << self._shift):
            bits = self._swap_out(0, length)
            bits += bytes(-len(bits) % _WORD)
            return bits
        bitmap = bytearray(bitmap_size(length, page_size))
        self.take_into(bitmap, address, length, page_size)
        return bitmap

    def take_into(self, bitmap: bytearray, address: int, length: int, page_size: int) -> None:
        """Add what is dirty here to the bitmap of a range, in which bit i is the page at `address + i * page_size`.

        What is reported is clean afterwards, but for a granule that the range covers in part: what is dirty in it may
        lie outside, so that it is reported again.
        """
        low, high = max(address - self._start, 0), min(address + length - self._start, self._size)
        if low < high:
            bits = self._swap_out(low, high)
            _report(bitmap, bits, self._shift, self._start + self._byte_start(low) - address, length, page_size)

    def part(self, start: int, size: int) -> DirtyPages:
        """A log of its own for a part of the range, with the marks that it has."""
        part = DirtyPages(start, size, 1 << self._shift)
        self.copy_to(part)
        return part

    def copy_to(self, part: DirtyPages) -> None:
        """Mark in the log of a part, in the same granules, what is marked of it here."""
        start, size = part._start, part._size
        low, high = start - self._start, start + size - self._start
        with self._lock:
            self._settle()
            bits = self._copy(low, high)
        with part._lock:
            part._settle()
            _report(part._bits, bits, self._shift, self._start + self._byte_start(low) - start, size, 1 << self._shift)

    def _settle(self) -> None:
        """Make bits of the marks that are there. Under the lock: others go on appending, and nobody else takes away."""
        recent, bits, shift = self._recent, self._bits, self._shift
        count = len(recent)
        for offset in recent[:count]:
            granule = offset >> shift
            bits[granule >> 3] |= _BITS[granule & 7]
        del recent[:count]

    def _swap_out(self, low: int, high: int) -> bytearray:
        """The bits of these bytes of memory. What of it is whole granules is cleared."""
        whole_first = self._granules(low)
        whole_end = self._granules(high) if high == self._size else high >> self._shift
        with self._lock:
            self._settle()
            if not low and high == self._size:
                bits, self._bits = self._bits, bytearray(len(self._bits))
                return bits
            taken = self._copy(low, high)
            if whole_first < whole_end:
                _clear_bits(self._bits, whole_first, whole_end)
        return taken

    def _copy(self, low: int, high: int) -> bytearray:
        """The bits of the granules that have these bytes of memory, from `_byte_start(low)` on."""
        first, end = low >> self._shift, self._granules(high)
        with memoryview(self._bits) as view:
            taken = bytearray(view[first >> 3 : end + 7 >> 3])
        taken[0] &= 0xFF << (first & 7) & 0xFF
        taken[-1] &= 0xFF >> (-end & 7)
        return taken

    def _byte_start(self, address: int) -> int:
        """Where the memory starts that has its bits in one byte with this address, counted alike."""
        return address >> self._shift + 3 << self._shift + 3

    def _granules(self, size: int) -> int:
        """How many granules hold so many bytes."""
        return -(-size >> self._shift)


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


_OR_PAIRS = b"".join(b"%x" % sum(1 << pair for pair in range(4) if byte >> 2 * pair & 3) for byte in range(256))
_SWAPPED = bytes(byte >> 4 | byte << 4 & 0xF0 for byte in range(256))
_OR_PAIRS_SWAPPED = _SWAPPED.translate(_OR_PAIRS)


def _combine(bits: bytearray, shift: int) -> bytearray:
    """A bitmap of pages that are 2**shift times as large: each bit is the OR of so many.

    The length is a multiple of 2**shift bytes. A byte becomes a digit of half its bits, and two digits a byte,
    the first in its upper half.
    """
    pairs = _OR_PAIRS
    for _ in range(shift):
        bits, pairs = bytearray(unhexlify(bits.translate(pairs))), _OR_PAIRS_SWAPPED
    return bits.translate(_SWAPPED)


_LOW_TWICE = bytes(sum(3 << 2 * bit for bit in range(4) if byte >> bit & 1) for byte in range(256))
_HIGH_TWICE = bytes(_LOW_TWICE[byte >> 4] for byte in range(256))


def _double(bits: bytearray) -> bytearray:
    """A bitmap of half the page size: each bit is there twice."""
    twice = bytearray(2 * len(bits))
    twice[::2], twice[1::2] = bits.translate(_LOW_TWICE), bits.translate(_HIGH_TWICE)
    return twice


_ONE_BY_ONE = 9
"""From pages of 2**9 granules on, looking at each page's bytes is faster than halving again and again."""
_OF_A_BLOCK = (8 * _BLOCK).bit_length() - 1
"""Pages of 2**18 granules: larger ones are made of these."""


def _report(bitmap: bytearray, bits: bytearray, granule: int, offset: int, length: int, page_size: int) -> None:
    """Add granules of 2**granule bytes to the bitmap of a range of `length` bytes: those from `offset` into it on.

    They may begin before the range. A granule across the border of two pages makes both of them dirty.
    """
    shift = page_size.bit_length() - 1 - granule
    if not shift and offset >= 0 and not offset % (8 << granule):
        at = offset >> granule + 3
        bitmap[at : at + len(bits)] = bits
        return
    if shift > _OF_A_BLOCK:
        between = granule + _OF_A_BLOCK
        start = offset >> between + 3 << between + 3
        size = offset - start + (len(bits) + 1 << granule + 3)
        smaller = bytearray(bitmap_size(size, 1 << between))
        _report(smaller, bits, granule, offset - start, size, 1 << between)
        _report(bitmap, smaller, between, start, length, page_size)
        return
    pages = -(-length // page_size)
    step = max(_BLOCK >> max(-shift, 0), 1)  # of smaller pages there are more
    unit = granule + min(shift, 0)
    places = (0, 1) if offset & (1 << unit) - 1 else (0,)
    view = memoryview(bits)
    for start in range(0, len(bits), _BLOCK):
        block = bytearray(view[start : start + _BLOCK])
        if _CLEAN.startswith(block):
            continue
        for at in range(0, len(block), step):
            first = offset + (start + at << granule + 3) >> unit
            for place in places:
                _fold(bitmap, block[at : at + step], first + place, shift, pages)


def _fold(bitmap: bytearray, block: bytearray, first: int, shift: int, pages: int) -> None:
    """OR a block of granules into pages of 2**shift granules, of which there are so many.

    The first granule is number `first` of the range; with a negative `shift`, it begins with page `first`.
    """
    if shift <= 0:
        for _ in range(-shift):
            block = _double(block)
        _or(bitmap, block, first, pages)
        return
    page = first >> shift
    if within := first & (1 << shift) - 1:  # the first granule is not the first of its page
        block = bytearray(within >> 3) + (_later(block, within & 7) if within & 7 else block)
    if shift >= _ONE_BY_ONE:
        size = 1 << shift - 3
        clean = bytes(size)
        block += bytes(-len(block) & size - 1)
        block, shift = bytearray([piece != clean for (piece,) in iter_unpack(f"{size}s", block)]), 3
    block += bytes(-len(block) & (1 << shift) - 1)
    _or(bitmap, _combine(block, shift), page, pages)


def _later(block: bytearray, bits: int) -> bytearray:
    """A block that begins so many bits later, fewer than 8."""
    return bytearray((int.from_bytes(block, "little") << bits).to_bytes(len(block) + 1, "little"))


def _or(bitmap: bytearray, bits: bytearray, page: int, pages: int) -> None:
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
