"""The client against a real server: everything a VMM does, in every dialect that has it."""

from __future__ import annotations

import errno
import os
import select
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from tests.cases import for_each
from tests.conftest import PATIENCE
from tests.descriptors import fd_count
from tests.everything_device import Everything
from userdev.errors import ProtocolError, UserError
from userdev.transport import Stream, close_all
from vfio_user.cli.probe import command as probe
from vfio_user.client import Client, EventFd, GuestMemory, NoAnswer, RemoteError
from vfio_user.client.description import describe, render
from vfio_user.device import register
from vfio_user.migration.region import WINDOW, WINDOW_SIZE
from vfio_user.server import Offer, Server, requests
from vfio_user.server.connection import ClientGone
from vfio_user.wire import CURRENT, DIALECTS, DRAFT_V6, REGION_MIGRATION, Capabilities, Command, Dialect
from vfio_user.wire import layouts as at
from vfio_user.wire.constants import (
    MIGRATION_REGION_TYPE,
    DmaFlags,
    Feature,
    FeatureFlags,
    IrqIndex,
    MigrationState,
    RegionFlags,
    UnmapFlags,
)
from vfio_user.wire.layouts import IO_FD, REGION_ACCESS, REGION_IO_FDS

SCRATCH, IOVA, FILL, FETCH, FETCHED, RING = 0x00, 0x08, 0x10, 0x18, 0x1C, 0x20
BASE = 0x10_0000
ALL_DIALECTS = for_each(DIALECTS.values(), ids=DIALECTS)
Connect = Callable[..., Client]


@contextmanager
def serving(path: Path, dialect: Dialect = CURRENT) -> Iterator[Callable[..., Client]]:
    address = str(path / "s")
    device = Everything()
    with Server(device, address, dialect=dialect, offer=Offer(write_multiple=True)):
        yield lambda **options: Client.connect(address, dialect=dialect, **options)
    device.close()


@pytest.fixture
def current(tmp_path: Path) -> Iterator[Client]:
    with serving(tmp_path) as connect, connect() as client:
        yield client


@for_each(DIALECTS, [True, False])
def test_the_device_reaches_guest_memory(name: str, shared: bool, tmp_path: Path) -> None:
    with serving(tmp_path, DIALECTS[name]) as connect, connect() as client, GuestMemory(0x4000, shared=shared) as ram:
        client.dma_map(BASE, ram, offset=0x1000, size=0x2000)
        client.store(0, IOVA, 8, BASE + 0xFFE)
        client.store(0, FILL, 4, 4)
        client.serve_until(lambda: ram.view[0x2001] != 0)
        assert bytes(ram.view[0x1FFD:0x2003]) == b"\0\xa5\xa5\xa5\xa5\0"
        ram.view[0x1FFE:0x2002] = b"\1\2\3\4"
        client.store(0, FETCH, 4, 4)
        assert any(client.load(0, FETCHED, 4) == 10 for _ in range(1000))  # each load serves what the device asks
        by_message = Command.DMA_WRITE in client.service.served and Command.DMA_READ in client.service.served
        assert by_message is not shared
        assert client.memory.dirty == (set() if shared else {BASE, BASE + 0x1000})


def test_message_dma_larger_than_a_message_comes_in_pieces(tmp_path: Path) -> None:
    small = Capabilities(max_msg_fds=1, max_data_xfer_size=4096)
    with serving(tmp_path) as connect, connect(capabilities=small) as client, GuestMemory(0x10000, shared=False) as ram:
        client.dma_map(BASE, ram)
        client.store(0, IOVA, 8, BASE)
        client.store(0, FILL, 4, 0x10000)
        assert client.serve_until(lambda: ram.view[-1] == 0xA5)
        assert client.service.served[Command.DMA_WRITE] == 16


def test_message_dma_travels_on_the_twin_socket(tmp_path: Path) -> None:
    with serving(tmp_path) as connect, connect(twin_socket=True) as client, GuestMemory(0x1000, shared=False) as ram:
        assert client.channel.has_twin
        client.dma_map(BASE, ram)
        client.store(0, IOVA, 8, BASE)
        client.store(0, FILL, 4, 16)
        assert client.serve_until(lambda: ram.view[15] == 0xA5)


