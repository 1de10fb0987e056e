"""A client that does not mean well has its own session, and nothing else: not the program, not the next client's."""

from __future__ import annotations

import errno
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from tests.device_kit import descriptors_left
from tests.processes import until
from tests.session_kit import GUEST, Prober, comes_true, message_memory
from userdev.errors import ProtocolError
from userdev.transport import Stream, connect
from vfio_user.client import Client, EventFd, GuestMemory, NoAnswer, RemoteError
from vfio_user.client.service import Service
from vfio_user.device import Quiesce, ResetKind
from vfio_user.server import Server
from vfio_user.server.session import Session
from vfio_user.wire import CURRENT, Capabilities, Command, Message, encode_version
from vfio_user.wire.constants import DmaFlags, IrqIndex
from vfio_user.wire.layouts import DMA_MAP, REGION_ACCESS

pytestmark = pytest.mark.usefixtures("hurry")

FETCH, RING = 8, 0x20
ALMOST_FULL = 0xFFFFFFFFFFFFFFFE


@pytest.fixture
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a server waits for before it looks closer is less here."""
    monkeypatch.setattr("userdev.serving.server.GRACE_SECONDS", 0.5)
    monkeypatch.setattr("vfio_user.server.session.LOCK_SECONDS", 0.2)


def ask_to_fetch(client: Client) -> None:
    """Have the device read guest memory, which is served by messages; do not wait for it."""
    message_memory(client)
    client.submit(Command.REGION_WRITE, REGION_ACCESS.pack(FETCH, 0, 8, tail=GUEST.to_bytes(8, "little")))


def in_time(call: Callable[[], object], seconds: float) -> bool:
    """Whether a call ends within so many seconds."""
    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(seconds)
    return not thread.is_alive()


def serves_the_next(server: Server) -> bool:
    with Client.connect(str(server.listener.address), timeout=10) as client:
        return client.load(0, 0, 4) == 0


def test_a_map_whose_descriptor_was_dropped_is_refused_and_not_taken_for_memory_by_message(
    device: Prober, client: Client
) -> None:
    with GuestMemory(1 << 20) as memory:
        with descriptors_left(0), pytest.raises(RemoteError) as refused:
            client.dma_map(GUEST, memory)
        assert refused.value.errno == errno.EMFILE
        assert not len(device.dma)
        client.dma_map(GUEST, memory)
        assert [region.mode for region in device.dma.regions] == ["mapped"]


def test_a_server_that_was_at_its_limit_of_descriptors_serves_the_next_client(server: Server) -> None:
    path = str(server.listener.path)
    with socket.socket(socket.AF_UNIX) as unlucky:
        unlucky.settimeout(60)
        with descriptors_left(0):
            unlucky.connect(path)
            assert unlucky.recv(1) == b""
    assert serves_the_next(server)


def test_a_client_that_leaves_a_busy_device_and_no_descriptors_leaves_it_to_the_next(
    device: Prober, server: Server, client: Client
) -> None:
    """Nobody can wait for the device then; what it has of its client goes all the same, or nobody ever could again."""
    message_memory(client)
    device.busy = Quiesce()
    session = server._session
    assert session is not None
    with descriptors_left(0):
        client.channel.end_sending()
        until(lambda: session._over)
    device.busy = None
    assert (len(device.dma), device.resets) == (0, [ResetKind.LOST_CONNECTION])
    assert serves_the_next(server)


@pytest.mark.parametrize("flags", [0, DmaFlags.FILE_IO])
def test_a_client_that_gives_its_own_end_away_ends_all_the_same(server: Server, flags: int) -> None:
    client = Client.connect(str(server.listener.address))
    memory = DMA_MAP.pack(DMA_MAP.size, DmaFlags.READ | DmaFlags.WRITE | flags, 0, GUEST, 4096)
    with pytest.raises(RemoteError):
        client.request(Command.DMA_MAP, memory, [client.channel.fileno()])
    client.close()
    assert serves_the_next(server)


class TestATwinSocketWithoutAnswer:
    @pytest.fixture
    def mute(self, server: Server, monkeypatch: pytest.MonkeyPatch) -> Client:
        """A client that answers nothing that the device asks."""
        monkeypatch.setattr(Service, "answer", lambda service, request: None)
        return Client.connect(str(server.listener.address), twin_socket=True)

    def test_ends_with_its_client_whatever_becomes_of_the_socket(self, server: Server, mute: Client) -> None:
        ask_to_fetch(mute)
        assert mute.channel._main.stream is not None
        mute.channel._main.stream.close()  # and not the twin
        assert serves_the_next(server)
        mute.close()

    def test_ends_with_the_server(self, server: Server, mute: Client) -> None:
        ask_to_fetch(mute)
        assert in_time(server.close, 5)
        mute.close()

    def test_is_waited_for_once(self, device: Prober, mute: Client, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("vfio_user.server.negotiation.ANSWER_SECONDS", 0.2)
        message_memory(mute)
        refused = []
        for _ in range(3):
            with pytest.raises(RemoteError) as error:
                mute.store(0, FETCH, 8, GUEST)
            refused.append(error.value.errno)
        assert refused == [errno.ETIMEDOUT, errno.ECONNRESET, errno.ECONNRESET]
        mute.close()


class TestMessageDmaWithoutAnswer:
    @pytest.fixture
    def mute(self, server: Server, monkeypatch: pytest.MonkeyPatch) -> Client:
        """A client that answers nothing that the device asks on the main socket."""
        monkeypatch.setattr(Service, "answer", lambda service, request: None)
        monkeypatch.setattr("vfio_user.server.requests.ANSWER_SECONDS", 0.3)
        return Client.connect(str(server.listener.address))

    @pytest.mark.parametrize("talks", [False, True], ids=["a silent client", "one that goes on asking"])
    def test_ends_after_a_time(self, device: Prober, server: Server, mute: Client, talks: bool) -> None:
        ask_to_fetch(mute)
        mute.load(0, 0, 4)  # which is served meanwhile
        done = threading.Event()
        device.call_soon(done.set)
        assert comes_true(mute, done.is_set) if talks else done.wait(5), "what others ask of the device is done"
        assert mute.load(0, 0, 4) == 0
        assert server._session is not None
        assert not len(server._session._requests._open), "what comes now is for nobody"
        mute.close()

    def test_ends_on_a_thread_of_the_devices_too(self, device: Prober, mute: Client) -> None:
        message_memory(mute)
        failed: list[int] = []

        def read() -> None:
            try:
                device.dma.read(GUEST, 4)
            except ProtocolError as error:
                failed.append(error.errno)

        device.call_soon(read)
        assert comes_true(mute, lambda: failed == [errno.ETIMEDOUT])
        mute.close()


@pytest.mark.parametrize(
    ("bound", "most", "received"), [("MAX_BACKLOG_SIZE", 1 << 16, 1 << 20), ("MAX_BACKLOG", 30, 512)]
)
def test_commands_held_while_a_device_gets_quiet_have_a_size_and_a_number(
    device: Prober,
    server: Server,
    client: Client,
    monkeypatch: pytest.MonkeyPatch,
    bound: str,
    most: int,
    received: int,
) -> None:
    """The client is not read from beyond that: its sends wait, and all of it is done in the end."""
    monkeypatch.setattr(f"vfio_user.server.session.{bound}", most)
    device.busy = busy = Quiesce()
    held: dict[str, int] = {}
    enough, holds_enough = threading.Event(), Session._holds_enough

    def told(session: Session) -> bool:
        """By the session's own thread: it adds what it has received before it asks again."""
        if found := holds_enough(session):
            enough.set()
        return found

    def watch() -> None:
        assert enough.wait(60)
        session = server._session
        assert isinstance(session, Session)
        backlog = list(session._backlog)
        held["MAX_BACKLOG_SIZE"] = sum(message.size for message in backlog)
        held["MAX_BACKLOG"] = len(backlog)
        busy.done()

    monkeypatch.setattr(Session, "_holds_enough", told)
    watching = threading.Thread(target=watch)
    reset = client.submit(Command.DEVICE_RESET)
    watching.start()
    body = REGION_ACCESS.pack(2048, 0, 2048, tail=bytes(2048))
    writes = [client.submit(Command.REGION_WRITE, body) for _ in range(1000)]
    assert not any(reply.failed for reply in client.gather([reset, *writes]))
    watching.join()
    assert most <= held[bound] < most + received


