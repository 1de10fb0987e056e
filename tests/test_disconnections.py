"""A client that goes, at every moment and in every way: the server lets everything go, stops, and serves the next.

The server is a process; so is a client that is killed. avocado_tests/disconnections.py has the cells with guests.
"""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from avocado_tests.disconnections import CELLS, NOT_TRIED, Moment, goes_for_good, posts_writes
from avocado_tests.leftovers import client_things
from vfio_user.client import Client, EventFd, GuestMemory, RemoteError
from vfio_user.harness.device import Device
from vfio_user.harness.scratch import Scratch
from vfio_user.harness.server import DeviceServer
from vfio_user.harness.site import Site
from vfio_user.wire import CURRENT, Command, Message
from vfio_user.wire.constants import IrqIndex, MigrationState
from vfio_user.wire.layouts import DMA_MAP, REGION_ACCESS

IDENTIFICATION, LIVENESS, STREAM, STORM, HOLD, WORK_DONE = 0x00, 0x04, 0xA0, 0xA8, 0xB0, 0xB8
COMMAND, MEMORY, BUS_MASTER = 0x04, 0x2, 0x4
GUEST = 0x100000
DEADLINE = 60.0
QUIET = 0.02  # seconds in which what must have ended would show itself


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DeviceServer]:
    """One for all cells: each finds what the one before left."""
    with Scratch() as scratch:
        busy = DeviceServer(
            Device.parse("avocado_tests.busy_edu:BusyEdu"), Site(scratch, tmp_path_factory.mktemp("server")), "busy"
        )
        yield busy
        busy.stop()


class Leaving:
    """A client that has come as far as a moment, with what it has."""

    def __init__(self, path: Path, moment: Moment) -> None:
        self.memory = GuestMemory(1 << 16)
        self.vectors = [EventFd() for _ in range(4)]
        self.client: Client | None = None
        if moment is Moment.VERSION:
            self.socket = socket.socket(socket.AF_UNIX)
            self.socket.connect(str(path))
            self.socket.sendall(Message(0, CURRENT.number(Command.VERSION), payload=bytes(64)).encode()[:40])
        else:
            self.client = Client.connect(f"unix:{path}")
            self.socket = socket.socket(fileno=os.dup(self.client.channel.fileno()))
            self._come_to(self.client, moment)

    def _come_to(self, client: Client, moment: Moment) -> None:
        if moment is Moment.MAP:
            request = DMA_MAP.pack(DMA_MAP.size, 3, 0, GUEST, len(self.memory))
            assert self.memory.fd is not None
            client.submit(Command.DMA_MAP, request, [self.memory.fd])
            return
        client.dma_map(GUEST, self.memory)
        client.enable_irqs(IrqIndex.MSIX, self.vectors)
        client.config_write(COMMAND, (MEMORY | BUS_MASTER).to_bytes(2, "little"))
        match moment:
            case Moment.READ:
                client.store(0, HOLD, 4, 100)
                client.submit(Command.REGION_READ, REGION_ACCESS.pack(HOLD, 0, 4))
            case Moment.WRITES:
                client.submit(Command.REGION_WRITE, REGION_ACCESS.pack(LIVENESS, 0, 4, tail=bytes(4)))
            case Moment.BURST:
                for value in range(500):
                    client.store(0, LIVENESS, 4, value, posted=True)
                self.socket.sendall(b"\x01\x00\x0a")  # the beginning of the next
            case Moment.DMA | Moment.MIGRATING:
                self.memory.view[:8] = b"\xff" * 8
                client.store(0, STREAM, 8, GUEST)
                until(lambda: bytes(self.memory.view[:8]) != b"\xff" * 8, "DMA")
                if moment is Moment.MIGRATING:
                    client.set_migration_state(MigrationState.PRE_COPY)
            case Moment.INTERRUPT:
                client.store(0, STORM, 4, 1)
                self.vectors[0].wait()

    def close(self) -> None:
        """Let all go at once."""
        self.socket.close()
        if self.client is not None:
            self.client.close()
        self.memory.close()
        for vector in self.vectors:
            vector.close()


def closes(path: Path, moment: Moment) -> None:
    Leaving(path, moment).close()