def test_a_refusal_of_dma_without_errno_has_one_in_the_reply_that_waited_for_it(tmp_path: Path) -> None:
    """QEMU takes an error whose errno is 0 for success."""
    with serving(tmp_path) as connect, connect(twin_socket=True) as client, GuestMemory(0x1000, shared=False) as ram:
        client.dma_map(BASE, ram)
        client.channel._serve = lambda asked: asked.error(0)
        client.store(0, IOVA, 8, BASE)
        with pytest.raises(RemoteError) as refused:
            client.store(0, FILL, 4, 16)
        assert refused.value.errno == errno.EIO


def test_no_session_leaves_a_descriptor_of_its_twin_socket(tmp_path: Path) -> None:
    with serving(tmp_path) as connect:
        connect(twin_socket=True).close()
    before = fd_count(collect=True)
    for _ in range(3):
        with serving(tmp_path) as connect:
            connect(twin_socket=True).close()
    assert fd_count(collect=True) == before


def test_an_unmap_that_has_no_room_for_its_bitmap_is_refused_and_unmaps_nothing(tmp_path: Path) -> None:
    with serving(tmp_path, REGION_MIGRATION) as connect, connect() as client, GuestMemory(0x1000) as ram:
        client.dma_map(BASE, ram)
        client.start_dirty_pages()
        room = at.DMA_UNMAP.size + at.BITMAP.size + 8
        tail = at.BITMAP.pack(0x1000, 8)
        for argsz in (room - 8, room - 1):
            asked = at.DMA_UNMAP.pack(argsz, UnmapFlags.GET_DIRTY_BITMAP, BASE, 0x1000, tail=tail)
            with pytest.raises(RemoteError) as refused:
                client.request(Command.DMA_UNMAP, asked)
            assert refused.value.errno == errno.EINVAL
        assert client.dma_unmap(BASE, 0x1000, page_size=0x1000) is not None


def test_dma_to_where_nothing_is_mapped_fails_in_the_device_and_harms_nothing(current: Client) -> None:
    current.store(0, IOVA, 8, 0xDEAD_0000)
    with pytest.raises(RemoteError):
        current.store(0, FILL, 4, 4)
    assert current.load(0, SCRATCH, 4) == 0


def test_read_only_memory_is_not_written(current: Client) -> None:
    with GuestMemory(0x1000) as rom:
        current.dma_map(BASE, rom, flags=DmaFlags.READ)
        current.store(0, IOVA, 8, BASE)
        with pytest.raises(RemoteError):
            current.store(0, FILL, 4, 4)
        assert not any(rom.view)


@ALL_DIALECTS
def test_everything_is_unmapped_at_once(dialect: Dialect, tmp_path: Path) -> None:
    with serving(tmp_path, dialect) as connect, connect() as client, GuestMemory(0x4000) as ram:
        for page in range(4):
            client.dma_map(BASE + 0x2000 * page, ram, offset=0x1000 * page, size=0x1000)
        client.dma_unmap_all()
        assert len(client.memory) == 0
        with pytest.raises(RemoteError) as caught:
            client.dma_unmap(BASE, 0x1000)
        assert caught.value.errno == errno.ENOENT


class Elsewhere(Everything):
    """Reads guest memory on the thread for its own work, where a handler would have the client wait."""

    def __init__(self) -> None:
        super().__init__()
        self.ended = threading.Event()
        self.failure: Exception | None = None

    @register(bar=0, offset=0x18, width=4)
    def fetch(self, count: int) -> None:  # type: ignore[override]
        self.call_soon(lambda: self.read_memory(count))

    def read_memory(self, count: int) -> None:
        try:
            self.seen = sum(self.dma.read(self.iova, count))
        except Exception as error:
            self.failure = error
        self.ended.set()


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Elsewhere, Client]]:
    """A client whose memory is reached by messages, and which would be waited for forever."""
    monkeypatch.setattr(requests, "ANSWER_SECONDS", 100 * PATIENCE)
    device, address = Elsewhere(), str(tmp_path / "s")
    with (
        closing(device),
        Server(device, address),
        Client.connect(address) as client,
        GuestMemory(0x1000, shared=False) as ram,
    ):
        ram.view[:4] = b"\1\2\3\4"
        client.dma_map(BASE, ram)
        client.store(0, IOVA, 8, BASE)
        yield device, client


def test_a_thread_of_the_devices_goes_on_as_soon_as_the_client_has_answered(
    elsewhere: tuple[Elsewhere, Client],
) -> None:
    device, client = elsewhere
    client.store(0, FETCH, 4, 4)
    assert client.serve_until(lambda: Command.DMA_READ in client.service.served, timeout=PATIENCE)
    assert device.ended.wait(PATIENCE)
    assert (device.seen, device.failure) == (10, None)