class TestAnEventfdThatIsFullAndMadeBlocking:
    @pytest.fixture
    def eventfd(self, client: Client) -> EventFd:
        eventfd = EventFd()
        client.enable_irqs(IrqIndex.MSIX, [eventfd])
        os.set_blocking(eventfd.fd, True)
        os.eventfd_write(eventfd.fd, ALMOST_FULL)
        return eventfd

    def test_costs_the_client_its_vector_and_the_device_goes_on(
        self, device: Prober, client: Client, eventfd: EventFd
    ) -> None:
        ringing = client.submit(Command.REGION_WRITE, REGION_ACCESS.pack(RING, 0, 4, tail=bytes(4)))
        done = threading.Event()

        def is_answered() -> bool:
            device.call_soon(done.set)  # somebody who waits for the device, at the latest when asked once more
            try:
                client.wait(ringing, timeout=2)
            except NoAnswer:
                return False
            return True

        assert any(is_answered() for _ in range(30))
        assert done.wait(60), "what others ask of the device is done"
        client.store(0, RING, 4, 0)
        assert client.load(0, 0, 4) == 0
        eventfd.close()

    def test_does_not_keep_the_next_client_away(self, server: Server, client: Client, eventfd: EventFd) -> None:
        client.submit(Command.REGION_WRITE, REGION_ACCESS.pack(RING, 0, 4, tail=bytes(4)))
        client.close()
        assert serves_the_next(server)
        eventfd.close()

    def test_does_not_keep_the_server_from_ending(self, server: Server, client: Client, eventfd: EventFd) -> None:
        client.submit(Command.REGION_WRITE, REGION_ACCESS.pack(RING, 0, 4, tail=bytes(4)))
        assert in_time(server.close, 5)
        eventfd.close()


