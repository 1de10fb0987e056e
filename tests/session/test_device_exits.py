"""`sys.exit` in a device's code, which ends a thread and says nothing: a defect as any other, answered and logged."""

from __future__ import annotations

import errno
import logging
import sys
import threading

import pytest

from tests.session_kit import GUEST
from vfio_user.client import Client, GuestMemory, RemoteError
from vfio_user.device import Bar, DmaRegion, PciDevice, PciIds, Quiesce, register
from vfio_user.device.dma import Dma
from vfio_user.server import Server
from vfio_user.testing import memory_file


class Exits(PciDevice):
    """Gives up in the hook or handler that is named."""

    ids = PciIds(vendor=0x1AF4, device=0x10F4)
    bars = (Bar(0, size=4096),)
    where = ""

    def at(self, where: str) -> None:
        if where == self.where:
            sys.exit("no way to go on")

    @register(bar=0, offset=0, width=4)
    def value(self) -> int:
        self.at("reader")
        return 7

    @value.writer
    def _(self, value: int) -> None:
        self.at("writer")

    @register(bar=0, offset=8, width=4)
    def plan(self, value: int) -> None:
        self.defer(lambda: self.at("deferred"))

    def on_quiesce(self) -> Quiesce | None:
        self.at("quiesce")
        return None

    def on_resume(self) -> None:
        self.at("resume")

    def on_dma_unmap(self, region: DmaRegion) -> None:
        self.at("unmap")

    def on_load(self) -> None:
        self.at("load")

    def unclaimed_read(self, region: int, offset: int, count: int) -> bytes:
        self.at("unclaimed")
        return bytes(count)


@pytest.fixture
def device() -> Exits:
    return Exits()


ASKED = {
    "reader": lambda client: client.load(0, 0, 4),
    "writer": lambda client: client.store(0, 0, 4, 1),
    "unclaimed": lambda client: client.load(0, 0x100, 4),
    "quiesce": lambda client: client.reset(),
    "resume": lambda client: client.reset(),
    "load": lambda client: client.load_state(client.save()),
}


@pytest.mark.parametrize("where", ASKED)
def test_who_asked_is_answered_and_the_log_says_it(
    device: Exits, client: Client, caplog: pytest.LogCaptureFixture, where: str
) -> None:
    device.where = where
    with pytest.raises(RemoteError) as refused:
        ASKED[where](client)
    assert refused.value.errno == errno.EIO
    assert "no way to go on" in caplog.text
    device.where = ""
    client.reset()
    assert client.load(0, 0, 4) == 7


def test_deferred_work_that_exits_is_said(device: Exits, client: Client, caplog: pytest.LogCaptureFixture) -> None:
    device.where = "deferred"
    client.store(0, 8, 4, 1)
    assert client.load(0, 0, 4) == 7
    assert "no way to go on" in caplog.text


def test_work_that_a_thread_has_posted_and_that_exits_leaves_the_worker_at_work(
    device: Exits, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    client.load(0, 0, 4)
    device.where = "posted"
    device.call_soon(lambda: device.at("posted"))
    done = threading.Event()
    device.call_soon(done.set)
    assert done.wait(5)
    assert "no way to go on" in caplog.text


@pytest.mark.parametrize("where", ["quiesce", "unmap"])
def test_a_hook_that_exits_at_the_clients_end_leaves_nothing_behind(
    device: Exits, server: Server, caplog: pytest.LogCaptureFixture, where: str
) -> None:
    with Client.connect(str(server.listener.address)) as client, GuestMemory(1 << 20) as memory:
        client.dma_map(GUEST, memory)
        device.where = where
    with Client.connect(str(server.listener.address)) as client:
        device.where = ""
        assert client.load(0, 0, 4) == 7
    assert len(device.dma) == 0
    assert any(
        "no way to go on" in str(record.exc_info) for record in caplog.records if record.levelno >= logging.WARNING
    )


def test_memory_is_let_go_whole_although_a_hook_exits() -> None:
    def exits(region: DmaRegion) -> None:
        sys.exit("no way to go on")

    dma = Dma(None, exits)
    for page in range(3):
        dma.map(page * 4096, 4096, 3, memory_file(4096))
    with pytest.raises(SystemExit):
        dma.unmap_all()
    assert len(dma) == 0
