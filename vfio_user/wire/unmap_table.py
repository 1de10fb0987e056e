"""The table that DMA_UNMAP carries in the draft: entries of 32 bytes, or of 56 where each asks for its bitmap.

Bit 0 of an entry's flags asks for a bitmap. In DMA_MAP's entries, which have the same layout, it says Mappable, and
clients send the same entries to unmap what they mapped: where no table of 56-byte entries fits, that is what is meant.
"""

from __future__ import annotations

from typing import NamedTuple

from userdev.errors import ProtocolError
from vfio_user.wire.constants import UnmapFlags
from vfio_user.wire.layouts import BITMAP_V6, DMA_ENTRY_V6, VfioBitmapV6

_WITH_BITMAP = DMA_ENTRY_V6.size + BITMAP_V6.size
_ASKS = int(UnmapFlags.GET_DIRTY_BITMAP)


class UnmapEntry(NamedTuple):
    """A range to unmap, and the bitmap that is asked for with it."""

    address: int
    size: int
    bitmap: VfioBitmapV6 | None


def unmap_table(payload: bytes) -> list[UnmapEntry]:
    """The ranges of a table, at least one; all of them ask for a bitmap, or none.

    Raises:
        ProtocolError: (EINVAL) the payload is no table.
    """
    if payload and not len(payload) % _WITH_BITMAP:
        places = range(0, len(payload), _WITH_BITMAP)
        entries = [DMA_ENTRY_V6.unpack(payload, place) for place in places]
        if all(entry.flags == _ASKS for entry in entries):
            bitmaps = [BITMAP_V6.unpack(payload, place + DMA_ENTRY_V6.size) for place in places]
            return [
                UnmapEntry(entry.address, entry.size, bitmap) for entry, bitmap in zip(entries, bitmaps, strict=True)
            ]
    entries = list(DMA_ENTRY_V6.unpack_all(payload))
    if not entries or any(entry.flags & ~_ASKS for entry in entries):
        raise ProtocolError(f"DMA_UNMAP: {len(payload)} bytes are no table, or have unknown flags")
    return [UnmapEntry(entry.address, entry.size, None) for entry in entries]
