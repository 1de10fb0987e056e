"""The format of a saved state: a preamble, then frames. Made to be refused when anything about it is wrong.

::

    preamble   magic "VFUSTATE" (8 bytes), version (u32)
    frame      kind (u16), section (u16), size (u32), checksum (u32), then `size` bytes

    IDENTITY   first, once: encoded {"identity": {...}, "memories": [(name, size), ...]}; if there are storages,
               {"storages": [(name, size), ...]} too: their sections follow those of the memories
    MEMORY     section, offset (u64), bytes: memory as it was at some time; later frames replace earlier ones
    ZERO       section, offset (u64), length (u64): zeros there
    GREW       section of a storage, length (u64): it has become so large since it was announced, or last grew
    STATE      a piece of the encoded values
    END        last, once: encoded {"frames": how many before it, "digests": {part of the state: the source's}}

Integers are little-endian. A frame's checksum is the CRC-32 of everything from the start of the stream to the frame's
end, checksums aside: each frame is checked as it comes, and with it that none is missing, doubled or out of order, and
the last one's covers the whole.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterator, Mapping
from enum import IntEnum
from typing import Any, BinaryIO, NamedTuple
from zlib import crc32

from userdev.declare.values import decode
from userdev.errors import ProtocolError
from vfio_user.wire.state_pieces import OUR_STATE as MAGIC

VERSION = 2
PREAMBLE = struct.Struct("<8sI")
HEAD = struct.Struct("<HHI")
CHECKSUM = struct.Struct("<I")
PLACE = struct.Struct("<Q")
ZEROS = struct.Struct("<QQ")

MAX_FRAME = 1 << 20
"""A frame that says it is larger is refused before it comes."""


class FrameKind(IntEnum):
    """The kinds of frame in the stream."""

    IDENTITY = 1
    MEMORY = 2
    ZERO = 3
    STATE = 4
    END = 5
    GREW = 6


class Frame(NamedTuple):
    """One frame: what it carries, and which memory or storage it is of."""

    kind: FrameKind
    section: int
    payload: bytes


def differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Names of the parts of a state whose digests are not equal."""
    return sorted(str(name) for name in one.keys() | other.keys() if one.get(name) != other.get(name))


def digests_in(stream: BinaryIO) -> Mapping[str, Any]:
    """The digests of a state's parts, from the end of its stream; nothing where the stream is no such state."""
    reader = FrameReader()
    try:
        while data := stream.read(MAX_FRAME):
            for frame in reader.feed(data):
                if frame.kind is FrameKind.END and isinstance(end := decode(frame.payload), dict):
                    found = end.get("digests")
                    return found if isinstance(found, dict) else {}
    except ProtocolError:
        pass
    return {}


def refuse(why: str) -> ProtocolError:
    """The error for a state that is not loaded."""
    return ProtocolError(f"saved state refused: {why}", errno.EINVAL)


class FrameWriter:
    """Makes the bytes of a stream."""

    def __init__(self) -> None:
        self.preamble = PREAMBLE.pack(MAGIC, VERSION)
        self.frames = 0
        self._checksum = crc32(self.preamble)

    def frame(self, kind: FrameKind, payload: bytes, section: int = 0) -> bytes:
        """The bytes of the next frame."""
        head = HEAD.pack(kind, section, len(payload))
        self._checksum = crc32(payload, crc32(head, self._checksum))
        self.frames += 1
        return head + CHECKSUM.pack(self._checksum) + payload


class FrameReader:
    """Takes a stream apart as it comes, in pieces of any size."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._checksum: int | None = None
        self.frames = 0
        self.ended = False

    def feed(self, data: bytes | memoryview) -> Iterator[Frame]:
        """The frames that these bytes complete.

        Raises:
            ProtocolError: (EINVAL) this is no state, of another version, corrupt, or goes on behind its end.
        """
        self._buffer += data
        at = 0
        try:
            if self._checksum is None:
                if not self._has_preamble():
                    return
                at = PREAMBLE.size
            while (frame := self._next(at)) is not None:
                at += HEAD.size + CHECKSUM.size + len(frame.payload)
                self.ended = frame.kind is FrameKind.END
                yield frame
                self.frames += 1
            if self.ended and len(self._buffer) > at:
                raise refuse(f"{len(self._buffer) - at} bytes behind its end")
        finally:
            del self._buffer[:at]

    def _has_preamble(self) -> bool:
        have = self._buffer[: len(MAGIC)]
        if have != MAGIC[: len(have)]:
            raise refuse(f"it starts with {bytes(have)!r}, which is no vfio-user state")
        if len(self._buffer) < PREAMBLE.size:
            return False
        _, version = PREAMBLE.unpack_from(self._buffer)
        if version != VERSION:
            raise refuse(f"its format has version {version}, and this server knows version {VERSION}")
        self._checksum = crc32(self._buffer[: PREAMBLE.size])
        return True

    def _next(self, at: int) -> Frame | None:
        start = at + HEAD.size + CHECKSUM.size
        if self.ended or len(self._buffer) < start:
            return None
        kind, section, size = HEAD.unpack_from(self._buffer, at)
        if size > MAX_FRAME:
            raise refuse(f"it is corrupt: frame {self.frames} would have {size} bytes")
        if len(self._buffer) < start + size:
            return None
        payload = bytes(memoryview(self._buffer)[start : start + size])
        (checksum,) = CHECKSUM.unpack_from(self._buffer, at + HEAD.size)
        assert self._checksum is not None
        self._checksum = crc32(payload, crc32(self._buffer[at : at + HEAD.size], self._checksum))
        if checksum != self._checksum:
            raise refuse(f"it is corrupt: the checksum of frame {self.frames} is wrong")
        try:
            return Frame(FrameKind(kind), section, payload)
        except ValueError:
            raise refuse(f"frame {self.frames} is of the unknown kind {kind}") from None
