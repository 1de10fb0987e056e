"""A session keeps the protocol's order, answers before it waits for DMA, and outlives what its clients do."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from vfio_user.client import Client, EventFd, GuestMemory, RemoteError
from vfio_user.device import Bar, MsiX, PciDevice, PciIds, Quiesce, ResetKind, register, state
from vfio_user.server import Server
from vfio_user.transport import Listener, Stream, connect
from vfio_user.wire import (
    CURRENT,
    DRAFT_V6,
    NO_REPLY,
    Capabilities,
    Command,
    Dialect,
    Framer,
    Message,
    encode_version,
)
from vfio_user.wire.constants import IrqIndex
from vfio_user.wire.layouts import DMA_ACCESS, DMA_MAP, REGION_ACCESS

GUEST = 0x100000


class Prober(PciDevice):
    """Registers that do what a session has to get right."""

    ids = PciIds(vendor=0x1AF4, device=0x10F1)
    bars = (Bar(0, size=4096),)
    interrupts = MsiX(vectors=2)
    total: int = state(0)
    seen: int = state(0)

    def __init__(self) -> None:
        super().__init__()
        self.resets: list[ResetKind] = []
        self.busy: Quiesce | None = None
        self.fetched: dict[int, int] = {}

    @register(bar=0, offset=0x00, width=4)
    def add(self, value: int) -> None:
        self.total = self.total * 10 + value

    @add.reader
    def _(self) -> int:
        return self.total

    @register(bar=0, offset=0x08, width=8)
    def fetch(self, address: int) -> None:
        """Reads guest memory inside the handler, and says that it is done by `seen`."""
        self.fetched[address] = self.seen = self.dma.read_u32(address)

    @fetch.reader
    def _(self) -> int:
        return self.seen

    @register(bar=0, offset=0x10, width=4)
    def read_needs_dma(self) -> int:
        return self.dma.read_u32(GUEST)

    @register(bar=0, offset=0x18, width=4)
    def breaks(self, value: int) -> None:
        raise RuntimeError("a defect of the device")

    @register(bar=0, offset=0x20, width=4)
    def ring(self, value: int) -> None:
        self.interrupts.trigger(value)

    @register(bar=0, offset=0x28, width=4)
    def later(self, value: int) -> None:
        self.defer(lambda: self.dma.write_u32(GUEST, value))

    @register(bar=0, offset=0x30, width=4)
    def inverted(self) -> int:
        return ~0

    def on_reset(self, kind: ResetKind) -> None:
        self.resets.append(kind)

    def on_quiesce(self) -> Quiesce | None:
        return self.busy


@pytest.fixture
def device() -> Prober:
    return Prober()


@pytest.fixture
def server(device: Prober, tmp_path: Path) -> Iterator[Server]:
    with Server(device, str(tmp_path / "socket")) as server:
        yield server


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    with Client.connect(str(server.listener.address)) as client:
        yield client


def message_memory(client: Client, size: int = 0x10000) -> GuestMemory:
    """Guest memory that the server cannot map: every access is a message."""
    memory = GuestMemory(size, shared=False)
    client.dma_map(GUEST, memory)
    return memory


def comes_true(client: Client, done: Callable[[], bool], seconds: float = 5.0) -> bool:
    """Whether `done` comes to hold, while the client does what a guest does: reads a register, and serves DMA."""
    deadline = time.monotonic() + seconds
    while not done():
        if time.monotonic() > deadline:
            return False
        client.load(0, 0, 4)
    return True


def comes_to_read(client: Client, offset: int, width: int, value: int) -> bool:
    return comes_true(client, lambda: client.load(0, offset, width) == value)


Request = tuple[Command, bytes, int]
"""Command, payload, flags."""


class Wire:
    """A client made of single messages, for what must come in one receive, or in a certain order."""

    def __init__(self, server: Server) -> None:
        self._stream, self._framer = connect(str(server.listener.address)), Framer()
        self._stream.socket.settimeout(5)
        self.send([(Command.VERSION, encode_version(CURRENT, 0, Capabilities()), 0)])
        self.receive(1)

    def send(self, requests: Sequence[Request]) -> None:
        """All in one send; their ids are 0, 1, ..."""
        messages = [
            Message(id, CURRENT.number(command), flags, payload=payload)
            for id, (command, payload, flags) in enumerate(requests)
        ]
        self._stream.send(b"".join(message.encode() for message in messages))

    def answer(self, request: Message, payload: bytes) -> None:
        self._stream.send(request.reply(payload).encode())

    def receive(self, count: int) -> list[Message]:
        """The next messages of the server."""
        found = list(self._framer.messages())
        while len(found) < count:
            received, fds = self._stream.receive(self._framer.room())
            assert received, "the server has closed the connection"
            self._framer.received(received, fds)
            found += self._framer.messages()
        return found

    def close(self) -> None:
        self._stream.close()


@pytest.fixture
def wire(server: Server) -> Iterator[Wire]:
    with contextlib.closing(Wire(server)) as wire:
        yield wire


def reading(offset: int, width: int = 4) -> Request:
    return Command.REGION_READ, REGION_ACCESS.pack(offset, 0, width), 0


def writing(offset: int, value: int, width: int = 4, *, posted: bool = False) -> Request:
    access = REGION_ACCESS.pack(offset, 0, width, tail=value.to_bytes(width, "little"))
    return Command.REGION_WRITE, access, NO_REPLY if posted else 0


def test_posted_writes_take_effect_in_order_before_a_later_read_is_answered(wire: Wire) -> None:
    wire.send([*(writing(0, digit, posted=True) for digit in (1, 2, 3, 4)), reading(0)])
    (reply,) = wire.receive(1)
    assert reply.payload[16:] == (1234).to_bytes(4, "little")


def test_a_write_has_taken_effect_before_a_read_behind_it(wire: Wire) -> None:
    """Both in one receive, so that nothing but the order of the work brings it about."""
    wire.send([writing(0, 7), reading(0), writing(0, 8), reading(0)])
    replies = wire.receive(4)
    assert [reply.payload[16:] for reply in replies if reply.id % 2] == [bytes([7, 0, 0, 0]), bytes([78, 0, 0, 0])]


def test_the_reply_to_a_write_repeats_where_and_how_much(wire: Wire) -> None:
    """A register's own width goes by the table, a part of it does not."""
    wire.send([writing(0, 7), writing(0x2, 0, width=2)])
    assert [reply.payload for reply in wire.receive(2)] == [
        REGION_ACCESS.pack(0, 0, 4),
        REGION_ACCESS.pack(2, 0, 2),
    ]


