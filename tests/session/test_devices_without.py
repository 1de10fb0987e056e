"""Sessions with devices that lack what most have, and what a device asks of a client that has gone."""

from __future__ import annotations

import errno
import json
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cases import for_each
from tests.conformance_target import InProcess
from userdev.busy_wait import BusyWait
from userdev.transport import Stream
from vfio_user import Bar, PciDevice, PciIds
from vfio_user.client import Client, RemoteError
from vfio_user.client.conformance import CATALOGUE, Outcome, run
from vfio_user.server import Server
from vfio_user.server.connection import ClientGone, ServerConnection
from vfio_user.server.owed import Owed
from vfio_user.server.requests import ClientRequests
from vfio_user.wire import CURRENT, DIALECTS, Command, Dialect, Message
from vfio_user.wire.constants import Feature
from vfio_user.wire.layouts import VERSION


class Bare(PciDevice):
    """Nothing but a BAR: no interrupt, no migration, no capability, no declared register."""

    ids = PciIds(0x1AF4, 0x10F6)
    bars = (Bar(0, size=4096),)
    migratable = False
    error_interrupt = False
    release_interrupt = False


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    device = Bare()
    with Server(device, f"unix:{tmp_path / 's'}"):
        yield f"unix:{tmp_path / 's'}"
    device.close()


@for_each(DIALECTS.values(), ids=DIALECTS)
def test_a_device_without_anything_keeps_every_rule_that_it_has(dialect: Dialect, tmp_path: Path) -> None:
    groups = ("info", "region_info", "irq_info", "set_irqs", "feature", "migration", "dirty_pages", "reset")
    checks = [check for check in CATALOGUE if check.group in groups]
    with InProcess(tmp_path, Bare, dialect) as target:
        results = list(run(checks, target, dialect, timeout=5))
    assert [result for result in results if result.outcome in (Outcome.FAIL, Outcome.NOT_JUDGED, Outcome.BROKEN)] == []
    ran = {result.check.id for result in results if result.outcome is Outcome.PASS}
    assert {"info/describes", "reset/succeeds", "irq_info/describes-every-type"} <= ran


def test_a_device_that_does_not_migrate_says_so_and_refuses_all_of_it(server: str) -> None:
    with Client.connect(server) as client:
        assert not client.has_feature(Feature.MIGRATION)
        for command, payload in (
            (Command.DEVICE_FEATURE, (8).to_bytes(4, "little") + (1 << 18 | 1).to_bytes(4, "little")),
            (Command.MIG_DATA_READ, (24).to_bytes(4, "little") + (16).to_bytes(4, "little")),
            (Command.MIG_DATA_WRITE, (12).to_bytes(4, "little") + (4).to_bytes(4, "little") + b"abcd"),
        ):
            reply = client.raw(CURRENT.number(command), payload)
            assert reply is not None
            assert (reply.failed, reply.errno) == (True, errno.EINVAL), command
        assert client.device_info().num_regions == 9


def test_a_device_without_interrupts_triggers_none_and_is_told_of_none(server: str) -> None:
    with Client.connect(server) as client:
        assert [client.irq_info(index).nr_vectors for index in range(5)] == [0] * 5
        for index in range(5):
            with pytest.raises(RemoteError) as refused:
                client.trigger_irqs(index)
            assert refused.value.errno == errno.EINVAL
            client.disable_irqs(index)


ASKS: dict[str, Callable[[ClientRequests], object]] = {
    "a read": lambda requests: requests.dma_read(0x1000, 8),
    "a write": lambda requests: requests.dma_write(0x1000, b"8 bytes!"),
}


@pytest.mark.parametrize("ask", ASKS.values(), ids=ASKS)
@pytest.mark.parametrize("on_session_thread", [True, False], ids=["on the session's thread", "on another"])
def test_what_is_asked_of_a_client_that_has_gone_is_told_at_once(
    ask: Callable[[ClientRequests], object], on_session_thread: bool
) -> None:
    ours, theirs = socket.socketpair()
    lock = threading.RLock()
    requests = ClientRequests(CURRENT, ServerConnection(Stream(ours), 1 << 20, BusyWait()), lock, Owed(), lambda: None)
    requests.serving_thread = threading.get_ident() if on_session_thread else None
    with lock:
        requests.client_gone()
    with pytest.raises(ClientGone):
        ask(requests)
    theirs.setblocking(False)
    with pytest.raises(BlockingIOError):
        theirs.recv(1)  # nothing was sent to it
    requests.interrupt(0, 0)
    ours.close()
    theirs.close()


@pytest.mark.parametrize("minor", [0, 1])
def test_the_reply_to_version_is_json_that_ends(server: str, minor: int) -> None:
    client = Client(Stream(_connected(server)))
    with client:
        pending = client.channel.expect(1, "VERSION")
        payload = VERSION.pack(0, minor, tail=b'{"capabilities":{"max_msg_fds":8}}\0')
        client.channel.send_bytes(Message(1, CURRENT.number(Command.VERSION), payload=payload).encode())
        reply = client.wait(pending)
        assert VERSION.unpack(reply.payload)[:2] == (0, minor)
        said = json.loads(reply.payload[VERSION.size : -1])["capabilities"]
        assert reply.payload[-1] == 0
        assert said.keys() >= {"max_msg_fds", "max_data_xfer_size"}
        assert "migration" not in said


def _connected(address: str) -> socket.socket:
    made = socket.socket(socket.AF_UNIX)
    made.connect(address.removeprefix("unix:"))
    return made
