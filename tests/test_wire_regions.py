"""GET_REGION_INFO's reply: the chain of capabilities, the two-step argsz, and chains that lead nowhere."""

from __future__ import annotations

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.cases import for_each, for_each_row
from userdev.errors import ProtocolError
from vfio_user.wire.layouts import CAPABILITY_HEADER, REGION_INFO, SPARSE_MMAP
from vfio_user.wire.region_info import RegionDescription, decode_region_info, encode_region_info, room_for_all

WORD = st.integers(0, (1 << 64) - 1)
REGIONS = st.builds(
    RegionDescription,
    index=st.integers(0, 20),
    size=WORD,
    flags=st.integers(0, 7),
    offset=WORD,
    sparse=st.none() | st.lists(st.tuples(WORD, WORD), max_size=5).map(tuple),
    type=st.none() | st.tuples(st.integers(0, 9), st.integers(0, 9)),
)


@given(REGIONS)
def test_a_complete_reply_says_everything(region: RegionDescription) -> None:
    payload, complete = encode_region_info(region, None)
    heard, needed = decode_region_info(payload)
    assert complete
    assert needed == len(payload)
    assert (heard.index, heard.size, heard.offset, heard.sparse, heard.type) == (
        region.index,
        region.size,
        region.offset,
        region.sparse,
        region.type,
    )
    assert heard.flags & 7 == region.flags
    assert bool(heard.flags & 8) == (region.sparse is not None or region.type is not None)


@for_each_row([(1, 64), (2, 80), (0, 48)])
def test_the_argsz_that_is_needed_is_what_libvfio_user_says(areas: int, needed: int) -> None:
    region = RegionDescription(2, 0x4000, 7, sparse=tuple((i * 0x1000, 0x1000) for i in range(areas)))
    assert decode_region_info(encode_region_info(region, 32)[0])[1] == needed


@for_each([0, 1, 31, 32, 33, 63])
def test_with_too_little_room_the_reply_is_cut_and_has_no_capabilities(argsz: int) -> None:
    region = RegionDescription(2, 0x4000, 7, 0x10000, sparse=((0, 0x1000),))
    payload, complete = encode_region_info(region, argsz)
    assert not complete
    assert payload == (REGION_INFO.pack(64, 7, 2, 0, 0x4000, 0x10000) + bytes(32))[:argsz]


def test_with_just_the_room_that_is_needed_the_reply_is_complete() -> None:
    region = RegionDescription(2, 0x4000, 7, sparse=((0, 0x1000),))
    assert encode_region_info(region, 64) == encode_region_info(region, None)


def test_a_region_without_capabilities_has_nothing_behind_its_description() -> None:
    assert encode_region_info(RegionDescription(2, 0x4000, 7, 0x10000), None) == (
        REGION_INFO.pack(32, 7, 2, 0, 0x4000, 0x10000),
        True,
    )


@for_each_row(
    [
        (32, 7, 0, 0, True),
        (48, 15, 32, 16, True),
        (32, 7, 0, 16, True),
        (48, 7, 0, 0, False),
        (48, 15, 32, 15, False),
        (32, 15, 0, 0, False),
        (32, 15, 32, 0, False),
        (48, 15, 31, 16, False),
        (48, 15, 48, 16, False),
    ]
)
def test_a_reply_is_all_there_is_if_what_it_announces_is_in_it(
    argsz: int, flags: int, start: int, tail: int, is_all: bool
) -> None:
    room = room_for_all(REGION_INFO.pack(argsz, flags, 2, start, 0x4000, 0, tail=bytes(tail)))
    assert (room is None) == is_all
    assert room is None or room > 32 + tail


def test_the_type_comes_first_and_is_chained_to_the_areas() -> None:
    """libvfio-user's order; `next` counts from the start of the region info."""
    region = RegionDescription(9, 0x8000, 7, sparse=((0x1000, 0x1000),), type=(3, 1))
    payload, _ = encode_region_info(region, None)
    info = REGION_INFO.unpack(payload)
    first = CAPABILITY_HEADER.unpack(payload, info.cap_offset)
    second = CAPABILITY_HEADER.unpack(payload, first.next)
    assert (info.cap_offset, first, second) == (32, (2, 1, 48), (1, 1, 0))


@for_each(
    [
        CAPABILITY_HEADER.pack(9, 1, 32),
        CAPABILITY_HEADER.pack(9, 1, 4),
        CAPABILITY_HEADER.pack(9, 1, 4096),
        CAPABILITY_HEADER.pack(1, 1, 0),
        CAPABILITY_HEADER.pack(1, 1, 0) + SPARSE_MMAP.pack(2, 0) + bytes(16),
        CAPABILITY_HEADER.pack(1, 1, 0) + SPARSE_MMAP.pack(0xFFFFFFFF, 0),
        CAPABILITY_HEADER.pack(2, 1, 0) + bytes(4),
        b"\1",
    ],
    ids=["loop", "into the fixed part", "past the end", "no body", "fewer areas", "4 billion areas", "cut type", "cut"],
)
def test_a_chain_that_leads_nowhere_is_a_protocol_error(tail: bytes) -> None:
    with pytest.raises(ProtocolError) as caught:
        decode_region_info(REGION_INFO.pack(64, 8, 0, 32, 0x1000, 0, tail=tail))
    assert caught.value.errno == errno.EINVAL


@for_each([0, 1, 31, 33, 4096])
def test_capabilities_that_are_announced_and_not_there_are_a_protocol_error(start: int) -> None:
    with pytest.raises(ProtocolError) as caught:
        decode_region_info(REGION_INFO.pack(32, 8, 0, start, 0x1000, 0))
    assert caught.value.errno == errno.EINVAL


@given(st.binary(max_size=120))
def test_noise_is_a_region_or_the_one_error(noise: bytes) -> None:
    for payload in (noise, REGION_INFO.pack(64, 0xF, 0, 32, 0, 0) + noise):
        try:
            decode_region_info(payload)
        except ProtocolError:
            continue