def test_a_thread_of_the_devices_is_told_that_the_client_has_gone(elsewhere: tuple[Elsewhere, Client]) -> None:
    """Which is another thing than a client that does not answer."""
    device, client = elsewhere
    client.post(Command.REGION_WRITE, REGION_ACCESS.pack(FETCH, 0, 4, tail=b"\4\0\0\0"))
    assert select.select([client.channel], [], [], PATIENCE)[0], "it is asked for memory"
    client.close()
    assert device.ended.wait(PATIENCE)
    assert isinstance(device.failure, ClientGone)


# ends


def test_who_serves_an_inherited_connection_is_told_when_it_has_ended() -> None:
    """There will be no other client, so that a program may end."""
    ours, its = socket.socketpair()
    ended = threading.Event()
    device = Everything()
    with closing(device), Server(device, f"fd:{its.detach()}", ended=ended.set):
        with Client(Stream(ours)) as client:
            client.negotiate()
            assert client.load(0, SCRATCH, 4) == 0
            assert not ended.is_set()
        assert ended.wait(PATIENCE)


# regions


@ALL_DIALECTS
def test_regions_are_described_and_mapped(dialect: Dialect, tmp_path: Path) -> None:
    with serving(tmp_path, dialect) as connect, connect() as client:
        region = client.region_info(2)
        assert (region.size, region.mappable) == (0x8000, ((0x1000, 0x1000), (0x4000, 0x2000)))
        with client.map_region(region, region.mappable[1]) as high:
            high[0x10:0x14] = b"fast"
            assert client.region_read(2, 0x4010, 4) == b"fast"
            client.region_write(2, 0x4010, b"slow")
            assert high[0x10:0x14] == b"slow"
        with pytest.raises(UserError):
            client.map_region(client.region_info(0))


def test_where_no_descriptors_travel_no_region_can_be_mapped() -> None:
    device = Everything()
    with closing(device), Server(device, "tcp:127.0.0.1:0") as server:
        host, port = server.listener.socket.getsockname()
        with Client.connect(f"tcp:{host}:{port}") as client:
            region = client.region_info(2)
            assert (region.flags, region.mappable) == (RegionFlags.READ | RegionFlags.WRITE, ())
            assert client.io_fds(0) == []


def test_of_the_region_of_v1_the_window_for_data_can_be_mapped_and_no_register(tmp_path: Path) -> None:
    with serving(tmp_path, REGION_MIGRATION) as connect, connect() as client:
        region = client.region_info(len(client.regions()) - 1)
        assert region.type == MIGRATION_REGION_TYPE
        assert region.mappable == ((WINDOW, WINDOW_SIZE),)


def test_asking_for_regions_again_and_again_holds_one_descriptor_each(current: Client) -> None:
    current.region_info(2)
    before = fd_count(collect=True)
    for _ in range(10):
        current.region_info(2)
    assert fd_count(collect=True) == before


def test_reads_are_pipelined(current: Client) -> None:
    current.store(0, SCRATCH, 4, 0x0403_0201)
    reads = [(0, SCRATCH, 4), (7, 0, 2), (0, SCRATCH, 4)] * 50
    assert current.read_many(reads) == [b"\1\2\3\4", b"\xf4\x1a", b"\1\2\3\4"] * 50


def test_several_writes_travel_in_one_message(current: Client) -> None:
    assert current.write_multi([(0, SCRATCH, b"\1\0\0\0"), (0, SCRATCH, b"\2\0\0\0")]) == 2
    current.write_multi([(0, IOVA, bytes(range(8)))], posted=True)
    assert (current.load(0, SCRATCH, 4), current.load(0, IOVA, 8)) == (2, 0x0706_0504_0302_0100)


def test_write_multi_needs_a_server_that_offers_it(tmp_path: Path) -> None:
    with (
        serving(tmp_path) as connect,
        connect(capabilities=Capabilities(max_msg_fds=1)) as client,
        pytest.raises(UserError),
    ):
        client.write_multi([(0, SCRATCH, b"\1\0\0\0")])


def test_an_ioeventfd_rings_the_doorbell(current: Client) -> None:
    (entry,) = current.io_fds(0)
    assert (entry.gpa_offset, entry.size, entry.type) == (RING, 4, 0)
    assert entry.fd is not None
    with EventFd() as eventfd:
        current.enable_irqs(IrqIndex.MSIX, [eventfd])
        os.eventfd_write(entry.fd, 1)
        assert eventfd.wait() == 1
    os.close(entry.fd)
    assert current.io_fds(2) == []