def closes_one_direction(path: Path, moment: Moment) -> None:
    """It says no more, and hears the server out: what was asked is answered, and then the server closes its side."""
    leaving = Leaving(path, moment)
    leaving.socket.shutdown(socket.SHUT_WR)
    leaving.socket.settimeout(DEADLINE)
    answers = bytearray()
    while data := leaving.socket.recv(65536):
        answers += data
    owed = {
        Moment.MAP: Command.DMA_MAP,
        Moment.READ: Command.REGION_READ,
        Moment.WRITES: Command.REGION_WRITE,
    }
    commands = [int.from_bytes(answers[2:4], "little")] if answers else []
    assert commands == ([CURRENT.number(owed[moment])] if moment in owed else [])
    leaving.close()


def is_killed(path: Path, moment: Moment) -> None:
    with client_process(path, moment) as pid:
        os.kill(pid, signal.SIGKILL)


def is_terminated(path: Path, moment: Moment) -> None:
    with client_process(path, moment) as pid:
        os.kill(pid, signal.SIGTERM)


def pauses_and_is_killed(path: Path, moment: Moment) -> None:
    """A client that stands still has not gone: another one is refused meanwhile."""
    with client_process(path, moment) as pid:
        os.kill(pid, signal.SIGSTOP)
        if moment is not Moment.VERSION:  # that one is not yet served as the client
            with pytest.raises(RemoteError, match="EBUSY"):
                Client.connect(f"unix:{path}").close()
        os.kill(pid, signal.SIGCONT)
        os.kill(pid, signal.SIGKILL)


@contextmanager
def client_process(path: Path, moment: Moment) -> Iterator[int]:
    """A client in a process of its own that has come as far as `moment`, and waits to be ended."""
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            leaving = Leaving(path, moment)
            os.write(writer, b"!")
            signal.pause()
            leaving.close()
        finally:
            os._exit(1)
    try:
        os.close(writer)
        assert os.read(reader, 1) == b"!", "the client did not come as far as that"
        yield pid
    finally:
        os.close(reader)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


@pytest.mark.parametrize("moment", Moment, ids=lambda moment: moment.value)
@pytest.mark.parametrize("goes", [closes, closes_one_direction, is_killed, is_terminated])
def test_the_server_lets_go_and_serves_the_next(
    server: DeviceServer, goes: Callable[[Path, Moment], None], moment: Moment
) -> None:
    said = len(server.log.read_text())
    goes(server.path, moment)
    until_it_has_let_go(server)
    complaint = server.log.read_text()[said:]
    assert ("in the middle of a message" in complaint) == (moment is Moment.BURST), complaint
    with Client.connect(f"unix:{server.path}") as client:
        assert client.load(0, IDENTIFICATION, 4) == 0x010000ED
        assert client.migration_state() is MigrationState.RUNNING
        before = client.load(0, WORK_DONE, 4)
        time.sleep(QUIET)
        assert client.load(0, WORK_DONE, 4) == before, "it works on for a client that is gone"
        if moment is Moment.BURST:
            assert client.load(0, LIVENESS, 4) == 499 ^ 0xFFFFFFFF, "all that was posted before has happened"


def test_what_qemu_does_not_survive_is_not_tried() -> None:
    """The guest posts no writes where what QEMU is connected to goes for good, and writes all the same."""
    for row, column in CELLS.items():
        left_out = {moment for (other, moment) in NOT_TRIED if other == row}
        assert left_out == ({Moment.BURST} if goes_for_good(row) else set())
        assert not left_out & column.keys()
        assert not goes_for_good(row) or Moment.WRITES in column
    assert not posts_writes(Moment.WRITES)


def test_a_client_that_pauses_is_a_client_still(server: DeviceServer) -> None:
    pauses_and_is_killed(server.path, Moment.DMA)
    until_it_has_let_go(server)
    Client.connect(f"unix:{server.path}").close()


def until_it_has_let_go(server: DeviceServer) -> None:
    left: list[str] = []

    def has_let_go() -> bool:
        left[:] = client_things(server.child.pid)
        return not left

    try:
        until(has_let_go, "the server to let go")
    except AssertionError as late:
        late.add_note(f"it still has {left}")
        raise


def until(happened: Callable[[], bool], what: str) -> None:
    """Wait for what another process does, which gives no event."""
    end = time.monotonic() + DEADLINE
    while not happened():
        assert time.monotonic() < end, f"waited {DEADLINE:g} s for {what}"
        time.sleep(0.002)
