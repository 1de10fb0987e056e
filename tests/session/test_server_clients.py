"""A server and its clients, one after the other and at once: what stays for the next, and what is left at the end."""

from __future__ import annotations

import errno
import gc
import json
import os
import socket
import threading
import weakref
from pathlib import Path

import pytest

from tests.everything_device import Everything
from tests.session_kit import GUEST, Prober, comes_to_read, message_memory
from userdev.transport import Framer, Listener, Stream, connect
from vfio_user.client import Client, EventFd, GuestMemory, RemoteError
from vfio_user.device import ResetKind, register
from vfio_user.migration.region import MigrationRegion
from vfio_user.server import Server
from vfio_user.server.session import Session
from vfio_user.wire import (
    CURRENT,
    DRAFT_V6,
    NO_REPLY,
    REGION_MIGRATION,
    Capabilities,
    Command,
    Dialect,
    Message,
    encode_version,
)
from vfio_user.wire.constants import IrqIndex, MigrationState, RegionFlags
from vfio_user.wire.layouts import REGION_ACCESS


def test_a_client_that_goes_away_leaves_the_device_ready_for_the_next(device: Prober, server: Server) -> None:
    address = str(server.listener.address)
    with Client.connect(address) as first, EventFd() as eventfd, GuestMemory(1 << 20) as memory:
        first.enable_irqs(IrqIndex.MSIX, [eventfd])
        first.dma_map(GUEST, memory)
        first.store(0, 0, 4, 9)
    with Client.connect(address) as second:
        assert second.load(0, 0, 4) == 9, "the device's state stays"
        assert len(device.dma) == 0, "its view of the old client's memory goes"
    assert device.resets == [ResetKind.LOST_CONNECTION] * len(device.resets)


def test_a_device_keeps_nothing_of_the_sessions_that_it_had(tmp_path: Path) -> None:
    """It outlives its servers: a session that it still knew would hold memory, and be asked for what it cannot do."""
    device, sessions = Everything(), []
    with Server(device, str(tmp_path / "socket")) as server:
        for _ in range(2):
            with Client.connect(str(server.listener.address)) as client, GuestMemory(1 << 20) as memory:
                client.dma_map(GUEST, memory)
                client.start_logging(4096)
                client.set_migration_state(MigrationState.STOP)
                sessions += [weakref.ref(each) for each in gc.get_objects() if type(each) is Session]
                client.set_migration_state(MigrationState.RUNNING)
    del server
    gc.collect()
    assert len(sessions) >= 2
    assert [session for session in sessions if session() is not None] == []
    device.close()