def test_of_several_ioeventfds_the_newest_is_first(tmp_path: Path) -> None:
    """As libvfio-user lists them, and so as clients are used to."""
    device = Everything()
    device.add_ioeventfd(0, RING, 4, datamatch=9)
    with closing(device), Server(device, str(tmp_path / "s")), Client.connect(str(tmp_path / "s")) as client:
        entries = client.io_fds(0)
        assert [entry.datamatch for entry in entries] == [9, 0]
        close_all([entry.fd for entry in entries if entry.fd is not None])


def test_a_descriptor_that_several_ioeventfds_have_goes_once(tmp_path: Path) -> None:
    """The memory of the shadows is one; a message carries no more descriptors than the client takes."""
    device = Everything()
    shadows = 2
    for value in range(shadows):
        device.add_ioeventfd(0, RING, 4, datamatch=value, shadow=True)
    with closing(device), Server(device, str(tmp_path / "s")), Client.connect(str(tmp_path / "s")) as client:
        room = REGION_IO_FDS.size + (1 + shadows) * IO_FD.size
        reply = client.request(Command.GET_REGION_IO_FDS, REGION_IO_FDS.pack(room, 0, 0, 0))
        entries = list(IO_FD.unpack_all(reply.payload, REGION_IO_FDS.size))
        files = [os.fstat(fd).st_ino for fd in reply.fds]
        shared = [entry.shadow_mem_fd_index for entry in entries[:shadows]]
        close_all(reply.fds)
    assert len(files) == (1 + shadows) + 1
    assert sorted({entry.fd_index for entry in entries} | set(shared)) == list(range(len(files)))
    assert len(set(shared)) == 1


# interrupts


@ALL_DIALECTS
def test_each_vector_fires_its_own_eventfd(dialect: Dialect, tmp_path: Path) -> None:
    with serving(tmp_path, dialect) as connect, connect() as client:
        eventfds = [EventFd() for _ in range(8)]
        client.enable_irqs(IrqIndex.MSIX, eventfds)
        client.store(0, RING, 4, 5)
        assert client.wait_interrupt(eventfds[5]) == 1
        assert [eventfd.take() for eventfd in eventfds] == [0] * 8
        client.detach_irqs(IrqIndex.MSIX, start=5, count=1)
        client.store(0, RING, 4, 5)
        with pytest.raises(NoAnswer):
            client.wait_interrupt(eventfds[5], timeout=0.02)
        for eventfd in eventfds:
            eventfd.close()


def test_interrupts_come_in_band_where_the_transport_carries_no_descriptors() -> None:
    device = Everything()
    with closing(device), Server(device, "tcp:127.0.0.1:0", dialect=DRAFT_V6) as server:
        host, port = server.listener.socket.getsockname()
        with Client.connect(f"tcp:{host}:{port}", dialect=DRAFT_V6) as client, GuestMemory(0x1000) as ram:
            msi = next(c for c in describe(client).pci_capabilities if c.name == "MSI")
            client.config_write(msi.offset + 2, (1 | 2 << 4).to_bytes(2, "little"))  # enable, with 4 vectors
            client.store(0, RING, 4, 3)
            assert client.wait_vm_interrupt() == 3
            client.dma_map(BASE, ram)
            client.store(0, IOVA, 8, BASE)
            client.store(0, FILL, 4, 4)
            assert client.serve_until(lambda: ram.view[3] == 0xA5)


# migration


def test_what_the_device_writes_is_reported_once(current: Client) -> None:
    with GuestMemory(0x8000) as ram:
        current.dma_map(BASE, ram)
        current.start_logging(0x1000, [(BASE, 0x8000)])
        current.store(0, IOVA, 8, BASE + 0x2FFF)
        current.store(0, FILL, 4, 2)
        assert current.report_logging(BASE, 0x8000, 0x1000).pages() == [BASE + 0x2000, BASE + 0x3000]
        assert current.report_logging(BASE, 0x8000, 0x1000).pages() == []
        current.store(0, FILL, 4, 2)
        found = current.dma_unmap(BASE, 0x8000, page_size=0x1000)
        assert found is not None
        assert found.pages() == [BASE + 0x2000, BASE + 0x3000]
        current.stop_logging()


