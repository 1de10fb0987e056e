"""Files of packets, block by block."""

from __future__ import annotations

import struct
from collections.abc import Iterator


def blocks(data: bytes) -> Iterator[tuple[int, bytes]]:
    at_byte = 0
    while at_byte < len(data):
        kind, size = struct.unpack_from("<II", data, at_byte)
        assert struct.unpack_from("<I", data, at_byte + size - 4)[0] == size
        yield kind, data[at_byte + 8 : at_byte + size - 4]
        at_byte += size