def test_narrow_and_natural_accesses_keep_their_order(client: Client) -> None:
    """The hot path and the general path share one stream."""
    client.store(0, 0, 4, 1, posted=True)
    client.region_write(0, 0x100, b"nothing there", posted=True)
    client.store(0, 0, 4, 2, posted=True)
    assert client.region_read(0, 0, 2) == (12).to_bytes(2, "little")


def test_a_register_is_cut_to_its_width_on_both_paths(client: Client) -> None:
    assert client.load(0, 0x30, 4) == 0xFFFFFFFF
    assert client.region_read(0, 0x2F, 6) == b"\0\xff\xff\xff\xff\0"


def test_a_write_handler_may_wait_for_message_dma(client: Client) -> None:
    memory = message_memory(client)
    memory.view[:4] = (0xC0FFEE).to_bytes(4, "little")
    client.store(0, 8, 8, GUEST)
    assert comes_to_read(client, 8, 8, 0xC0FFEE)


def test_a_posted_write_handler_may_wait_for_message_dma(client: Client) -> None:
    memory = message_memory(client)
    memory.view[:4] = (0xBEEF).to_bytes(4, "little")
    client.store(0, 8, 8, GUEST, posted=True)
    assert comes_to_read(client, 8, 8, 0xBEEF)


def map_memory() -> Request:
    return Command.DMA_MAP, DMA_MAP.pack(DMA_MAP.size, 3, 0, GUEST, 0x1000), 0


def test_a_write_that_waits_for_dma_is_answered_before_the_dma(wire: Wire) -> None:
    """QEMU cannot serve DMA while a vCPU waits for the write: on the wire the reply has to come first."""
    wire.send([map_memory(), writing(8, GUEST, width=8)])
    seen = [(CURRENT.command(message.command), message.is_reply) for message in wire.receive(3)]
    assert seen == [(Command.DMA_MAP, True), (Command.REGION_WRITE, True), (Command.DMA_READ, False)]


