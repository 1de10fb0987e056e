"""The MSI-X table and the pending bits, as a client reads and writes them in their BAR.

QEMU emulates the table and never forwards an access to it: then what is here stays as after reset, every vector masked,
and means nothing. So masks count only from the first write on.
"""

from __future__ import annotations

from collections.abc import Callable

ENTRY = 16
ENTRY_MASK = b"\xfc\xff\xff\xff" + b"\xff" * 8 + b"\x01\x00\x00\x00"
ENTRY_AFTER_RESET = bytes(12) + b"\x01\x00\x00\x00"


def pba_size(vectors: int) -> int:
    """Bytes of the pending bits: whole words of 64."""
    return -(-vectors // 64) * 8


class MsiXTable:
    """`vectors` entries: message address (8), message data (4), vector control (4), of which bit 0 masks."""

    def __init__(self, vectors: int, changed: Callable[[], None]) -> None:
        self._vectors = vectors
        self._changed = changed
        self.reset()

    def reset(self) -> None:
        """Make every entry as after reset: masked, the rest 0 (PCI 3.0, 6.8.2.9)."""
        self.entries = bytearray(ENTRY_AFTER_RESET * self._vectors)
        self.used = False
        """The client has written to it, so that its mask bits count."""

    def masked(self, vector: int) -> bool:
        """Whether the client has masked a vector, as far as its writes to the table come here."""
        return self.used and bool(self.entries[vector * ENTRY + 12] & 1)

    def read(self, offset: int, count: int) -> bytes:
        """The `count` bytes at `offset`."""
        return bytes(self.entries[offset : offset + count])

    def write(self, offset: int, data: bytes) -> None:
        """Write bytes, but for bits that are read-only, and look again at what is pending."""
        self.entries[offset : offset + len(data)] = bytes(
            byte & ENTRY_MASK[(offset + place) % ENTRY] for place, byte in enumerate(data)
        )
        self.used = True
        self._changed()


class PendingBits:
    """One bit a vector, read-only."""

    def __init__(self, size: int, pending: Callable[[], int]) -> None:
        self._size = size
        self._pending = pending

    def read(self, offset: int, count: int) -> bytes:
        """The `count` bytes at `offset`, as things are now."""
        return self._pending().to_bytes(self._size, "little")[offset : offset + count]

    def write(self, offset: int, data: bytes) -> None:
        """Read-only."""
