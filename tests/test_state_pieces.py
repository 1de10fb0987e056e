"""State goes to a server in pieces that it can take: small ones, unless it is known to be one of ours."""

from __future__ import annotations

import errno
import socket
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import pytest

from tests.cases import for_each, for_each_row
from tests.interposer_bench import Bench
from tests.scripted_server import ScriptedServer
from userdev.errors import UserError
from userdev.relay.loop import Future, Task
from userdev.transport import Stream
from vfio_user.client import Client, RemoteError
from vfio_user.client.migration_region import MigrationRegisters
from vfio_user.client.regions import Region, RegionCalls
from vfio_user.interposer.errors import RequestRefused
from vfio_user.interposer.migration import MessageMigration
from vfio_user.interposer.migration_region import DATA_OFFSET, RegionMigration
from vfio_user.wire import CURRENT, HEADER, REPLY, Capabilities, Command, Message, encode_version
from vfio_user.wire.constants import MigrationState
from vfio_user.wire.layouts import MIGRATION_DATA, REGION_ACCESS
from vfio_user.wire.state_pieces import OUR_STATE, PIECE, StatePieces

T = TypeVar("T")
MIB = 1 << 20
SOMEBODYS = bytes(range(1, 251)) * 1064  # 266 KB, as a device of somebody else has them
OURS = OUR_STATE + SOMEBODYS * 10
SMALL = [PIECE] * (len(SOMEBODYS) // PIECE) + [len(SOMEBODYS) % PIECE]
LARGE = [PIECE, MIB, MIB, len(OURS) - PIECE - 2 * MIB]


def test_a_server_is_known_by_what_it_has_taken() -> None:
    pieces = StatePieces()
    assert pieces.size(MIB) == PIECE
    pieces.taken(SOMEBODYS[:PIECE])
    assert (pieces.size(MIB), pieces.size(4096)) == (PIECE, 4096)
    pieces.taken(OURS[:PIECE])
    assert (pieces.size(MIB), pieces.size(4096)) == (MIB, 4096)


def test_a_device_without_a_migration_region_is_told_to_have_none() -> None:
    with pytest.raises(UserError, match="no migration region"):
        MigrationRegisters(cast(RegionCalls, Window(index=0)))


@for_each_row([(SOMEBODYS, SMALL), (OURS, LARGE)], ids=["somebody's", "ours"])
def test_our_client_writes_state_in_pieces(state: bytes, sizes: list[int]) -> None:
    with scripted() as (client, server):
        client.load_state(state)
        assert written(server.received) == (sizes, state)


@for_each_row([(SOMEBODYS, SMALL), (OURS, LARGE)], ids=["somebody's", "ours"])
def test_the_interposer_writes_state_in_pieces(state: bytes, sizes: list[int]) -> None:
    with Bench() as bench:
        bench.negotiate()
        migration, received = MessageMigration(bench.session), list[Message]()

        async def load() -> None:
            await migration.set_state(MigrationState.RESUMING)
            for start in range(0, len(state), 3 * MIB):
                await migration.write(state[start : start + 3 * MIB])

        def answer(message: Message) -> Message:
            received.append(message)
            return message.reply(message.payload if message.command == CURRENT.number(Command.DEVICE_FEATURE) else b"")

        served(bench, load(), answer)
        assert written(received) == (sizes, state)


def test_every_state_begins_with_a_small_piece() -> None:
    """The server may have been replaced by another."""
    with Bench() as bench:
        bench.negotiate()
        migration = MessageMigration(bench.session)

        async def load() -> list[int]:
            sizes = []
            for state in (OURS, SOMEBODYS):
                await migration.set_state(MigrationState.RESUMING)
                sizes.append(migration.piece_size)
                await migration.write(state)
                sizes.append(migration.piece_size)
            return sizes

        assert served(bench, load(), lambda message: message.reply(message.payload[:16])) == [PIECE, MIB, PIECE, PIECE]


@dataclass
class Window:
    """A migration region, of which only what is written there is of interest."""

    data_limit: int = MIB
    index: int = 9
    writes: list[int] = field(default_factory=list)
    content: bytearray = field(default_factory=lambda: bytearray(16 * MIB))

    def migration_region_index(self) -> int | None:
        return self.index or None

    def region_info(self, index: int) -> Region:
        return Region(index, len(self.content))

    def load(self, region: int, offset: int, width: int) -> int:
        return 4096

    def store(self, region: int, offset: int, width: int, value: int) -> None:
        pass

    def region_write(self, region: int, offset: int, data: bytes) -> None:
        self.writes.append(len(data))
        self.content[offset : offset + len(data)] = data


@for_each_row([(SOMEBODYS, SMALL), (OURS, LARGE)], ids=["somebody's", "ours"])
def test_our_client_writes_a_piece_of_the_migration_region_in_pieces(state: bytes, sizes: list[int]) -> None:
    window = Window()
    pieces = [state] if state is SOMEBODYS else [state[:PIECE], state[PIECE:]]
    MigrationRegisters(cast(RegionCalls, window)).load(pieces)
    assert window.writes == sizes
    assert window.content[4096:].startswith(pieces[-1])


def test_what_a_server_takes_is_found_out_again_with_each_state() -> None:
    """Another may have taken its place, behind the same address."""
    window = Window()
    registers = MigrationRegisters(cast(RegionCalls, window))
    for state, sizes in (([OURS[:PIECE], OURS[PIECE:]], LARGE), ([SOMEBODYS], SMALL)):
        window.writes.clear()
        registers.load(state)
        assert window.writes == sizes
    with scripted() as (client, server):
        for whole, sizes in ((OURS, LARGE), (SOMEBODYS, SMALL)):
            server.received.clear()
            client.load_state(whole)
            assert written(server.received) == (sizes, whole)


@for_each_row([(SOMEBODYS, SMALL), (OURS, LARGE)], ids=["somebody's", "ours"])
def test_the_interposer_writes_a_piece_of_the_migration_region_in_pieces(state: bytes, sizes: list[int]) -> None:
    window = Window()
    pieces = [state] if state is SOMEBODYS else [state[:PIECE], state[PIECE:]]
    with Bench() as bench:
        bench.negotiate()
        migration = RegionMigration(bench.session, window.index, len(window.content))

        def answer(message: Message) -> Message:
            offset, region, count = access = REGION_ACCESS.unpack(message.payload)
            if message.command == CURRENT.number(Command.REGION_READ):
                return message.reply(
                    message.payload + (4096 if offset == DATA_OFFSET[0] else 1).to_bytes(count, "little")
                )
            if offset >= 4096:
                window.region_write(region, offset, message.payload[REGION_ACCESS.size :])
            return message.reply(REGION_ACCESS.pack(*access))

        for piece in pieces:
            served(bench, migration.write(len(piece).to_bytes(8, "little") + piece), answer)
    assert window.writes == sizes
    assert window.content[4096:].startswith(pieces[-1])


@for_each([65, 1 << 20, 1 << 63], ids=["a byte more than there is", "more than is kept", "anything"])
def test_the_interposer_keeps_no_piece_that_the_migration_region_has_no_room_for(
    says: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever says so, the server or the state that is to be loaded."""
    size = 4096 + 64 if says == 65 else 1 << 62
    monkeypatch.setattr("vfio_user.interposer.migration_region.MAX_PIECE", 64)
    asked: list[int] = []

    def answer(message: Message) -> Message:
        offset, _, count = REGION_ACCESS.unpack(message.payload)
        asked.append(offset)
        value = {8: 1, DATA_OFFSET[0]: 4096, 24: says, 0: 2}.get(offset)
        assert value is not None, "the state is not asked for"
        return message.reply(message.payload + value.to_bytes(count, "little"))

    with Bench() as bench:
        bench.negotiate()
        migration = RegionMigration(bench.session, 9, size)
        with pytest.raises(RequestRefused) as refused:
            served(bench, migration.read(64), answer)
        assert refused.value.errno == errno.EIO
        for _ in range(2):
            with pytest.raises(RequestRefused) as refused:
                served(bench, migration.write((1 << 20).to_bytes(8, "little") + bytes(64)), answer)
            assert refused.value.errno == errno.EINVAL
        assert asked[-1] == 24


@for_each([1, -32], ids=["more", "nothing"])
def test_state_that_is_answered_with_more_or_less_than_was_asked_for_is_refused(more: int) -> None:
    def answer(message: Message) -> Message:
        offset, _, count = REGION_ACCESS.unpack(message.payload)
        value = {8: 1, DATA_OFFSET[0]: 4096, 24: 32}.get(offset)
        data = bytes(count + more) if value is None else value.to_bytes(count, "little")
        return message.reply(message.payload + data)

    with Bench() as bench:
        bench.negotiate()
        with pytest.raises(RequestRefused) as refused:
            served(bench, RegionMigration(bench.session, 9, 1 << 20).read(64), answer)
        assert refused.value.errno == errno.EIO


def test_a_server_that_takes_a_body_in_one_receive_gets_all_of_a_large_state() -> None:
    with OneReceive() as server, Client(server.client_stream) as client:
        client.negotiate()
        client.load_state(SOMEBODYS)
    assert bytes(server.state) == SOMEBODYS


def test_a_refusal_says_that_it_may_be_for_the_size() -> None:
    """To who chose a size of his own."""
    with scripted(refuse=PIECE) as (client, _):
        client.mig_data_write(SOMEBODYS[:PIECE])
        with pytest.raises(
            RemoteError, match="MIG_DATA_WRITE of 266,000 bytes, more than the 32,768 that every server"
        ):
            client.load_state(SOMEBODYS, chunk=MIB)
        with pytest.raises(RemoteError, match="REGION_WRITE of 266,000 bytes, more than"):
            client.region_write(0, 0, SOMEBODYS)


def test_a_refusal_of_the_interposers_own_says_so_too() -> None:
    with Bench() as bench:
        bench.negotiate()
        migration = MessageMigration(bench.session)

        def answer(message: Message) -> Message:
            return message.error(errno.EINVAL) if message.size > 2 * PIECE else message.reply(message.payload)

        with pytest.raises(RequestRefused, match="MIG_DATA_WRITE of 1,048,576 bytes, more than the 32,768"):
            served(bench, migration.write(OURS), answer)


# the other side


@contextmanager
def scripted(*, refuse: int = 16 * MIB) -> Iterator[tuple[Client, ScriptedServer]]:
    """A server that takes everything, but for messages with more than `refuse` bytes of data."""

    def script(server: ScriptedServer, message: Message) -> Message:
        if message.size > refuse + 64:
            return message.error(errno.EINVAL)
        if message.command == server.number(Command.DEVICE_FEATURE):
            return message.reply(message.payload)
        return message.reply()

    with ScriptedServer(script) as server, Client(server.client_stream) as client:
        client.negotiate()
        yield client, server


def served(bench: Bench, coroutine: Coroutine[Future[Any], None, T], answer: Callable[[Message], Message]) -> T:
    """Run a coroutine of the interposer against a server that answers so."""
    task = Task(coroutine)

    def step() -> bool | None:
        if (message := bench.server.next()) is not None:
            bench.server.send(answer(message))
        return task.done or None

    bench.until(step)
    return task.result()


def written(messages: list[Message]) -> tuple[list[int], bytes]:
    """The sizes of the pieces of state in these messages, and the state."""
    number = CURRENT.number(Command.MIG_DATA_WRITE)
    pieces = [message.payload[MIGRATION_DATA.size :] for message in messages if message.command == number]
    return [len(piece) for piece in pieces], b"".join(pieces)


class OneReceive:
    """A server that takes what a header announces with one receive, and refuses what has not come by then."""

    def __init__(self) -> None:
        self._socket, there = socket.socketpair()
        self.client_stream = Stream(there)
        self.state = bytearray()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while len(header := self._socket.recv(HEADER.size)) == HEADER.size:
            id, command, size, _, _ = HEADER.unpack(header)
            body = self._socket.recv(size - HEADER.size)
            message = Message(id, command, payload=body)
            if len(body) != size - HEADER.size:
                self._socket.sendall(message.error(errno.EINVAL).encode())
                return
            payload = b""
            if command == CURRENT.number(Command.VERSION):
                payload = encode_version(CURRENT, 0, Capabilities(max_msg_fds=8, max_data_xfer_size=MIB))
            elif command == CURRENT.number(Command.MIG_DATA_WRITE):
                self.state += body[MIGRATION_DATA.size :]
            else:
                payload = body
            self._socket.sendall(Message(id, command, REPLY, 0, payload).encode())

    def __enter__(self) -> OneReceive:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(60)
        self._socket.close()