def test_requests_in_flight_have_ids_of_their_own(wire: Wire, device: Prober) -> None:
    """Four handlers wait for DMA, each within the one before; the replies come in another order."""
    addresses = [GUEST + 4 * place for place in range(4)]
    wire.send([map_memory(), *(writing(8, address, width=8) for address in addresses)])
    asked = [message for message in wire.receive(9) if not message.is_reply]
    assert len({message.id for message in asked}) == 4
    for message in asked[2:] + asked[:2]:
        address, count = DMA_ACCESS.unpack(message.payload)
        wire.answer(message, DMA_ACCESS.pack(address, count, tail=(address & 0xFF).to_bytes(4, "little")))
    expected = {address: address & 0xFF for address in addresses}
    end = time.monotonic() + 5.0
    while device.fetched != expected and time.monotonic() < end:
        wire.send([reading(0)])  # may be served while the handlers are still on their way back
        wire.receive(1)
    assert device.fetched == expected


def test_registers_are_served_while_a_handler_waits_for_dma(client: Client) -> None:
    """What a vCPU reads in the meantime is what it would read of hardware that is busy: the old value."""
    memory = message_memory(client)
    memory.view[:4] = (7).to_bytes(4, "little")
    client.store(0, 0, 4, 5)
    writing = client.submit(Command.REGION_WRITE, REGION_ACCESS.pack(8, 0, 8, tail=GUEST.to_bytes(8, "little")))
    reading = client.submit(Command.REGION_READ, REGION_ACCESS.pack(0, 0, 4))
    client.wait(writing)
    assert client.wait(reading).payload[16:] == (5).to_bytes(4, "little")
    assert comes_to_read(client, 8, 8, 7)


def test_a_read_that_would_wait_for_message_dma_is_refused_instead_of_deadlocking(client: Client) -> None:
    message_memory(client)
    with pytest.raises(RemoteError) as refused:
        client.load(0, 0x10, 4)
    assert refused.value.errno == errno.EDEADLK
    assert client.load(0, 0, 4) == 0


def test_deferred_work_may_wait_for_message_dma(client: Client) -> None:
    memory = message_memory(client)
    client.store(0, 0x28, 4, 0xABCD)
    assert comes_true(client, lambda: bytes(memory.view[:2]) == b"\xcd\xab")


def test_a_defect_of_the_device_is_answered_and_the_session_goes_on(client: Client) -> None:
    with pytest.raises(RemoteError) as refused:
        client.store(0, 0x18, 4, 1)
    assert refused.value.errno == errno.EIO
    assert client.load(0, 0, 4) == 0


def test_an_error_in_a_posted_write_is_not_answered(client: Client) -> None:
    client.store(0, 0x18, 4, 1, posted=True)
    assert client.load(0, 0, 4) == 0


def test_commands_wait_while_the_device_gets_quiet(device: Prober, client: Client) -> None:
    device.busy = Quiesce()
    resetting = client.submit(Command.DEVICE_RESET)
    reading = client.submit(Command.REGION_READ, REGION_ACCESS.pack(0, 0, 4))
    assert not client.serve_until(lambda: device.resets != [], timeout=0.1)
    device.busy.done()
    client.gather([resetting, reading])
    assert device.resets == [ResetKind.DEVICE]


def test_a_device_that_cannot_stand_still_refuses_with_its_errno(device: Prober, client: Client) -> None:
    device.busy = Quiesce()
    resetting = client.submit(Command.DEVICE_RESET)
    device.busy.fail(errno.EBUSY)
    assert client.wait(resetting).errno == errno.EBUSY
    assert device.resets == []


def test_a_thread_of_the_device_may_use_message_dma_while_the_session_is_idle(device: Prober, client: Client) -> None:
    memory = message_memory(client)
    memory.view[:4] = b"abcd"
    found: list[bytes] = []
    device.call_soon(lambda: found.append(device.dma.read(GUEST, 4)))
    assert comes_true(client, lambda: found == [b"abcd"])


def test_work_that_a_device_thread_defers_is_done_without_another_command(device: Prober, client: Client) -> None:
    done = threading.Event()
    device.call_soon(lambda: device.defer(done.set))
    assert done.wait(5)


def test_work_for_later_is_done_when_its_time_comes(device: Prober, client: Client) -> None:
    client.load(0, 0, 4)  # attached
    begin, done = time.monotonic(), list[tuple[str, float]]()
    for name, pause in (("last", 0.03), ("first", 0.0), ("second", 0.01)):
        device.call_later(pause, lambda name=name: done.append((name, time.monotonic() - begin)))  # type: ignore[misc]
    assert comes_true(client, lambda: len(done) == 3)
    assert [name for name, _ in done] == ["first", "second", "last"]
    assert done[1][1] >= 0.01
    assert done[2][1] >= 0.03


