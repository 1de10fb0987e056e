"""A function's configuration space: bytes, what of them software may write, and who wants to know."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

CONVENTIONAL_SIZE = 256
EXPRESS_SIZE = 4096
CAPABILITY_POINTER = 0x34
FIRST_CAPABILITY = 0x40
FIRST_EXTENDED = 0x100


def check_bits(owner: object, bits: Mapping[str, int]) -> None:
    """Compare numbers of a description, by name, with the bits of their places.

    Raises:
        TypeError: one is no number.
        ValueError: it has more.
    """
    for name, width in bits.items():
        number = getattr(owner, name)
        if not isinstance(number, int):
            raise TypeError(f"{name} is {number!r}: it has to be an int of {width} bits, such as 0x10")
        if not 0 <= number < 1 << width:
            raise ValueError(f"{name} has {width} bits, and {number:#x} does not fit")


Watcher = Callable[[int, int], None]
"""Told the old and the new value of the register that it watches, after a write."""


class Field(NamedTuple):
    """One register: where, how wide, its value after reset, and which bits software may change."""

    offset: int
    size: int
    value: int = 0
    writable: int = 0
    """Bits that take what is written."""
    rw1c: int = 0
    """Bits that a written 1 clears and a written 0 leaves."""


class ConfigSpace:
    """Configuration space of `size` bytes, little-endian, read-only and zero until `define` says otherwise.

    Writes follow PCI's rules: read-only bits ignore what is written to them, RW1C bits are cleared by ones. An access
    may have any width and alignment; each register sees its own bytes of it.
    """

    def __init__(self, size: int = CONVENTIONAL_SIZE) -> None:
        self.data = bytearray(size)
        self._after_reset = bytearray(size)
        self._writable = bytearray(size)
        self._rw1c = bytearray(size)
        self._watchers: list[tuple[int, int, Watcher]] = []

    def __len__(self) -> int:
        return len(self.data)

    def define(self, base: int, fields: Iterable[Field]) -> None:
        """Lay out registers; their offsets count from `base`."""
        for field in fields:
            where = slice(base + field.offset, base + field.offset + field.size)
            for store, bits in (
                (self.data, field.value),
                (self._after_reset, field.value),
                (self._writable, field.writable),
                (self._rw1c, field.rw1c),
            ):
                store[where] = bits.to_bytes(field.size, "little")

    def watch(self, offset: int, size: int, watcher: Watcher) -> None:
        """Call `watcher(old, new)` after each write that touches any of these bytes, changed or not."""
        self._watchers.append((offset, size, watcher))

    def get(self, offset: int, size: int) -> int:
        """The little-endian number of `size` bytes at `offset`."""
        return int.from_bytes(self.data[offset : offset + size], "little")

    def set(self, offset: int, size: int, value: int) -> None:
        """The device's own store: no masks, no watchers.

        It lasts until a reset, and migration leaves bits behind that software cannot write: what they come from belongs
        into state, and `on_load` or `on_config_read` sets them again.
        """
        self.data[offset : offset + size] = value.to_bytes(size, "little")

    def find_capability(self, id: int, *, extended: bool = False, after: int = 0) -> int | None:
        """Find a capability as software does; None where there is none.

        `after`: the offset of one that was found, to find the next of its id.
        """
        places = list(self._chain(extended=extended))
        if after in places:
            places = places[places.index(after) + 1 :]
        return next((place for place in places if self.get(place, 2 if extended else 1) == id), None)

    def _chain(self, *, extended: bool) -> Iterator[int]:
        """The offsets of the capabilities."""
        place = FIRST_EXTENDED if extended and self.get(FIRST_EXTENDED, 4) else 0
        if not extended:
            place = self.get(CAPABILITY_POINTER, 1)
        seen: set[int] = set()
        while place and place not in seen:
            seen.add(place)
            yield place
            place = self.get(place, 4) >> 20 if extended else self.get(place + 1, 1)

    def read(self, offset: int, count: int) -> bytes:
        """Read `count` bytes from `offset` on, as software does."""
        return bytes(self.data[offset : offset + count])

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """A write by software: masks apply, then the watchers of what was touched are called in order of `watch`."""
        count = len(data)
        end = offset + count
        touched = [
            (start, size, watcher, self.get(start, size))
            for start, size, watcher in self._watchers
            if start < end and offset < start + size
        ]
        written = int.from_bytes(data, "little")
        writable = int.from_bytes(self._writable[offset:end], "little")
        rw1c = int.from_bytes(self._rw1c[offset:end], "little")
        value = (self.get(offset, count) & ~writable) | (written & writable)
        self.set(offset, count, value & ~(written & rw1c))
        for start, size, watcher, old in touched:
            watcher(old, self.get(start, size))

    def reset(self) -> None:
        """Back to the values of `define`; watchers are not called."""
        self.data[:] = self._after_reset

    def take_as_after_reset(self) -> None:
        """Resets bring back what is there now."""
        self._after_reset[:] = self.data

    def after_reset(self, offset: int, count: int) -> bytes:
        """The values of these bytes after a reset."""
        return bytes(self._after_reset[offset : offset + count])

    def save(self) -> bytes:
        """The bits that software or status can have changed; everything else is zero."""
        kept = int.from_bytes(self.data, "little") & self._variable()
        return kept.to_bytes(len(self.data), "little")

    def load(self, saved: bytes) -> None:
        """Take the variable bits of `saved`, as `save` gave them; watchers are not called."""
        variable = self._variable()
        value = (int.from_bytes(self.data, "little") & ~variable) | (int.from_bytes(saved, "little") & variable)
        self.data[:] = value.to_bytes(len(self.data), "little")

    def _variable(self) -> int:
        return int.from_bytes(self._writable, "little") | int.from_bytes(self._rw1c, "little")
