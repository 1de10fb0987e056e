"""Values to bytes and back: a tag, a length where one is needed, and the value.

Lengths are LEB128, seven bits a byte, lowest first; integers are as long as they need to be, in two's complement. The
decoder takes nothing on trust: no length beyond the input, no unknown tag, no byte left over, and nothing beyond the
bounds below. The encoder keeps to the same bounds: whose state is too large hears of it at the source.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable, Mapping
from types import NoneType
from typing import Any

from userdev.errors import ProtocolError

MAX_DEPTH = 32
"""How deep lists and dicts may be nested."""
MAX_SIZE = 64 << 20
"""Bytes of one encoded value. What is larger belongs into memory, which is sent in pieces."""
MAX_ITEMS = 1 << 20
"""Items of all lists and dicts of one value: an empty one takes 2 bytes here, and 60 as an object. A second's work."""
MAX_BITS = 1 << 13
"""Of an integer. Python refuses to write larger ones in digits, see sys.int_info."""
MAX_KEY_BITS = 64
"""Of an integer that is a key: multiples of 2**61 - 1 all have one hash, and a dict of them takes quadratic time."""
MAX_TUPLE_KEYS = 1 << 14
"""Keys that are tuples, in all dicts of one value: their hashes can be made equal as well."""
_FLOAT = struct.Struct("<d")
_LENGTH_BITS = 63


def encode(value: Any) -> bytes:
    """The bytes of a value.

    Raises:
        TypeError: neither None, bool, int, float, str, bytes, nor a list, tuple or mapping of them; or too large.
    """
    writer = _Writer()
    writer.value(value, 0)
    if len(writer.out) > MAX_SIZE:
        raise _too_large()
    return bytes(writer.out)


def decode(data: bytes | bytearray | memoryview) -> Any:
    """The value of these bytes, all of them.

    Raises:
        ProtocolError: (EINVAL) they are no encoded value.
    """
    if len(data) > MAX_SIZE:
        raise _malformed(f"{len(data)} bytes, more than {MAX_SIZE}")
    reader = _Reader(memoryview(data))
    value = reader.value(0)
    if reader.at != len(reader.data):
        raise _malformed(f"{len(reader.data) - reader.at} bytes behind the value")
    return value


def _malformed(what: str) -> ProtocolError:
    return ProtocolError(f"saved values: {what}", errno.EINVAL)


def shown(value: object, limit: int = 40) -> str:
    """A value in a message: of any size, in so many characters."""
    try:
        text = repr(value)
    except ValueError:  # an int of thousands of digits
        return f"a huge {type(value).__name__}"
    return shortened(text, limit)


def shortened(text: str, limit: int = 40) -> str:
    """A text of at most about `limit` characters, for an error."""
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


class _Writer:
    """Encodes by a table of exact types: a `match`, and a call for each bound, took a third longer."""

    def __init__(self) -> None:
        self.out = bytearray()
        self._items = 0
        self._tuple_keys = 0

    def value(self, value: Any, depth: int) -> None:
        _ENCODERS.get(type(value), _Writer.other)(self, value, depth)

    def other(self, value: Any, depth: int) -> None:
        """Of a type that is derived from one that can be encoded."""
        write = next((write for kind, write in _BY_KIND if isinstance(value, kind)), None)
        if write is None:
            raise TypeError(f"{type(value).__name__} cannot be saved; use numbers, text, bytes, lists and dicts")
        write(self, value, depth)

    def nothing(self, value: None, depth: int) -> None:
        self.out += b"n"

    def flag(self, value: bool, depth: int) -> None:
        self.out += b"T" if value else b"F"

    def integer(self, value: int, depth: int) -> None:
        if 0 <= value < len(_SMALL):
            self.out += _SMALL[value]
            return
        bits = value.bit_length()
        if bits > MAX_BITS:
            raise TypeError(f"an int of {bits} bits, and it may have {MAX_BITS}")
        size = bits // 8 + 1
        data = value.to_bytes(size, "little", signed=True)
        if size < len(_INTEGER_HEADS):
            self.out += _INTEGER_HEADS[size] + data
        else:
            self._octets(b"i", data)

    def floating(self, value: float, depth: int) -> None:
        self.out += b"f" + _FLOAT.pack(value)

    def text(self, value: str, depth: int) -> None:
        self._octets(b"s", value.encode("utf-8", "surrogatepass"))

    def octets(self, value: bytes | bytearray | memoryview, depth: int) -> None:
        self._octets(b"b", bytes(value))

    def items(self, value: list[Any] | tuple[Any, ...], depth: int) -> None:
        self._begin(b"l" if isinstance(value, list) else b"t", len(value), 1, depth)
        depth += 1
        for item in value:
            _ENCODERS.get(type(item), _Writer.other)(self, item, depth)

    def mapping(self, value: Mapping[Any, Any], depth: int) -> None:
        self._begin(b"d", len(value), 2, depth)
        depth += 1
        for key, item in value.items():
            if type(key) is not str:
                self._check_key(key)
            _ENCODERS.get(type(key), _Writer.other)(self, key, depth)
            _ENCODERS.get(type(item), _Writer.other)(self, item, depth)

    def _check_key(self, key: Any) -> None:
        if isinstance(key, int) and key.bit_length() > MAX_KEY_BITS:
            raise TypeError(f"an int of {key.bit_length()} bits as a key, and it may have {MAX_KEY_BITS}")
        if isinstance(key, tuple):
            self._tuple_keys += 1
            if self._tuple_keys > MAX_TUPLE_KEYS:
                raise TypeError(f"dicts with more than {MAX_TUPLE_KEYS} tuples as keys")

    def _begin(self, tag: bytes, count: int, each: int, depth: int) -> None:
        if count and depth >= MAX_DEPTH:
            raise TypeError(f"values nested deeper than {MAX_DEPTH}")
        self.out += tag
        self._length(count)
        self._items += count * each
        if self._items > MAX_ITEMS:
            raise TypeError(f"lists and dicts with more than {MAX_ITEMS} items; memory() holds more")

    def _octets(self, tag: bytes, data: bytes) -> None:
        out, size = self.out, len(data)
        if len(out) + size > MAX_SIZE:
            raise _too_large()
        out += tag
        if size < 0x80:
            out.append(size)
        else:
            self._length(size)
        out += data

    def _length(self, number: int) -> None:
        while number > 0x7F:
            self.out.append(number & 0x7F | 0x80)
            number >>= 7
        self.out.append(number)


