"""A device stands still for whoever needs it to: asked once, waited for in one place, and told when it may go on."""

from __future__ import annotations

import contextlib
import errno
import logging
import select
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cases import for_each
from tests.descriptors import fd_count
from tests.device_kit import CONFIG
from tests.session_kit import GUEST, message_memory
from vfio_user.client import Client, GuestMemory, RemoteError
from vfio_user.device import (
    Bar,
    DmaRegion,
    PciDevice,
    PciExpress,
    PciIds,
    Quiesce,
    ResetKind,
    function_of,
    register,
    state,
)
from vfio_user.device.standstill import Hold
from vfio_user.server import Server
from vfio_user.server.connection import ClientGone
from vfio_user.wire import Command
from vfio_user.wire.constants import MigrationState
from vfio_user.wire.header import HEADER
from vfio_user.wire.layouts import REGION_ACCESS

FLR = 1 << 15
PROMPT = 1.5
"""Seconds within which a new client is served: less than a device's grace at the end of the one before."""


class Busy(PciDevice):
    """Says what happens to it, and stands still in the way that a test gives it."""

    ids = PciIds(vendor=0x1AF4, device=0x10F3)
    bars = (Bar(0, size=4096),)
    capabilities = (PciExpress(flr=True),)
    value: int = state(0)

    def __init__(self) -> None:
        super().__init__()
        self.events: list[str] = []
        self.happened = threading.Condition()
        self.holds = 0
        self._count_holds()
        self.quiet: Callable[[], Quiesce | None] = lambda: None

    @register(bar=0, offset=0, width=4)
    def store(self, value: int) -> None:
        self.value = value

    @store.reader
    def _(self) -> int:
        return self.value

    def say(self, what: str) -> None:
        with self.happened:
            self.events.append(what)
            self.happened.notify_all()

    def comes_to(self, *events: str) -> bool:
        """Whether just these events happen."""
        with self.happened:
            self.happened.wait_for(lambda: len(self.events) >= len(events), 5)
            return self.events == list(events)

    def _count_holds(self) -> None:
        standstill = function_of(self)._standstill
        hold = standstill.hold

        def counted() -> Hold:
            found = hold()
            with self.happened:
                self.holds += 1
                self.happened.notify_all()
            return found

        standstill.hold = counted  # type: ignore[method-assign]

    def when_held(self, times: int, work: Callable[[], None]) -> threading.Thread:
        """Do `work` on another thread as soon as so many want the device to stand still."""

        def wait() -> None:
            with self.happened:
                assert self.happened.wait_for(lambda: self.holds >= times, 5)
            work()

        thread = threading.Thread(target=wait)
        thread.start()
        return thread

    def on_quiesce(self) -> Quiesce | None:
        self.say("quiesce")
        return self.quiet()

    def on_resume(self) -> None:
        self.say("resume")

    def on_reset(self, kind: ResetKind) -> None:
        self.say(kind.value)

    def soon(self) -> Quiesce:
        """Stands still when what was posted before is done."""
        answer = Quiesce()
        self.call_soon(answer.done)
        return answer


@pytest.fixture
def device() -> Busy:
    return Busy()


@pytest.fixture
def server(device: Busy, tmp_path: Path) -> Iterator[Server]:
    with Server(device, str(tmp_path / "socket")) as server:
        yield server


def connect(server: Server, timeout: float = 5.0) -> Client:
    return Client.connect(str(server.listener.address), timeout=timeout)


def connect_soon(server: Server) -> Client:
    """In a few tries: on a busy machine the one before may take longer to end than a short grace."""
    for _ in range(50):
        with contextlib.suppress(RemoteError):
            return connect(server)
    raise AssertionError("the client before never ends")


def initiate_flr(client: Client) -> None:
    capability = next(at for at in range(0x40, 0x100, 4) if client.config_read(at, 1) == b"\x10")
    access = REGION_ACCESS.pack(capability + 8, CONFIG, 2, tail=FLR.to_bytes(2, "little"))
    assert not client.wait(client.submit(Command.REGION_WRITE, access)).failed


