"""Servers with an interposer before them, as a lab starts them: what the client of such a server sees."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tests.cases import for_each, for_each_row
from userdev.errors import UserError
from vfio_user.client import Client, Disconnected, EventFd, GuestMemory, RemoteError
from vfio_user.harness.booted_guest import BootedGuest
from vfio_user.harness.device import Device
from vfio_user.harness.family import VFIO_USER, VHOST_USER
from vfio_user.harness.interposition import Interposition
from vfio_user.harness.migration.guest_migration import require_migratable
from vfio_user.harness.scratch import Scratch, processes_of
from vfio_user.harness.server import DeviceServer
from vfio_user.harness.site import Site
from vfio_user.interposer.trace import MessageRecord, Note, read_trace
from vfio_user.traces import open_trace
from vfio_user.wire import CURRENT, Command
from vfio_user.wire.constants import IrqIndex
from vhost_user.frontend import FrontEnd

LIVENESS = 0x04
FAULTS = {
    "rules": [{"match": {"command": "REGION_READ", "region": "BAR0", "offset": LIVENESS}, "act": {"reply": "EIO"}}]
}
BY_COMMAND = Device(command=f"{shlex.quote(sys.executable)} -m vfio_user serve edu --socket-path {{socket}}")


@contextmanager
def interposed(folder: Path, device: Device = Device(served="edu"), **options: Any) -> Iterator[DeviceServer]:  # noqa: B008
    with Scratch() as scratch:
        server = DeviceServer(device, Site(scratch, folder), "device", **{"interposition": Interposition(), **options})
        try:
            yield server
        finally:
            server.stop()
        assert not processes_of(scratch.path)
        assert not server.child.group_is_alive()


def inverts(client: Client, value: int) -> bool:
    client.store(0, LIVENESS, 4, value)
    return client.load(0, LIVENESS, 4) == ~value & 0xFFFFFFFF


@for_each_row(
    [
        (False, None),
        (True, Interposition()),
        (Path("scenario.yaml"), Interposition(faults=Path("scenario.yaml"))),
        (FAULTS, Interposition(faults=FAULTS)),
        (Interposition(keep_alive=True), Interposition(keep_alive=True)),
    ]
)
def test_how_to_ask_for_an_interposer(wanted: Any, meant: Interposition | None) -> None:
    assert Interposition.of(wanted) == meant


def test_a_client_does_not_see_the_interposer(tmp_path: Path) -> None:
    with interposed(tmp_path, trace=True) as server, Client.connect(str(server.path)) as client:
        assert inverts(client, 0x12345678)
        assert server.control.call("status")["sessions"] == 1
    assert read_trace(tmp_path / "device.trace").entries


def test_a_scenario_is_what_happens_and_is_kept(tmp_path: Path) -> None:
    with (
        interposed(tmp_path, interposition=Interposition(faults=FAULTS)) as server,
        Client.connect(str(server.path)) as client,
    ):
        with pytest.raises(RemoteError):
            client.load(0, LIVENESS, 4)
        assert client.load(0, 0, 4)
    assert (tmp_path / "device.faults.yaml").exists()


def test_a_killed_server_takes_its_session_along(tmp_path: Path) -> None:
    with interposed(tmp_path) as server, Client.connect(str(server.path)) as client:
        assert inverts(client, 1)
        server.kill()
        with pytest.raises(Disconnected):
            client.serve_until(lambda: False, timeout=5)


@for_each([Device(served="edu"), BY_COMMAND])
def test_a_server_that_is_kept_alive_can_be_killed(device: Device, tmp_path: Path) -> None:
    with (
        interposed(tmp_path, device, interposition=Interposition(keep_alive=True, msg_timeout=60)) as server,
        Client.connect(str(server.path)) as client,
    ):
        assert inverts(client, 1)
        server.kill()
        assert inverts(client, 2)
        server.check()
        assert server.control.survival()["crashes"] == 1


def test_what_goes_past_is_captured_where_that_is_wanted(tmp_path: Path) -> None:
    with (
        interposed(
            tmp_path, trace=True, interposition=Interposition(capture_dma=True, capture_interrupts=True)
        ) as server,
        Client.connect(str(server.path)) as client,
        GuestMemory(1 << 16) as ram,
        EventFd() as interrupt,
    ):
        client.dma_map(0, ram)
        client.config_write(4, b"\6\0")
        client.enable_irqs(IrqIndex.MSIX, [interrupt])
        for offset, value in ((0x80, 0x40000), (0x88, 0x1000), (0x90, 8), (0x98, 0x1 | 0x2 | 0x4)):
            client.store(0, offset, 8, value)
        assert client.wait_interrupt(interrupt) == 1
    trace = read_trace(tmp_path / "device.trace")
    numbers = {entry.message.command for entry in trace.entries if isinstance(entry, MessageRecord)}
    assert CURRENT.number(Command.DMA_WRITE) in numbers
    assert "interrupt" in {entry.event for entry in trace.entries if isinstance(entry, Note)}


def test_a_device_stays_whose_dma_is_captured(tmp_path: Path) -> None:
    """What the interposer writes in its place is in no dirty log: pages were lost."""
    with interposed(tmp_path, interposition=Interposition(capture_dma=True)) as server:
        guest = SimpleNamespace(name="guest", devices=[SimpleNamespace(server=server)])
        with pytest.raises(UserError, match="dirty log"):
            require_migratable(cast(BootedGuest, guest))


def test_a_back_end_of_vhost_user_has_one_too(tmp_path: Path) -> None:
    faults = {"rules": [{"match": {"command": "GET_QUEUE_NUM"}, "act": {"close": "client"}}]}
    rng = Device.parse("vhost-user-rng")
    with (
        interposed(tmp_path, rng, trace=True, interposition=Interposition(faults=faults)) as server,
        FrontEnd(str(server.path)) as front_end,
    ):
        front_end.negotiate()
        assert server.control.call("status")["sessions"] == 1
        with pytest.raises(ConnectionError):
            front_end.queue_count()
    view = open_trace(tmp_path / "device.trace")
    assert "GET_QUEUE_NUM" in {line.decoded.command for line in view.lines() if line.decoded is not None}


def test_what_only_the_other_interposer_has_is_refused() -> None:
    for wanted in (Interposition(keep_alive=True), Interposition(capture_dma=True), Interposition(msg_timeout=1)):
        wanted.check(VFIO_USER)
        with pytest.raises(UserError, match="vhost-user"):
            wanted.check(VHOST_USER)
    Interposition(faults=FAULTS).check(VHOST_USER)