def _too_large() -> TypeError:
    return TypeError(f"more than {MAX_SIZE} bytes; memory() holds more")


_ENCODERS: dict[type, Callable[[_Writer, Any, int], None]] = {
    NoneType: _Writer.nothing,
    bool: _Writer.flag,
    int: _Writer.integer,
    float: _Writer.floating,
    str: _Writer.text,
    bytes: _Writer.octets,
    bytearray: _Writer.octets,
    memoryview: _Writer.octets,
    list: _Writer.items,
    tuple: _Writer.items,
    dict: _Writer.mapping,
}
_BY_KIND: tuple[tuple[type, Callable[[_Writer, Any, int], None]], ...] = (
    *_ENCODERS.items(),
    (Mapping, _Writer.mapping),
)
_INTEGER_HEADS = tuple(b"i" + bytes([size]) for size in range(10))
"""By size: those of 64 bits, as most are, cannot make a value too large, as there are `MAX_ITEMS` at most."""
_SMALL = tuple(
    b"i%c%b" % (size := n.bit_length() // 8 + 1, n.to_bytes(size, "little", signed=True)) for n in range(256)
)


class _Reader:
    def __init__(self, data: memoryview) -> None:
        self.data = data
        self.at = 0
        self._items = 0
        self._tuple_keys = 0

    def value(self, depth: int) -> Any:
        if depth > MAX_DEPTH:
            raise _malformed(f"nested deeper than {MAX_DEPTH}")
        tag = self.byte()
        read = _DECODERS.get(tag)
        if read is None:
            raise _malformed(f"tag {tag:#x}")
        return read(self, depth)

    def byte(self) -> int:
        at = self.at
        if at == len(self.data):
            raise _malformed("they end too early")
        self.at = at + 1
        return self.data[at]

    def take(self, count: int) -> memoryview:
        end = self.at + count
        if end > len(self.data):
            raise _malformed(f"they end {end - len(self.data):,} bytes too early")
        piece = self.data[self.at : end]
        self.at = end
        return piece

    def length(self) -> int:
        if (number := self.byte()) < 0x80:
            return number
        number &= 0x7F
        for shift in range(7, _LENGTH_BITS, 7):
            byte = self.byte()
            number |= (byte & 0x7F) << shift
            if byte < 0x80:
                return number
        raise _malformed("a length without end")

    def count(self, each: int) -> int:
        """How many items follow, of so many values: each has a byte at least."""
        count = self.length()
        if count > len(self.data) - self.at:
            raise _malformed(f"{count} items in {len(self.data) - self.at} bytes")
        self._items += count * each
        if self._items > MAX_ITEMS:
            raise _malformed(f"more than {MAX_ITEMS} items")
        return count

    def integer(self, depth: int) -> int:
        size = self.length()
        if size <= MAX_BITS // 8 + 1:
            number = int.from_bytes(self.take(size), "little", signed=True)
            if number.bit_length() <= MAX_BITS:
                return number
        raise _malformed(f"an int of {size} bytes")

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
        return [self.value(depth + 1) for _ in range(self.count(1))]

    def mapping(self, depth: int) -> dict[Any, Any]:
        found: dict[Any, Any] = {}
        for _ in range(self.count(2)):
            key = self.value(depth + 1)
            if type(key) is not str:
                self._check_key(key)
            if key in found:
                raise _malformed(f"the key {shown(key)} twice")
            found[key] = self.value(depth + 1)
        return found

    def _check_key(self, key: Any) -> None:
        if isinstance(key, int) and key.bit_length() > MAX_KEY_BITS:
            raise _malformed(f"a key of {key.bit_length()} bits")
        if isinstance(key, tuple):
            self._tuple_keys += 1
            if self._tuple_keys > MAX_TUPLE_KEYS:
                raise _malformed(f"more than {MAX_TUPLE_KEYS} tuples as keys")
        if not _is_hashable(key):
            raise _malformed(f"the key {shown(key)}, which no dict has")


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