@pytest.mark.parametrize("beginning", [b"", b"\1\0\1\0", Message(1, 1, payload=bytes(100)).encode()[:50]])
def test_a_client_that_does_not_say_its_version_keeps_nobody_away_for_long(
    server: Server, monkeypatch: pytest.MonkeyPatch, beginning: bytes
) -> None:
    monkeypatch.setattr("vfio_user.server.server.VERSION_SECONDS", 0.2)
    silent = connect(str(server.listener.address), timeout=5)
    silent.send(beginning)
    assert serves_the_next(server)
    silent.close()


def test_a_version_that_comes_byte_by_byte_has_the_same_deadline(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vfio_user.server.server.VERSION_SECONDS", 0.3)
    slow = connect(str(server.listener.address), timeout=5)
    proposal = Message(1, 1, payload=encode_version(CURRENT, 0, Capabilities())).encode()
    end = time.monotonic() + 60
    poll = select.poll()
    poll.register(slow, select.POLLIN | select.POLLRDHUP)
    sent = 0
    while not poll.poll(50) and time.monotonic() < end:
        with suppress(BrokenPipeError):  # it may hang up between the two
            slow.send(proposal[sent : sent + 1])
        sent += 1
    assert 0 < sent < len(proposal)
    slow.close()


def test_whoever_has_made_the_connection_may_take_its_time(device: Prober, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vfio_user.server.server.VERSION_SECONDS", 0.01)
    ours, theirs = socket.socketpair()
    with Server(device, f"fd:{theirs.detach()}"):
        assert not select.select([ours], [], [], 0.2)[0]
        client = Client(Stream(ours))
        client.negotiate()
        assert client.load(0, 0, 4) == 0
        client.close()


def test_a_client_that_reads_nothing_is_given_up(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vfio_user.server.connection.SEND_SECONDS", 0.2)
    client = Client.connect(str(server.listener.address))
    stream = client.channel._main.stream
    reading = Message(1, CURRENT.number(Command.REGION_READ), payload=REGION_ACCESS.pack(2048, 0, 2048)).encode()

    def ask_on() -> None:
        while True:
            stream.send(reading)

    with pytest.raises(OSError, match=r"Broken pipe|Connection reset"):
        ask_on()
    assert serves_the_next(server)
    client.close()


STUCK = """
import sys, threading
from vfio_user import PciDevice, PciIds, register
from userdev.serving import program, server
from vfio_user import serve

class Stuck(PciDevice):
    ids = PciIds(1, 2)
    @register(bar=0, offset=0, width=4)
    def wait(self, value: int) -> None:
        threading.Event().wait()

server.END_SECONDS, program.END_SECONDS = {server}, {program}
serve(Stuck(), sys.argv[1])
threading.Event().wait({after})
"""


@pytest.mark.parametrize(
    ("seconds", "status"),
    [({"server": 0.2, "program": 30, "after": 0}, 0), ({"server": 0.2, "program": 1, "after": 60}, 1)],
    ids=["the session does not end", "the program does not end"],
)
def test_a_program_ends_when_it_is_told_to_whatever_its_device_does(
    tmp_path: Path, seconds: dict[str, float], status: int
) -> None:
    script = tmp_path / "stuck.py"
    script.write_text(STUCK.format(**seconds))
    command = [sys.executable, str(script), str(tmp_path / "s")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as program:
        assert program.stderr is not None
        assert "is listening" in program.stderr.readline()
        client = Client.connect(str(tmp_path / "s"))
        client.submit(Command.REGION_WRITE, REGION_ACCESS.pack(0, 0, 4, tail=bytes(4)))
        client.submit(Command.GET_INFO)
        program.send_signal(signal.SIGTERM)
        try:
            _, said = program.communicate(timeout=20)
        finally:
            program.kill()
        client.close()
    assert program.returncode == status
    assert ("Timeout" in said) is bool(status)
    assert status or f"may keep it ({script}:11, in wait)" in said


THREADED = """
import pathlib, signal, sys, threading
from vfio_user import PciDevice, PciIds
from vfio_user.server import serve

class Threaded(PciDevice):
    ids = PciIds(1, 2)
    def __init__(self) -> None:
        super().__init__()
        threading.Thread(target=self.work, daemon=True).start()
    def work(self) -> None:
        while not pathlib.Path(sys.argv[1]).exists():
            pass
        signal.pthread_kill(threading.get_ident(), signal.{name})
        threading.Event().wait()

serve(Threaded(), sys.argv[1])
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_program_ends_as_it_should_whichever_thread_has_the_signal(tmp_path: Path, name: str) -> None:
    """The kernel chooses, and a device may have threads of its own."""
    path = tmp_path / "s"
    command = [sys.executable, "-c", THREADED.replace("{name}", name), str(path)]
    assert subprocess.run(command, stderr=subprocess.DEVNULL, timeout=30, check=False).returncode == 0
    assert not path.exists()