def test_a_second_client_is_refused_while_one_is_served(
    server: Server, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("userdev.serving.server.GRACE_SECONDS", 0.05)
    with pytest.raises(RemoteError) as refused:
        Client.connect(str(server.listener.address))
    assert refused.value.errno == errno.EBUSY
    assert client.load(0, 0, 4) == 0


def test_the_socket_is_private_and_gone_at_the_end(device: Prober, tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with Server(device, str(path)):
        assert path.stat().st_mode & 0o777 == 0o600
    assert not path.exists()


def test_the_twin_socket_carries_the_servers_requests(device: Prober, server: Server) -> None:
    with Client.connect(str(server.listener.address), twin_socket=True) as client:
        assert client.server is not None
        assert client.server.capabilities.twin_socket_fd_index == 0
        memory = message_memory(client)
        memory.view[:4] = (77).to_bytes(4, "little")
        client.store(0, 8, 8, GUEST)
        assert comes_to_read(client, 8, 8, 77)


@pytest.mark.parametrize("dialect", [CURRENT, DRAFT_V6], ids=lambda dialect: dialect.name)
def test_dma_goes_by_message_over_tcp(device: Prober, dialect: Dialect) -> None:
    with Server(device, "tcp:127.0.0.1:0", dialect=dialect) as server:
        port = server.listener.socket.getsockname()[1]
        with Client.connect(f"tcp:127.0.0.1:{port}", dialect=dialect) as client:
            memory = message_memory(client)
            memory.view[:4] = (99).to_bytes(4, "little")
            client.store(0, 8, 8, GUEST)
            assert comes_to_read(client, 8, 8, 99)


def test_a_client_without_descriptors_is_told_of_the_same_regions_and_to_map_none(tmp_path: Path) -> None:
    device = Everything()
    with (
        Server(device, "tcp:127.0.0.1:0", dialect=REGION_MIGRATION) as far,
        Server(device, str(tmp_path / "near"), dialect=REGION_MIGRATION) as near,
    ):
        with Client.connect(str(near.listener.address), dialect=REGION_MIGRATION) as client:
            here = client.regions()
        port = far.listener.socket.getsockname()[1]
        with Client.connect(f"tcp:127.0.0.1:{port}", dialect=REGION_MIGRATION) as client:
            there = client.regions()
        v1 = here[-1]
        assert v1.mappable == MigrationRegion.sparse
        assert any(region.mappable for region in here[:-1])
        assert not any(region.mappable or region.flags & RegionFlags.MMAP for region in there)
        rights = RegionFlags.READ | RegionFlags.WRITE
        assert [(r.size, r.flags & rights) for r in there] == [(r.size, r.flags & rights) for r in here]
    device.close()


def test_doorbells_are_listed_with_all_that_they_are_told_apart_by_the_newest_first(
    device: Prober, server: Server
) -> None:
    device.add_ioeventfd(0, 0x00, 4)
    device.add_ioeventfd(0, 0x20, 4, datamatch=5)
    with Client.connect(str(server.listener.address)) as client:
        newer, older = client.io_fds(0)
    assert (newer.gpa_offset, newer.size, newer.datamatch) == (0x20, 4, 5)
    assert (older.gpa_offset, older.size) == (0x00, 4)
    assert newer.flags != older.flags
    assert len({newer.fd, older.fd} - {None}) == 2
    for entry in (newer, older):
        assert entry.fd is not None
        os.close(entry.fd)


def test_a_slow_device_does_not_stall_another_in_the_same_process(tmp_path: Path) -> None:
    entered, leave = threading.Event(), threading.Event()

    class Slow(Prober):
        @register(bar=0, offset=0x40, width=4)
        def wait(self) -> int:
            entered.set()
            assert leave.wait(60)
            return 1

    with (
        Server(Slow(), str(tmp_path / "slow")) as slow,
        Server(Prober(), str(tmp_path / "quick")) as quick,
        Client.connect(str(slow.listener.address)) as one,
        Client.connect(str(quick.listener.address)) as two,
    ):
        waiting = one.submit(Command.REGION_READ, REGION_ACCESS.pack(0x40, 0, 4))
        assert entered.wait(60)
        two.store(0, 0, 4, 3)
        assert two.load(0, 0, 4) == 3
        leave.set()
        assert one.wait(waiting).payload[16:] == b"\x01\0\0\0"


def test_no_descriptor_is_left_when_sessions_have_ended(device: Prober, tmp_path: Path) -> None:
    def open_descriptors() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    with Server(device, str(tmp_path / "socket")) as server:
        before = open_descriptors()
        for turn in range(20):
            joined = Client.connect(str(server.listener.address), twin_socket=bool(turn % 2))
            with joined as client, EventFd() as eventfd, GuestMemory(4096) as ram:
                client.enable_irqs(IrqIndex.MSIX, [eventfd, eventfd])
                client.dma_map(0, ram)
                client.raw(CURRENT.number(Command.DEVICE_RESET), fds=[eventfd.fileno()], flags=NO_REPLY)
        with Client.connect(str(server.listener.address)):
            pass
        assert server._serving is not None
        server._serving.join(60)
        assert open_descriptors() == before


def test_an_inherited_listening_socket_serves_many_clients(device: Prober, tmp_path: Path) -> None:
    with Listener(str(tmp_path / "socket")) as listener:
        inherited = os.dup(listener.socket.fileno())
        with Server(device, f"fd:{inherited}"):
            for _ in range(2):
                with Client.connect(str(tmp_path / "socket")) as client:
                    assert client.load(0, 0, 4) == 0


def test_an_inherited_connection_serves_one_client_and_says_when_it_ended(device: Prober) -> None:
    ours, theirs = socket.socketpair()
    ended = threading.Event()
    with Server(device, f"fd:{theirs.detach()}", ended=ended.set):
        client = Client(Stream(ours))
        client.negotiate()
        assert client.load(0, 0, 4) == 0
        client.close()
        assert ended.wait(60)


@pytest.mark.parametrize(
    ("dialect", "keys"),
    [
        (CURRENT, {"max_msg_fds", "max_data_xfer_size", "pgsizes", "max_dma_maps", "migration"}),
        (DRAFT_V6, {"max_fds", "migration"}),
    ],
    ids=["current", "draft-v6"],
)
def test_a_server_offers_the_capabilities_that_its_dialect_has(
    device: Prober, tmp_path: Path, dialect: Dialect, keys: set[str]
) -> None:
    with Server(device, str(tmp_path / "socket"), dialect=dialect):
        stream, framer = connect(str(tmp_path / "socket")), Framer(Message)
        proposal = encode_version(dialect, 0, Capabilities(max_msg_fds=1)).ljust(214, b" ")[:-1] + b"\0"
        stream.send(Message(1, dialect.number(Command.VERSION), payload=proposal.replace(b"\0 ", b"  ")).encode())
        while (reply := framer.next()) is None:
            framer.received(*stream.receive(framer.room()))
        stream.close()
    assert set(json.loads(reply.payload[4:-1])["capabilities"]) == keys
