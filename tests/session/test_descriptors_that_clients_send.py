"""A server that serves for weeks keeps no descriptor of a client that has gone, however the client sent it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from tests.cases import for_each_row
from tests.descriptors import fd_count
from tests.processes import until
from tests.session_kit import GUEST, Prober, comes_to_read, message_memory
from userdev.transport import close_all
from vfio_user.client import Client
from vfio_user.device import Quiesce
from vfio_user.server import Server
from vfio_user.wire import CURRENT, REPLY, Command, Message
from vfio_user.wire.constants import DmaFlags, IrqIndex, IrqSetFlags
from vfio_user.wire.layouts import DMA_MAP, IRQ_SET

FETCH = 8
MAP = DMA_MAP.pack(DMA_MAP.size, DmaFlags.READ | DmaFlags.WRITE, 0, GUEST, 4096)
WIRE = IRQ_SET.pack(IRQ_SET.size, IrqSetFlags.DATA_EVENTFD | IrqSetFlags.TRIGGER, IrqIndex.MSIX, 0, 2)
Way = Callable[[Client, Server, list[int]], object]


class Asked(Prober):
    """Says when it has been asked to stand still."""

    asked = False

    def on_quiesce(self) -> Quiesce | None:
        self.asked = True
        return super().on_quiesce()


def _any_command(client: Client, server: Server, fds: list[int]) -> None:
    """With anything in it, so that most are refused."""
    for payload in (b"", bytes(16), bytes(256)):
        for number in range(1, 20):
            pending = client.channel.submit(Message(client.channel.fresh_id(), number, payload=payload, fds=fds), "")
            assert pending is not None
            close_all(client.wait(pending).fds)


def _while_quiet(client: Client, server: Server, fds: list[int]) -> None:
    """Behind a command that waits for the device; the client does not wait for either."""
    device = server.device
    session = server._session
    assert isinstance(device, Asked)
    assert session is not None
    device.busy = busy = Quiesce()
    client.submit(Command.DEVICE_RESET)
    until(lambda: device.asked)  # or both are received as one
    client.submit(Command.DMA_MAP, MAP, fds[:1])
    until(lambda: bool(session._backlog))
    client.close()
    until(lambda: session._gone)
    busy.done()


def _stray_reply(client: Client, server: Server, fds: list[int]) -> None:
    message_memory(client).view[:4] = b"\7\0\0\0"
    client.channel._lanes[-1].stream.send(Message(0x100, CURRENT.number(Command.DMA_READ), REPLY).encode(), fds)
    client.store(0, FETCH, 8, GUEST)
    assert comes_to_read(client, FETCH, 8, 7)


def _unfinished(client: Client, server: Server, fds: list[int]) -> None:
    client.channel.send_bytes(Message(1, CURRENT.number(Command.DMA_MAP), payload=MAP).encode()[:-1], fds)


WAYS: dict[str, tuple[bool, Way]] = {
    "any command": (False, _any_command),
    "memory that stays": (False, lambda client, _, fds: client.request(Command.DMA_MAP, MAP, fds[:1])),
    "too many for memory": (False, lambda client, _, fds: client.gather([client.submit(Command.DMA_MAP, MAP, fds)])),
    "vectors that stay": (False, lambda client, _, fds: client.request(Command.SET_IRQS, WIRE, fds)),
    "vectors, with no answer awaited": (False, lambda client, _, fds: client.post(Command.SET_IRQS, WIRE, fds)),
    "held while the device gets quiet": (False, _while_quiet),
    "a reply": (False, _stray_reply),
    "a reply on the twin socket": (True, _stray_reply),
    "a message that does not end": (False, _unfinished),
}


@for_each_row((name, twin, way) for name, (twin, way) in WAYS.items())
def test_a_server_keeps_no_descriptor_of_a_client_that_has_gone(name: str, twin: bool, way: Way) -> None:
    with tempfile.TemporaryDirectory() as folder, Server(Asked(), str(Path(folder) / "socket")) as server:
        before = fd_count(collect=True)
        fds = [os.eventfd(0) for _ in range(2)] if "vectors" in name else [os.memfd_create("guest") for _ in range(2)]
        for fd in fds:
            if "vectors" not in name:
                os.ftruncate(fd, 4096)
        with Client.connect(str(server.listener.address), twin_socket=twin) as client:
            way(client, server, fds)
        close_all(fds)
        if server._serving is not None:
            server._serving.join(60)
        assert fd_count(collect=True) == before, name
