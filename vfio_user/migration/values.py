"""Values to bytes and back: a tag, a length where one is needed, and the value.

Lengths are LEB128, seven bits a byte, lowest first; integers are as long as they need to be, in two's complement. The
decoder takes nothing on trust: no length beyond the input, no unknown tag, no nesting deeper than `MAX_DEPTH`, no byte
left over.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable, Mapping
from typing import Any

from vfio_user.errors import ProtocolError

MAX_DEPTH = 32
_FLOAT = struct.Struct("<d")
_LENGTH_BITS = 63


def encode(value: Any) -> bytes:
    """The bytes of a value.

    Raises:
        TypeError: neither None, bool, int, float, str, bytes, nor a list, tuple or mapping of them.
    """
    out = bytearray()
    _encode(value, out, 0)
    return bytes(out)


def decode(data: bytes | bytearray | memoryview) -> Any:
    """The value of these bytes, all of them.

    Raises:
        ProtocolError: (EINVAL) they are no encoded value.
    """
    reader = _Reader(memoryview(data))
    value = reader.value(0)
    if reader.at != len(reader.data):
        raise _malformed(f"{len(reader.data) - reader.at} bytes behind the value")
    return value


def _malformed(what: str) -> ProtocolError:
    return ProtocolError(f"saved values: {what}", errno.EINVAL)


def _encode(value: Any, out: bytearray, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise TypeError(f"values nested deeper than {MAX_DEPTH}")
    match value:
        case None:
            out += b"n"
        case bool():
            out += b"T" if value else b"F"
        case int():
            _encode_bytes(b"i", value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True), out)
        case float():
            out += b"f" + _FLOAT.pack(value)
        case str():
            _encode_bytes(b"s", value.encode("utf-8", "surrogatepass"), out)
        case bytes() | bytearray() | memoryview():
            _encode_bytes(b"b", bytes(value), out)
        case list() | tuple():
            out += b"l" if isinstance(value, list) else b"t"
            _encode_length(len(value), out)
            for item in value:
                _encode(item, out, depth + 1)
        case Mapping():
            out += b"d"
            _encode_length(len(value), out)
            for key, item in value.items():
                _encode(key, out, depth + 1)
                _encode(item, out, depth + 1)
        case _:
            raise TypeError(f"{type(value).__name__} cannot be saved; use numbers, text, bytes, lists and dicts")


def _encode_length(number: int, out: bytearray) -> None:
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)


def _encode_bytes(tag: bytes, data: bytes, out: bytearray) -> None:
    out += tag
    _encode_length(len(data), out)
    out += data


class _Reader:
    def __init__(self, data: memoryview) -> None:
        self.data = data
        self.at = 0

    def value(self, depth: int) -> Any:
        if depth > MAX_DEPTH:
            raise _malformed(f"nested deeper than {MAX_DEPTH}")
        tag = self.take(1)[0]
        read = _DECODERS.get(tag)
        if read is None:
            raise _malformed(f"tag {tag:#x}")
        return read(self, depth)

    def take(self, count: int) -> memoryview:
        end = self.at + count
        if end > len(self.data):
            raise _malformed(f"they end {end - len(self.data)} bytes early")
        piece = self.data[self.at : end]
        self.at = end
        return piece

    def length(self) -> int:
        number = 0
        for shift in range(0, _LENGTH_BITS, 7):
            byte = self.take(1)[0]
            number |= (byte & 0x7F) << shift
            if byte < 0x80:
                return number
        raise _malformed("a length without end")

    def count(self) -> int:
        """How many items follow: each has a byte at least."""
        count = self.length()
        if count > len(self.data) - self.at:
            raise _malformed(f"{count} items in {len(self.data) - self.at} bytes")
        return count

    def integer(self, depth: int) -> int:
        return int.from_bytes(self.take(self.length()), "little", signed=True)

    def octets(self, depth: int) -> bytes:
        return bytes(self.take(self.length()))

    def floating(self, depth: int) -> float:
        (number,) = _FLOAT.unpack(self.take(_FLOAT.size))
        return float(number)

    def text(self, depth: int) -> str:
        try:
            return str(self.take(self.length()), "utf-8", "surrogatepass")
        except UnicodeDecodeError as error:
            raise _malformed(f"text that is not UTF-8: {error}") from error

    def items(self, depth: int) -> list[Any]:
        return [self.value(depth + 1) for _ in range(self.count())]

    def mapping(self, depth: int) -> dict[Any, Any]:
        found: dict[Any, Any] = {}
        for _ in range(self.count()):
            key = self.value(depth + 1)
            if not _is_hashable(key) or key in found:
                raise _malformed(f"the key {key!r}, which no dict has, or has once")
            found[key] = self.value(depth + 1)
        return found


def _is_hashable(value: Any) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True


_DECODERS: dict[int, Callable[[_Reader, int], Any]] = {
    ord("n"): lambda reader, depth: None,
    ord("T"): lambda reader, depth: True,
    ord("F"): lambda reader, depth: False,
    ord("i"): _Reader.integer,
    ord("f"): _Reader.floating,
    ord("s"): _Reader.text,
    ord("b"): _Reader.octets,
    ord("l"): _Reader.items,
    ord("t"): lambda reader, depth: tuple(reader.items(depth)),
    ord("d"): _Reader.mapping,
}
