"""The draft's DMA_UNMAP: which table a payload is, where one bit means two things."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.cases import for_each
from userdev.errors import ProtocolError
from vfio_user.wire.layouts import BITMAP_V6, DMA_ENTRY_V6, VfioBitmapV6
from vfio_user.wire.unmap_table import UnmapEntry, unmap_table

BELOW_4G = st.integers(0, (1 << 32) - 1)
RANGES = st.lists(st.tuples(BELOW_4G, BELOW_4G, BELOW_4G, st.integers(0, 3), st.integers(0, 1)), min_size=1)


@given(st.lists(st.tuples(BELOW_4G, BELOW_4G, st.sampled_from([4096, 8192]), BELOW_4G), min_size=1))
def test_each_entry_has_its_bitmap(wanted: list[tuple[int, int, int, int]]) -> None:
    table = b"".join(
        DMA_ENTRY_V6.pack(address, size, 0, 0, 1) + BITMAP_V6.pack(pgsize, bytes_, 0)
        for address, size, pgsize, bytes_ in wanted
    )
    assert unmap_table(table) == [
        UnmapEntry(address, size, VfioBitmapV6(pgsize, bytes_, 0)) for address, size, pgsize, bytes_ in wanted
    ]


@given(RANGES)
def test_entries_as_in_dma_map_ask_for_nothing(mapped: list[tuple[int, int, int, int, int]]) -> None:
    """Whatever their number: seven of them are as long as four with bitmaps."""
    table = b"".join(DMA_ENTRY_V6.pack(*entry) for entry in mapped)
    assert unmap_table(table) == [UnmapEntry(address, size, None) for address, size, *_ in mapped]


@for_each(
    [
        b"",
        bytes(31),
        bytes(33),
        DMA_ENTRY_V6.pack(0, 1, 0, 0, 2),
        DMA_ENTRY_V6.pack(0, 1, 0, 0, 3) + BITMAP_V6.pack(4096, 8, 0),
        DMA_ENTRY_V6.pack(0, 1, 0, 0, 0) + BITMAP_V6.pack(4096, 8, 0),
    ],
    ids=["empty", "cut", "more", "unknown flag", "unknown flag with a bitmap", "a bitmap that nobody asked for"],
)
def test_what_is_no_table_is_refused(payload: bytes) -> None:
    with pytest.raises(ProtocolError):
        unmap_table(payload)
