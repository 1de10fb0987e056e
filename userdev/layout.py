"""A structure of a protocol: a named tuple for its fields and a `Layout` for its bytes."""

from __future__ import annotations

import errno
import re
import struct
from collections.abc import Iterator
from typing import Any, Generic, TypeVar

from userdev.errors import ProtocolError

R = TypeVar("R", bound=tuple[Any, ...])
_CODES = re.compile(r"(\d*)([a-zA-Z])")


class Layout(Generic[R]):
    """The bytes of one structure: fixed fields, then an optional tail.

    `order` is the byte order as `struct` has it, always without padding that the format does not name.
    """

    def __init__(self, record: type[R], format: str, order: str = "<") -> None:
        self.record = record
        self.struct = struct.Struct(order + format)
        self.size = self.struct.size
        self.name = record.__name__

    def pack(self, *values: int, tail: bytes | bytearray = b"") -> bytes:
        """The bytes of the structure with these field values, in order, and its tail.

        Raises:
            struct.error: a value does not fit its field; values come from our own code.
        """
        return self.struct.pack(*values) + tail

    def unpack(self, payload: bytes | memoryview, offset: int = 0) -> R:
        """The fields at `offset` of `payload`; the tail is `payload[offset + self.size:]`.

        Raises:
            ProtocolError: (EINVAL) the payload is too short.
        """
        if len(payload) - offset < self.size:
            raise ProtocolError(
                f"{self.name} needs {self.size} bytes and has {max(0, len(payload) - offset)}", errno.EINVAL
            )
        return self.record(*self.struct.unpack_from(payload, offset))

    def unpack_all(self, payload: bytes | memoryview, offset: int = 0) -> Iterator[R]:
        """The structures that fill the rest of `payload`.

        Raises:
            ProtocolError: (EINVAL) the rest is not a whole number of them.
        """
        if (len(payload) - offset) % self.size:
            raise ProtocolError(f"{len(payload) - offset} bytes are no whole number of {self.name}", errno.EINVAL)
        for values in self.struct.iter_unpack(payload[offset:]):
            yield self.record(*values)

    def place_of(self, name: str) -> tuple[int, int] | None:
        """Offset and width, in bytes, of the field of this name; None where there is none."""
        place, fields = 0, iter(self.record._fields)  # type: ignore[attr-defined]
        for count, code in _CODES.findall(self.struct.format.lstrip("<=")):
            whole = struct.calcsize(f"<{count}{code}")
            for width in _widths(count, code, whole):
                if next(fields) == name:
                    return place, width
                place += width
            place += whole if code == "x" else 0
        return None

    def __repr__(self) -> str:
        return f"<Layout {self.name} {self.size} bytes>"


def _widths(count: str, code: str, whole: int) -> list[int]:
    """The widths of the fields that a part of a format is: one of bytes, none of padding, else as many as it says."""
    if code == "x":
        return []
    return [whole] if code == "s" else [struct.calcsize("<" + code)] * int(count or 1)