@pytest.mark.parametrize("plan", ["defer", "call_soon", "call_later"])
def test_a_device_may_stand_still_by_any_work_that_it_plans(plan: str, device: Busy, server: Server) -> None:
    def quiet() -> Quiesce:
        answer = Quiesce()
        getattr(device, plan)(*((0.001,) if plan == "call_later" else ()), answer.done)
        return answer

    with connect(server) as client:
        device.quiet = quiet
        client.reset()
        assert device.comes_to("quiesce", "device", "resume")


# The end of a client


def test_a_device_that_stands_still_soon_is_asked_once_and_goes_on_with_the_next_client(
    device: Busy, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("userdev.serving.server.GRACE_SECONDS", PROMPT)
    device.quiet = device.soon
    connect(server).close()
    assert device.comes_to("quiesce", "lost-connection")
    with connect(server):
        assert device.comes_to("quiesce", "lost-connection", "resume")


def test_a_client_that_leaves_while_the_device_gets_quiet_has_it_asked_once(
    device: Busy, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("userdev.serving.server.GRACE_SECONDS", PROMPT)
    answer = Quiesce()
    device.quiet = lambda: answer
    client = connect(server)
    client.submit(Command.DEVICE_RESET)
    assert device.comes_to("quiesce")
    client.close()
    device.when_held(2, lambda: device.call_soon(answer.done))
    assert device.comes_to("quiesce", "lost-connection")
    device.quiet = lambda: None
    with connect(server) as client:
        assert device.comes_to("quiesce", "lost-connection", "resume")
        assert client.load(0, 0, 4) == 0


def test_what_a_device_does_before_it_stands_still_reaches_the_memory_of_the_client_that_has_left(
    device: Busy, server: Server
) -> None:
    answer = Quiesce()

    def finish() -> None:
        device.dma.write_u32(0x1000, 7)
        answer.done()

    client = connect(server)
    with GuestMemory(0x1000) as memory:
        client.dma_map(0x1000, memory)
        device.events.clear()
        device.quiet = lambda: answer
        client.close()
        assert device.comes_to("quiesce")
        device.call_soon(finish)
        assert device.comes_to("quiesce", "lost-connection")
        assert bytes(memory.view[:4]) == b"\7\0\0\0"


def test_a_device_that_never_stands_still_does_not_keep_the_next_client_out(
    device: Busy, server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("vfio_user.server.session.QUIESCE_SECONDS", 0.05)
    answer = Quiesce()
    device.quiet = lambda: answer
    connect(server).close()
    assert device.comes_to("quiesce", "lost-connection")
    with connect(server) as client:
        assert device.comes_to("quiesce", "lost-connection", "resume")
        device.quiet = lambda: None
        answer.done()  # for nobody any more
        client.reset()
        assert device.comes_to("quiesce", "lost-connection", "resume", "quiesce", "device", "resume")
    assert not [record for record in caplog.records if record.exc_info], "who waited is not told any more"


def test_the_next_client_waits_for_such_a_device_no_longer_than_for_any_other_session(
    device: Busy, server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("vfio_user.server.session.QUIESCE_SECONDS", 3600.0)
    monkeypatch.setattr("userdev.serving.server.GRACE_SECONDS", 0.05)
    answer = Quiesce()
    device.quiet = lambda: answer
    connect(server).close()
    assert device.comes_to("quiesce")
    with connect_soon(server) as client:
        assert device.comes_to("quiesce", "lost-connection", "resume")
        assert client.load(0, 0, 4) == 0
        device.quiet = lambda: None  # when this client goes
    assert any("Busy does not stand still" in record.message for record in caplog.records)


def test_a_device_that_a_client_waits_for_is_named(
    device: Busy, server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("vfio_user.server.session.QUIESCE_SECONDS", 0.05)
    answer, said = Quiesce(), threading.Event()
    device.quiet = lambda: answer

    def look(record: logging.LogRecord) -> bool:
        if "Busy does not stand still" in record.getMessage():
            said.set()
        return True

    caplog.handler.addFilter(look)
    with connect(server) as client:
        resetting = client.submit(Command.DEVICE_RESET)
        assert said.wait(60)
        answer.done()
        assert not client.wait(resetting).failed


def test_a_thread_that_waits_for_the_clients_memory_is_told_at_once_that_it_has_gone(
    device: Busy, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stands still when it has given up, which must not take the patience that a device has."""
    monkeypatch.setattr("userdev.serving.server.GRACE_SECONDS", PROMPT)
    answer = Quiesce()
    told: list[OSError] = []

    def work() -> None:
        try:
            device.dma.read(GUEST, 4)
        except OSError as error:
            told.append(error)
            raise
        finally:
            answer.done()

    client = connect(server)
    message_memory(client)
    device.quiet = lambda: answer
    device.call_soon(work)
    assert select.select([client.channel], [], [], 5)[0], "the request has come, and is not answered"
    client.close()
    with connect(server) as client:
        assert client.load(0, 0, 4) == 0
    assert [type(error) for error in told] == [ClientGone]


class Clumsy(Busy):
    """Raises in one of its hooks, while a client is there or when it has gone."""

    fails = ""

    def say(self, what: str) -> None:
        super().say(what)
        if what == self.fails:
            raise RuntimeError("a mistake of the author's")

    def on_dma_unmap(self, region: DmaRegion) -> None:
        self.say("unmap")

    def on_attach(self) -> None:
        self.say("attach")


@for_each(["quiesce", "lost-connection", "unmap", "resume", "attach"])
def test_a_hook_that_raises_when_clients_go_and_come_leaves_nothing_behind(hook: str, tmp_path: Path) -> None:
    device = Clumsy()
    with Server(device, str(tmp_path / "socket")) as server:
        before = fd_count()
        for _ in range(3):
            device.fails = ""
            with connect(server) as client, GuestMemory(1 << 20) as memory:
                client.dma_map(GUEST, memory)
                device.fails = hook
            assert server._serving is not None
            server._serving.join(60)
            with connect(server) as client:  # one that has the device fail as it comes, if at all
                pass
            server._serving.join(60)
            assert (fd_count(), len(device.dma)) == (before, 0)
        device.fails = ""
        with connect(server) as client:
            client.store(0, 0, 4, 7)
            assert client.load(0, 0, 4) == 7


def test_nothing_goes_on_while_nobody_is_there(tmp_path: Path) -> None:
    """What `on_resume` begins wants the guest's memory, and at the end of a client there is none."""

    class GoesOn(Busy):
        def on_resume(self) -> None:
            super().on_resume()
            self.defer(lambda: self.say("worked" if self.dma.has_any(GUEST, 1) else "worked for nobody"))

    device = GoesOn()
    with Server(device, str(tmp_path / "socket")) as server:
        with connect(server) as client, GuestMemory(1 << 20) as memory:
            client.dma_map(GUEST, memory)
            assert device.comes_to("quiesce", "resume", "worked")
        assert server._serving is not None
        server._serving.join(60)
        assert device.comes_to("quiesce", "resume", "worked", "quiesce", "lost-connection")


# While there is a client


def test_replies_leave_before_the_device_is_waited_for(device: Busy, server: Server) -> None:
    answer = Quiesce()
    with connect(server) as client:
        device.quiet = lambda: answer
        reading = client.submit(Command.REGION_READ, REGION_ACCESS.pack(0, 0, 4))
        resetting = client.submit(Command.DEVICE_RESET)
        assert client.wait(reading).payload[16:] == bytes(4)
        answer.done()
        assert not client.wait(resetting).failed


def test_the_worker_may_wait_for_message_dma_while_the_device_gets_quiet(device: Busy, server: Server) -> None:
    answer, found = Quiesce(), list[bytes]()

    def work() -> None:
        found.append(device.dma.read(GUEST, 4))
        answer.done()

    def quiet() -> Quiesce:
        device.call_soon(work)
        return answer

    with connect(server) as client:
        memory = message_memory(client)
        memory.view[:4] = b"abcd"
        device.quiet = quiet
        client.wait(client.submit(Command.DEVICE_RESET))
        assert found == [b"abcd"]
        device.quiet = lambda: None


def test_what_is_no_message_is_answered_though_the_worker_asks_the_client_meanwhile(
    device: Busy, server: Server
) -> None:
    """It comes before the answer to the first read, and the second read leaves before the session is done with it."""
    answer = Quiesce()

    def work() -> None:
        for at in (0, 4):
            device.dma.read(GUEST + at, 4)
        answer.done()

    with connect(server) as client:
        message_memory(client)
        device.quiet = lambda: answer
        resetting = client.submit(Command.DEVICE_RESET)
        broken = client.channel.expect(0x5151, "a message of 3 bytes")
        client.channel.send_bytes(HEADER.pack(0x5151, 0, 3, 0, 0))
        device.call_soon(work)
        assert not client.wait(resetting).failed
        assert client.wait(broken).errno == errno.EINVAL
        device.quiet = lambda: None


def test_migration_waits_until_the_device_stands_still(device: Busy, server: Server) -> None:
    answer = Quiesce()
    with connect(server) as client:
        device.quiet = lambda: answer

        def stand_still() -> None:
            device.say("is still")
            answer.done()

        device.when_held(1, stand_still)
        client.set_migration_state(MigrationState.STOP)
        device.say("stopped")
        client.set_migration_state(MigrationState.RUNNING)
        assert device.comes_to("quiesce", "is still", "stopped", "resume")
        device.quiet = lambda: None


# Resets of the guest's


def test_a_guest_that_resets_twice_while_the_device_gets_quiet_resets_it_once(device: Busy, server: Server) -> None:
    answer = Quiesce()
    with connect(server) as client:
        device.quiet = lambda: answer
        client.store(0, 0, 4, 9)
        initiate_flr(client)
        initiate_flr(client)
        assert client.load(0, 0, 4) == 9, "registers are served meanwhile"
        answer.done()
        assert device.comes_to("quiesce", "flr", "resume")
        assert client.load(0, 0, 4) == 0
        device.quiet = lambda: None


def test_a_command_that_comes_while_a_reset_waits_shares_its_wait(device: Busy, server: Server) -> None:
    answer = Quiesce()
    with connect(server) as client, GuestMemory(1 << 20) as memory:
        device.quiet = lambda: answer
        initiate_flr(client)
        device.when_held(2, answer.done)
        client.dma_map(GUEST, memory)
        assert device.comes_to("quiesce", "flr", "resume")
        device.quiet = lambda: None


def test_a_reset_that_the_guest_was_promised_comes_before_migration_stops_the_device(
    device: Busy, server: Server
) -> None:
    answer = Quiesce()
    with connect(server) as client:
        device.quiet = lambda: answer
        client.store(0, 0, 4, 9)
        initiate_flr(client)
        device.when_held(2, answer.done)
        client.set_migration_state(MigrationState.STOP)
        assert device.comes_to("quiesce", "flr")
        assert device.value == 0
        device.quiet = lambda: None


def test_a_reset_that_the_guest_was_promised_comes_when_its_client_has_gone(device: Busy, server: Server) -> None:
    answer = Quiesce()
    client = connect(server)
    device.quiet = lambda: answer
    client.store(0, 0, 4, 9)
    initiate_flr(client)
    client.close()
    device.when_held(2, answer.done)
    assert device.comes_to("quiesce", "flr", "lost-connection")
    assert device.value == 0
