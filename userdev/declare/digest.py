"""The digest of a saved state: equal exactly when the values are, whatever process and Python made them."""

from __future__ import annotations

from collections.abc import Iterator


def digest_of(value: object) -> str:
    """SHA-256 in hex over a canonical form: equal exactly when the values are, whatever process and Python made it."""
    import hashlib  # a device that nobody migrates need not wait for OpenSSL

    sha = hashlib.sha256()
    for part in _canonical(value):
        sha.update(part)
    return sha.hexdigest()


def _canonical(value: object) -> Iterator[bytes | memoryview]:
    match value:
        case bytes() | bytearray() | memoryview():
            yield b"b%d:" % len(value)
            yield memoryview(value)
        case str():
            text = value.encode("utf-8", "surrogatepass")
            yield b"s%d:%b" % (len(text), text)
        case bool() | None | float():
            yield b"%b;" % repr(value).encode()
        case int():
            yield b"i%d;" % value
        case list() | tuple():
            yield b"l%d:" % len(value)
            for item in value:
                yield from _canonical(item)
        case dict():
            yield b"d%d:" % len(value)
            for key in sorted(value, key=lambda key: (type(key).__name__, key)):
                yield from _canonical(key)
                yield from _canonical(value[key])
        case _:
            raise TypeError(f"state cannot hold a {type(value).__name__}: {value!r}")
