"""Values to bytes and back: a tag, a length where one is needed, and the value.

Lengths are LEB128, seven bits a byte, lowest first; integers are as long as they need to be, in two's complement. The
decoder takes nothing on trust: no length beyond the input, no unknown tag, no byte left over, and nothing beyond the
bounds below. The encoder keeps to the same bounds: whose state is too large hears of it at the source.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable, Mapping
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
    def __init__(self) -> None:
        self.out = bytearray()
        self._items = 0
        self._tuple_keys = 0

    def value(self, value: Any, depth: int) -> None:
        if depth > MAX_DEPTH:
            raise TypeError(f"values nested deeper than {MAX_DEPTH}")
        match value:
            case None:
                self.out += b"n"
            case bool():
                self.out += b"T" if value else b"F"
            case int():
                bits = value.bit_length()
                if bits > MAX_BITS:
                    raise TypeError(f"an int of {bits} bits, and it may have {MAX_BITS}")
                self._octets(b"i", value.to_bytes(bits // 8 + 1, "little", signed=True))
            case float():
                self.out += b"f" + _FLOAT.pack(value)
            case str():
                self._octets(b"s", value.encode("utf-8", "surrogatepass"))
            case bytes() | bytearray() | memoryview():
                self._octets(b"b", bytes(value))
            case list() | tuple():
                self._begin(b"l" if isinstance(value, list) else b"t", len(value), 1)
                for item in value:
                    self.value(item, depth + 1)
            case Mapping():
                self._begin(b"d", len(value), 2)
                for key, item in value.items():
                    self._key(key, depth)
                    self.value(item, depth + 1)
            case _:
                raise TypeError(f"{type(value).__name__} cannot be saved; use numbers, text, bytes, lists and dicts")

    def _key(self, key: Any, depth: int) -> None:
        if isinstance(key, int) and key.bit_length() > MAX_KEY_BITS:
            raise TypeError(f"an int of {key.bit_length()} bits as a key, and it may have {MAX_KEY_BITS}")
        if isinstance(key, tuple):
            self._tuple_keys += 1
            if self._tuple_keys > MAX_TUPLE_KEYS:
                raise TypeError(f"dicts with more than {MAX_TUPLE_KEYS} tuples as keys")
        self.value(key, depth + 1)

    def _begin(self, tag: bytes, count: int, each: int) -> None:
        self.out += tag
        self._length(count)
        self._items += count * each
        if self._items > MAX_ITEMS:
            raise TypeError(f"lists and dicts with more than {MAX_ITEMS} items; memory() holds more")

    def _octets(self, tag: bytes, data: bytes) -> None:
        if len(self.out) + len(data) > MAX_SIZE:
            raise TypeError(f"more than {MAX_SIZE} bytes; memory() holds more")
        self.out += tag
        self._length(len(data))
        self.out += data

    def _length(self, number: int) -> None:
        while number > 0x7F:
            self.out.append(number & 0x7F | 0x80)
            number >>= 7
        self.out.append(number)


class _Reader:
    def __init__(self, data: memoryview) -> None:
        self.data = data
        self.at = 0
        self._items = 0
        self._tuple_keys = 0

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
        number = 0 if size > MAX_BITS else int.from_bytes(self.take(size), "little", signed=True)
        if size > MAX_BITS or number.bit_length() > MAX_BITS:
            raise _malformed(f"an int of {size} bytes")
        return number

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
