"""What the draft of November 2020 leaves open is taken either way: clients of that time did it differently."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.cases import for_each
from tests.everything_device import Everything
from userdev.errors import ProtocolError
from userdev.transport import close_all
from vfio_user.client import Client, GuestMemory, Mapping, RemoteError
from vfio_user.device import DmaRegion
from vfio_user.server import Server
from vfio_user.wire import DRAFT_V6, Command, Message
from vfio_user.wire.constants import DmaFlagsV6, RegionFlags
from vfio_user.wire.layouts import BITMAP_V6, DMA_ENTRY_V6, REGION_INFO

BASE, SIZE, PAGE = 0x10_0000, 0x10000, 0x1000


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Client]:
    address = str(tmp_path / "socket")
    with (
        closing(Everything()) as device,
        Server(device, address, dialect=DRAFT_V6),
        Client.connect(address, dialect=DRAFT_V6) as client,
    ):
        yield client


def region_info(client: Client, argsz: int) -> Message:
    reply = client.raw(DRAFT_V6.number(Command.GET_REGION_INFO), REGION_INFO.pack(argsz, 0, 2, 0, 0, 0))
    assert reply is not None
    close_all(reply.fds)
    return reply


def test_who_says_how_much_room_there_is_gets_no_more_and_asks_again(client: Client) -> None:
    cut = region_info(client, 32)
    info = REGION_INFO.unpack(cut.payload)
    assert (len(cut.payload), len(cut.fds), info.flags & RegionFlags.CAPS) == (32, 0, 0)
    whole = region_info(client, info.argsz)
    assert (len(whole.payload), len(whole.fds)) == (info.argsz, 1)


@pytest.mark.parametrize("argsz", [0, 31])
def test_who_says_nothing_of_room_gets_all(client: Client, argsz: int) -> None:
    """`index` is the only field that has to be set (VFIO region info format)."""
    whole = region_info(client, argsz)
    assert (len(whole.payload), len(whole.fds)) == (REGION_INFO.unpack(whole.payload).argsz, 1)


def test_what_was_mapped_is_unmapped_by_the_same_table(client: Client) -> None:
    with GuestMemory(8 * SIZE) as ram:
        places = [BASE + 2 * place * SIZE for place in range(7)]
        client.dma_map_all([Mapping(iova, SIZE, ram, place * SIZE) for place, iova in enumerate(places)])
        table = [DMA_ENTRY_V6.pack(iova, SIZE, i * SIZE, 3, DmaFlagsV6.MAPPABLE) for i, iova in enumerate(places)]
        assert client.request(Command.DMA_UNMAP, b"".join(table)).payload == b""
        client.dma_map_all([Mapping(iova, SIZE, ram) for iova in places])  # they are free


def test_several_ranges_are_unmapped_by_one_table(client: Client) -> None:
    with GuestMemory(3 * SIZE) as ram:
        mappings = [Mapping(BASE + 2 * place * SIZE, SIZE, ram, place * SIZE) for place in range(3)]
        client.dma_map_all(mappings)
        client.dma_unmap_each([(mapping.iova, SIZE) for mapping in mappings[:2]])
        assert list(client.memory) == mappings[2:]
        client.dma_map_all(mappings[:2])  # they are free


@for_each(
    {
        "one range twice": [(BASE, SIZE), (BASE, SIZE)],
        "a part of another": [(BASE + 2 * SIZE, SIZE), (BASE, SIZE), (BASE + PAGE, PAGE)],
        "no bytes, twice": [(BASE, SIZE), (0, 0), (0, 0)],
    }.items(),
    ids=lambda case: case[0],
)
def test_a_table_that_names_something_twice_is_refused_as_a_whole(
    case: tuple[str, list[tuple[int, int]]], client: Client
) -> None:
    _, named = case
    with GuestMemory(3 * SIZE) as ram, GuestMemory(0x1000, shared=False) as none:
        mappings = [Mapping(BASE, SIZE, ram), Mapping(BASE + 2 * SIZE, SIZE, ram), Mapping(0, 0, none)]
        client.dma_map_all(mappings)
        with pytest.raises(RemoteError) as refusal:
            client.dma_unmap_each(named)
        assert refusal.value.errno == errno.EINVAL
        client.dma_unmap_each([(mapping.iova, mapping.size) for mapping in mappings])  # all of it was still there


def test_all_of_a_table_is_unmapped_whatever_the_device_says_of_one(tmp_path: Path) -> None:
    class Refusing(Everything):
        def on_dma_unmap(self, region: DmaRegion) -> None:
            if region.iova == BASE:
                raise ProtocolError("not this one", errno.EBUSY)

    address = str(tmp_path / "socket")
    with (
        closing(Refusing()) as device,
        Server(device, address, dialect=DRAFT_V6),
        Client.connect(address, dialect=DRAFT_V6) as client,
        GuestMemory(SIZE) as ram,
    ):
        mappings = [Mapping(BASE + 2 * place * SIZE, SIZE, ram) for place in range(3)]
        client.dma_map_all(mappings)
        with pytest.raises(RemoteError) as refusal:
            client.dma_unmap_each([(mapping.iova, SIZE) for mapping in mappings])
        assert (refusal.value.errno, device.dma.regions) == (errno.EBUSY, [])


def test_a_bitmap_may_be_larger_than_its_bits(client: Client) -> None:
    with GuestMemory(SIZE) as ram:
        client.dma_map(BASE, ram)
        client.start_dirty_pages()
        client.store(0, 0x08, 8, BASE + 3 * PAGE)
        client.store(0, 0x10, 4, 1)
        entry = DMA_ENTRY_V6.pack(BASE, SIZE, 0, 0, 1) + BITMAP_V6.pack(PAGE, 20, 0)
        reply = client.request(Command.DMA_UNMAP, entry)
        assert reply.payload == BITMAP_V6.pack(PAGE, 20, 0, tail=(1 << 3).to_bytes(20, "little"))
