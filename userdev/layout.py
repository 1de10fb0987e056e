"""A structure of a protocol: a named tuple for its fields and a `Layout` for its bytes."""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterator
from typing import Any, Generic, TypeVar

from userdev.errors import ProtocolError

R = TypeVar("R", bound=tuple[Any, ...])


class Layout(Generic[R]):
    """The bytes of one structure: fixed fields, then an optional tail.

    `order` is the byte order as `struct` has it, always without padding that the format does not name.
    """

    def __init__(self, record: type[R], format: str, order: str = "<") -> None:
        self.record = record
        self.struct = struct.Struct(order + format)
        self.size = self.struct.size
        self.name = record.__name__

    def pack(self, *values: int, tail: bytes = b"") -> bytes:
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

    def __repr__(self) -> str:
        return f"<Layout {self.name} {self.size} bytes>"
