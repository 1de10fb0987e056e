"""A session keeps the protocol's order, answers before it waits for DMA, and lets the device work beside it."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.session_kit import GUEST, Prober, comes_to_read, comes_true, message_memory
from userdev.errors import ProtocolError
from userdev.transport import Framer, connect
from vfio_user.client import Client, RemoteError
from vfio_user.device import Quiesce, ResetKind
from vfio_user.server import Offer, Server
from vfio_user.server.connection import ServerConnection
from vfio_user.server.requests import MAX_DEPTH
from vfio_user.wire import (
    CURRENT,
    NO_REPLY,
    Capabilities,
    Command,
    Message,
    encode_version,
)
from vfio_user.wire.constants import MigrationState
from vfio_user.wire.layouts import DEVICE_INFO, DMA_ACCESS, DMA_MAP, DMA_UNMAP, REGION_ACCESS

Request = tuple[Command, bytes, int]
"""Command, payload, flags."""


class Wire:
    """A client made of single messages, for what must come in one receive, or in a certain order."""

    def __init__(self, server: Server) -> None:
        self._stream, self._framer = connect(str(server.listener.address)), Framer(Message)
        self._stream.socket.settimeout(60)
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


def test_a_value_that_is_too_wide_is_cut_and_said_on_the_short_path_too(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):
        client.store(0, 0, 4, 0xFFFFFFFF)
    assert client.load(0, 0, 4) == 11 * 0xFFFFFFFF & 0xFFFFFFFF
    assert "Prober.add is 0xafffffff5, more than its 4 bytes hold" in caplog.text


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


def map_memory(size: int = 0x1000) -> Request:
    return Command.DMA_MAP, DMA_MAP.pack(DMA_MAP.size, 3, 0, GUEST, size), 0


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
    end = time.monotonic() + 60
    while device.fetched != expected and time.monotonic() < end:
        wire.send([reading(0)])  # may be served while the handlers are still on their way back
        wire.receive(1)
    assert device.fetched == expected


def test_a_handler_keeps_its_deadline_when_one_within_it_has_its_answer(
    wire: Wire, device: Prober, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of three, the innermost is answered first: the others wait on, and not for ever."""
    limits: list[float] = []
    limit = ServerConnection.limit_receives

    def told(connection: ServerConnection, seconds: float) -> None:
        limits.append(seconds)
        limit(connection, seconds)

    monkeypatch.setattr(ServerConnection, "limit_receives", told)
    addresses = [GUEST + 4 * place for place in range(3)]
    wire.send([map_memory(), *(writing(8, address, width=8) for address in addresses)])
    asked = [message for message in wire.receive(7) if not message.is_reply]
    for message in reversed(asked):
        address, count = DMA_ACCESS.unpack(message.payload)
        wire.answer(message, DMA_ACCESS.pack(address, count, tail=bytes(4)))
    end = time.monotonic() + 60
    while len(device.fetched) < 3 and time.monotonic() < end:
        wire.send([reading(0)])
        wire.receive(1)
    assert [bool(seconds) for seconds in limits] == [True, True, True, False]


@pytest.mark.parametrize("tail", [b"", b"\1", b"\1\2\3"])
def test_an_answer_with_fewer_bytes_than_it_says_is_no_answer(wire: Wire, device: Prober, tail: bytes) -> None:
    wire.send([map_memory(), writing(8, GUEST, width=8)])
    [asked] = [message for message in wire.receive(3) if not message.is_reply]
    wire.answer(asked, DMA_ACCESS.pack(GUEST, 4, tail=tail))
    wire.send([reading(0)])
    wire.receive(1)
    assert device.fetched == {}


def test_no_more_handlers_wait_within_each_other_than_a_stack_bears(wire: Wire, device: Prober) -> None:
    """Each was promised its reply; what is one too many is refused, and those before it get what they wait for."""
    addresses = [GUEST + 4 * place for place in range(MAX_DEPTH + 1)]
    wire.send([map_memory(), *(writing(8, address, width=8) for address in addresses)])
    came = wire.receive(2 + 2 * MAX_DEPTH)
    last = next(message for message in came if message.id == MAX_DEPTH + 1 and message.is_reply)
    assert last.errno == errno.EDEADLK
    asked = [message for message in came if not message.is_reply]
    assert len(asked) == MAX_DEPTH
    for message in asked:
        address, count = DMA_ACCESS.unpack(message.payload)
        wire.answer(message, DMA_ACCESS.pack(address, count, tail=b"\7\0\0\0"))
    wire.send([reading(0)])
    wire.receive(1)
    end = time.monotonic() + 60
    while len(device.fetched) < MAX_DEPTH and time.monotonic() < end:
        wire.send([reading(0)])
        wire.receive(1)
    assert device.fetched == dict.fromkeys(addresses[:-1], 7)