@for_each([DRAFT_V6, REGION_MIGRATION], ids=lambda d: d.name)
def test_dirty_pages_are_reported_by_the_older_message(dialect: Dialect, tmp_path: Path) -> None:
    with serving(tmp_path, dialect) as connect, connect() as client, GuestMemory(0x8000) as ram:
        client.dma_map(BASE, ram)
        client.start_dirty_pages()
        client.store(0, IOVA, 8, BASE + 0x1000)
        client.store(0, FILL, 4, 1)
        assert client.dirty_pages(BASE, 0x8000).pages() == [BASE + 0x1000]
        client.store(0, FILL, 4, 1)
        found = client.dma_unmap(BASE, 0x8000, page_size=0x1000)
        assert found is not None
        assert found.pages() == [BASE + 0x1000]
        client.stop_dirty_pages()


def test_features_are_probed_without_changing_anything(current: Client) -> None:
    assert current.has_feature(Feature.MIG_DEVICE_STATE, FeatureFlags.GET | FeatureFlags.SET)
    assert not current.has_feature(0x1234)
    assert current.migration_state() is MigrationState.RUNNING


# probe


@ALL_DIALECTS
def test_probe_describes_the_device(dialect: Dialect, tmp_path: Path) -> None:
    with serving(tmp_path, dialect) as connect, connect() as client:
        found = describe(client)
    assert (found.vendor, found.device, found.interrupt_pin) == (0x1AF4, 0x10F5, "A")
    assert [(c.name, c.extended) for c in found.pci_capabilities] == [
        ("Power Management", False),
        ("PCI Express", False),
        ("Vendor Specific", False),
        ("MSI", False),
        ("MSI-X", False),
        ("Device Serial Number", True),
        ("Vendor Specific", True),
    ]
    bars = {region.index: (region.size, region.kind, region.access) for region in found.regions if region.size}
    assert bars[2] == (0x8000, "64-bit prefetchable", "rwm")
    assert bars[5] == (32, "I/O", "rw-")
    assert [(irq.name, irq.vectors) for irq in found.irqs][:3] == [("INTx", 1), ("MSI", 4), ("MSI-X", 8)]
    assert [region.name for region in found.regions if region.size][-1] == (
        "migration" if dialect.migration_region else "region 9"
    )
    assert found.migration.how == ("region" if dialect.migration_region else "messages")
    assert found.problems == []
    assert "may be mapped: 0x4000 to 0x6000 (8 KiB)" in render(found)
    assert "32 KiB rwm 64-bit prefetchable" in render(found)


@for_each([CURRENT, DRAFT_V6], ids=lambda d: d.name)
def test_probe_finds_the_dialect_by_itself(dialect: Dialect, tmp_path: Path) -> None:
    with serving(tmp_path, dialect):
        result = CliRunner().invoke(probe, [str(tmp_path / "s"), "--json"])
    assert result.exception is None, result.exception
    assert f'"dialect": "{dialect.name}"' in result.output


def test_probing_nobody_is_told(tmp_path: Path) -> None:
    result = CliRunner().invoke(probe, [str(tmp_path / "nobody")])
    assert isinstance(result.exception, UserError)


# what is left behind


@ALL_DIALECTS
def test_a_client_that_was_busy_leaves_no_descriptor_behind(dialect: Dialect, tmp_path: Path) -> None:
    before = fd_count(collect=True)
    with serving(tmp_path, dialect) as connect:
        for _ in range(3):
            with connect() as client, GuestMemory(0x1000) as ram, EventFd() as eventfd:
                client.dma_map(BASE, ram)
                client.enable_irqs(IrqIndex.MSIX, [eventfd])
                client.regions()
    assert fd_count(collect=True) == before


def test_a_dma_map_that_was_refused_is_not_served(current: Client) -> None:
    with GuestMemory(0x1000, shared=False) as ram, pytest.raises(RemoteError):
        current.dma_map((1 << 64) - 0x800, ram)
    with pytest.raises(ProtocolError):
        current.memory.read((1 << 64) - 0x800, 1)


def test_a_posted_write_is_done_before_a_younger_read(current: Client) -> None:
    for value in range(100):
        current.region_write(0, SCRATCH, value.to_bytes(4, "little"), posted=True)
        assert current.load(0, SCRATCH, 4) == value
    reply = current.raw(9, REGION_ACCESS.pack(SCRATCH, 0, 4))
    assert reply is not None
    assert reply.payload[-4:] == b"\x63\0\0\0"


def test_a_client_that_is_made_of_an_address_says_how_one_connects() -> None:
    address: Any = "/tmp/edu.sock"
    with pytest.raises(TypeError, match=r"Client\.connect\(address\)"):
        Client(address)
