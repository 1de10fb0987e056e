"""Guest memory as far as a trace knows it: what the device read, and what it writes now."""

from __future__ import annotations

from collections.abc import Iterator

PAGE = 4096


class SparseMemory:
    """Zeros everywhere but where something was written."""

    def __init__(self) -> None:
        self._pages: dict[int, bytearray] = {}

    def read(self, address: int, size: int) -> bytes:
        """The `size` bytes at an address; what was never written is zeros."""
        pieces = []
        for page, start, length in _pieces(address, size):
            known = self._pages.get(page)
            pieces.append(bytes(known[start : start + length]) if known is not None else bytes(length))
        return b"".join(pieces)

    def write(self, address: int, data: bytes) -> None:
        """Replace the bytes at an address; only pages that are written take memory."""
        done = 0
        for page, start, length in _pieces(address, len(data)):
            self._pages.setdefault(page, bytearray(PAGE))[start : start + length] = data[done : done + length]
            done += length


def _pieces(address: int, size: int) -> Iterator[tuple[int, int, int]]:
    """(page, offset in it, bytes) of each page that a range touches."""
    end = address + size
    while address < end:
        length = min(end - address, PAGE - address % PAGE)
        yield address // PAGE, address % PAGE, length
        address += length