def test_no_request_has_the_id_of_one_that_waits(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ids have come round while a first is not answered: of two with one id it would have the other's answer."""
    monkeypatch.setattr("vfio_user.wire.open_requests.IDS", 3)
    wire.send([map_memory(), writing(8, GUEST, width=8)])
    [waiting] = [message for message in wire.receive(3) if not message.is_reply]
    later = []
    for address in (GUEST + 4, GUEST + 8, GUEST + 12):
        wire.send([writing(8, address, width=8)])
        [asked] = [message for message in wire.receive(2) if not message.is_reply]
        wire.answer(asked, DMA_ACCESS.pack(address, 4, tail=bytes(4)))
        later.append(asked.id)
    assert waiting.id not in later


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


def test_registers_are_found_as_the_state_of_migration_has_it_before_and_behind_each_change(client: Client) -> None:
    """Those that are looked up at once, and those that are not; in both directions of each change."""
    S = MigrationState
    for state in (S.STOP, S.STOP_COPY, S.STOP, S.STOP_COPY, S.RUNNING, S.PRE_COPY, S.STOP_COPY, S.RUNNING, S.STOP):
        client.set_migration_state(state)
        for _ in range(2):
            for width in (4, 2):
                if state is S.STOP_COPY:
                    with pytest.raises(RemoteError):
                        client.load(0, 0, width)
                    with pytest.raises(RemoteError):
                        client.store(0, 0, width, 1)
                else:
                    assert client.load(0, 0, width) == 0


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
    assert done.wait(60)


def test_work_for_later_is_done_when_its_time_comes(device: Prober, client: Client) -> None:
    client.load(0, 0, 4)  # attached
    done: list[tuple[list[float], float]] = []  # between when it was to be done, and when it was
    for pause in (0.03, 0.0, 0.01):
        due = [time.monotonic() + pause]
        device.call_later(pause, lambda due=due: done.append((due, time.monotonic())))  # type: ignore[misc]
        due.append(time.monotonic() + pause)
    assert comes_true(client, lambda: len(done) == 3)
    for (one, _), (next_, _) in itertools.combinations(done, 2):
        assert one[0] <= next_[1], "in the order of their times"
    assert all(when >= due[0] for due, when in done)


def test_work_for_later_goes_with_the_client(device: Prober, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    now = 0.0
    monkeypatch.setattr("userdev.serving.worker.monotonic", lambda: now)
    with Client.connect(str(server.listener.address)) as client:
        client.load(0, 0, 4)
        device.call_later(60, lambda: done.append("for nobody"))
    with Client.connect(str(server.listener.address)) as client:
        client.load(0, 0, 4)
        now = 60.0
        device.call_later(0, lambda: done.append("for this one"))
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


def test_a_device_asks_for_no_more_in_one_message_than_its_server_takes(device: Prober, tmp_path: Path) -> None:
    """An answer with more ends the session, as any message does that is too long."""
    size = 200_000
    with (
        Server(device, str(tmp_path / "less"), offer=Offer(max_data_xfer_size=4096)),
        Client.connect(str(tmp_path / "less")) as client,
    ):
        memory = message_memory(client, 1 << 20)
        memory.view[:size] = os.urandom(size)
        found: list[bytes] = []
        device.call_soon(lambda: found.append(device.dma.read(GUEST, size)))
        assert comes_true(client, lambda: bool(found))
        assert found[0] == memory.view[:size]
        assert client.service.served[Command.DMA_READ] == -(-size // 4096)


def test_a_large_message_dma_is_cut_to_what_the_client_takes(device: Prober, client: Client) -> None:
    size = (2 << 20) + 5
    memory = message_memory(client, 4 << 20)
    memory.view[:size] = os.urandom(size)
    found: list[bytes] = []
    device.call_soon(lambda: found.append(device.dma.read(GUEST, size)))
    assert comes_true(client, lambda: bool(found))
    assert found[0] == memory.view[:size]


@pytest.mark.parametrize("write", [False, True])
def test_nothing_is_asked_of_memory_whose_unmap_has_been_answered(wire: Wire, device: Prober, write: bool) -> None:
    """A large access is several messages, and the client may give these addresses to somebody else between two."""
    size, refusals = 3 << 20, list[ProtocolError]()

    def use() -> None:
        with pytest.raises(ProtocolError) as refusal:
            device.dma.write(GUEST, bytes(size)) if write else device.dma.read(GUEST, size)
        refusals.append(refusal.value)

    wire.send([map_memory(size)])
    wire.receive(1)
    device.call_soon(use)
    [asked] = wire.receive(1)
    wire.send([(Command.DMA_UNMAP, DMA_UNMAP.pack(DMA_UNMAP.size, 0, GUEST, size), 0)])
    wire.receive(1)
    access = DMA_ACCESS.unpack(asked.payload)
    wire.answer(asked, DMA_ACCESS.pack(*access, tail=b"" if write else bytes(access.length)))
    end = time.monotonic() + 60
    while not refusals and time.monotonic() < end:
        wire.send([reading(0)])
        assert [message.is_reply for message in wire.receive(1)] == [True]
    assert [refusal.errno for refusal in refusals] == [errno.EFAULT]


def test_what_comes_in_one_piece_with_version_is_answered_though_nothing_more_comes(server: Server) -> None:
    info = Message(1, CURRENT.number(Command.GET_INFO), payload=DEVICE_INFO.pack(DEVICE_INFO.size, 0, 0, 0))
    version = Message(0, CURRENT.number(Command.VERSION), payload=encode_version(CURRENT, 0, Capabilities()))
    framer = Framer(Message)
    with contextlib.closing(connect(str(server.listener.address), timeout=10)) as stream:
        stream.socket.settimeout(10)
        stream.send(version.encode() + info.encode())
        answers: list[Message] = []
        while len(answers) < 2:
            received, _ = stream.receive(framer.room())
            assert received
            framer.received(received)
            answers += framer.messages()
    assert [(answer.id, answer.failed) for answer in answers] == [(0, False), (1, False)]
