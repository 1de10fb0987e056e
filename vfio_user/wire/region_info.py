"""GET_REGION_INFO's variable part: the chain of capabilities behind the fixed structure."""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import NamedTuple

from userdev.errors import ProtocolError
from vfio_user.wire.constants import RegionCapability, RegionFlags
from vfio_user.wire.layouts import (
    CAPABILITY_HEADER,
    REGION_INFO,
    REGION_TYPE,
    SPARSE_AREA,
    SPARSE_MMAP,
)

_PLENTY = 4096
"""Bytes of room for a reply that does not say how many it needs."""


@dataclass(frozen=True)
class RegionDescription:
    """One region as GET_REGION_INFO tells it. `offset` is where its mapping starts in the descriptor."""

    index: int
    size: int = 0
    flags: int = 0
    offset: int = 0
    sparse: tuple[tuple[int, int], ...] | None = None
    """Areas (offset in the region, size) that may be mapped; None: no such capability, the whole region."""
    type: tuple[int, int] | None = None
    """(type, subtype) of a device-specific region."""


def encode_region_info(region: RegionDescription, argsz: int | None) -> tuple[bytes, bool]:
    """The reply's payload, and whether it is complete (a descriptor goes only with a complete one).

    `argsz` is the room the client said it has; None where the dialect sends everything always. With less room than
    needed the reply is cut to `argsz` bytes, has no capabilities, and says in its own argsz what is needed.
    """
    chain = _encode_chain(region)
    needed = REGION_INFO.size + len(chain)
    flags = region.flags & ~RegionFlags.CAPS
    if argsz is not None and argsz < needed:
        fixed = REGION_INFO.pack(needed, flags, region.index, 0, region.size, region.offset)
        return fixed.ljust(argsz, b"\0")[:argsz], False
    offset = 0
    if chain:
        flags |= RegionFlags.CAPS
        offset = REGION_INFO.size
    return REGION_INFO.pack(needed, flags, region.index, offset, region.size, region.offset) + chain, True


def room_for_all(payload: bytes) -> int | None:
    """The argsz to ask again with, where a reply is not all that there is to say; None where it is.

    A reply that has no capabilities and the flag for them is not, whatever it says of the room: whoever took it for all
    would map all of the region.

    Raises:
        ProtocolError: (EINVAL) the reply is too short.
    """
    info = REGION_INFO.unpack(payload)
    if info.argsz > len(payload):
        return info.argsz
    inside = REGION_INFO.size <= info.cap_offset < len(payload)
    return _PLENTY if info.flags & RegionFlags.CAPS and not inside else None


def decode_region_info(payload: bytes) -> tuple[RegionDescription, int]:
    """Take a reply apart: the region, and the argsz that its complete reply needs.

    Raises:
        ProtocolError: (EINVAL) the reply or its chain of capabilities is malformed: too short, pointing outside,
            a loop, or announced and not there.
    """
    info = REGION_INFO.unpack(payload)
    sparse: tuple[tuple[int, int], ...] | None = None
    kind: tuple[int, int] | None = None
    for id, _, body in capabilities(payload):
        if id == RegionCapability.SPARSE_MMAP:
            count = SPARSE_MMAP.unpack(payload, body).nr_areas
            first = body + SPARSE_MMAP.size
            if count > (len(payload) - first) // SPARSE_AREA.size:
                raise ProtocolError(f"region {info.region}: {count} sparse areas do not fit the reply", errno.EINVAL)
            areas = (SPARSE_AREA.unpack(payload, first + i * SPARSE_AREA.size) for i in range(count))
            sparse = tuple((area.offset, area.size) for area in areas)
        elif id == RegionCapability.TYPE:
            found = REGION_TYPE.unpack(payload, body)
            kind = (found.type, found.subtype)
    region = RegionDescription(info.region, info.size, info.flags, info.offset, sparse, kind)
    return region, info.argsz


def _encode_chain(region: RegionDescription) -> bytes:
    bodies: list[tuple[RegionCapability, bytes]] = []
    if region.type is not None:
        bodies.append((RegionCapability.TYPE, REGION_TYPE.pack(*region.type)))
    if region.sparse is not None:
        areas = b"".join(SPARSE_AREA.pack(*area) for area in region.sparse)
        bodies.append((RegionCapability.SPARSE_MMAP, SPARSE_MMAP.pack(len(region.sparse), 0, tail=areas)))
    chain = b""
    for left, (id, body) in zip(range(len(bodies) - 1, -1, -1), bodies, strict=True):
        after = REGION_INFO.size + len(chain) + CAPABILITY_HEADER.size + len(body)
        chain += CAPABILITY_HEADER.pack(id, 1, after if left else 0, tail=body)
    return chain


class FoundCapability(NamedTuple):
    """A capability of a reply: its header's id and version, and where its body begins."""

    id: int
    version: int
    body: int


def capabilities(payload: bytes) -> list[FoundCapability]:
    """Follow the chain of a reply; raises as `decode_region_info`."""
    info = REGION_INFO.unpack(payload)
    found: list[FoundCapability] = []
    at = info.cap_offset if info.flags & RegionFlags.CAPS else 0
    if not at and info.flags & RegionFlags.CAPS:
        raise ProtocolError(f"region {info.region}: it says that it has capabilities, and has none", errno.EINVAL)
    while at:
        if len(found) > len(payload) // CAPABILITY_HEADER.size or at < REGION_INFO.size:
            raise ProtocolError(f"region {info.region}: its capabilities are a loop", errno.EINVAL)
        header = CAPABILITY_HEADER.unpack(payload, at)
        found.append(FoundCapability(header.id, header.version, at + CAPABILITY_HEADER.size))
        at = header.next
    return found