def test_work_for_later_goes_with_the_client(device: Prober, server: Server) -> None:
    done: list[str] = []
    with Client.connect(str(server.listener.address)) as client:
        client.load(0, 0, 4)
        device.call_later(0.05, lambda: done.append("for nobody"))
    with Client.connect(str(server.listener.address)) as client:
        client.load(0, 0, 4)
        device.call_later(0.1, lambda: done.append("for this one"))
        assert comes_true(client, lambda: bool(done))
    assert done == ["for this one"]


def test_a_client_is_served_while_the_device_always_has_work(device: Prober, client: Client) -> None:
    def work() -> None:
        time.sleep(0.001)  # work that leaves Python to others: they would wait for each other 5 ms at every call
        device.call_later(0, work)

    client.load(0, 0, 4)
    device.call_later(0, work)
    for _ in range(20):
        client.load(0, 0, 4)


def test_replies_do_not_pile_up_behind_a_client_that_asks_for_much(client: Client) -> None:
    """Each read asks for half a BAR; all requests come in few receives."""
    reads = [client.submit(Command.REGION_READ, REGION_ACCESS.pack(2048, 0, 2048)) for _ in range(1000)]
    assert all(len(reply.payload) == 16 + 2048 for reply in client.gather(reads))


def test_a_large_message_dma_is_cut_to_what_the_client_takes(device: Prober, client: Client) -> None:
    size = (2 << 20) + 5
    memory = message_memory(client, 4 << 20)
    memory.view[:size] = os.urandom(size)
    found: list[bytes] = []
    device.call_soon(lambda: found.append(device.dma.read(GUEST, size)))
    assert comes_true(client, lambda: bool(found))
    assert found[0] == memory.view[:size]


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


def test_a_second_client_is_refused_while_one_is_served(
    server: Server, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vfio_user.server.server.GRACE", 0.05)
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


def test_a_slow_device_does_not_stall_another_in_the_same_process(tmp_path: Path) -> None:
    entered, leave = threading.Event(), threading.Event()

    class Slow(Prober):
        @register(bar=0, offset=0x40, width=4)
        def wait(self) -> int:
            entered.set()
            assert leave.wait(10)
            return 1

    with (
        Server(Slow(), str(tmp_path / "slow")) as slow,
        Server(Prober(), str(tmp_path / "quick")) as quick,
        Client.connect(str(slow.listener.address)) as one,
        Client.connect(str(quick.listener.address)) as two,
    ):
        waiting = one.submit(Command.REGION_READ, REGION_ACCESS.pack(0x40, 0, 4))
        assert entered.wait(5)
        two.store(0, 0, 4, 3)
        assert two.load(0, 0, 4) == 3
        leave.set()
        assert one.wait(waiting).payload[16:] == b"\x01\0\0\0"


def test_no_descriptor_is_left_when_sessions_have_ended(device: Prober, tmp_path: Path) -> None:
    def open_descriptors() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    with Server(device, str(tmp_path / "socket")) as server:
        before = open_descriptors()
        for _ in range(20):
            with Client.connect(str(server.listener.address)) as client, EventFd() as eventfd, GuestMemory(4096) as ram:
                client.enable_irqs(IrqIndex.MSIX, [eventfd, eventfd])
                client.dma_map(0, ram)
                client.raw(CURRENT.number(Command.DEVICE_RESET), fds=[eventfd.fileno()], flags=NO_REPLY)
        with Client.connect(str(server.listener.address)):
            pass
        assert server._serving is not None
        server._serving.join(5)
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
        assert ended.wait(5)


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
        stream, framer = connect(str(tmp_path / "socket")), Framer()
        proposal = encode_version(dialect, 0, Capabilities(max_msg_fds=1)).ljust(214, b" ")[:-1] + b"\0"
        stream.send(Message(1, dialect.number(Command.VERSION), payload=proposal.replace(b"\0 ", b"  ")).encode())
        while (reply := framer.next()) is None:
            framer.received(*stream.receive(framer.room()))
        stream.close()
    assert set(json.loads(reply.payload[4:-1])["capabilities"]) == keys
