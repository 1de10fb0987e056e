"""A device that refuses to stand still: who hears of it, and what comes all the same; and for what none is asked to."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable

import pytest

from tests.session.test_quiescing import Busy, connect, initiate_flr
from tests.session.test_quiescing import device as device
from tests.session.test_quiescing import server as server
from tests.session_kit import GUEST, comes_true
from userdev.errors import ProtocolError
from vfio_user.client import RemoteError
from vfio_user.device import Quiesce
from vfio_user.server import Server
from vfio_user.wire import Command
from vfio_user.wire.constants import DmaFlags, UnmapFlags
from vfio_user.wire.layouts import DMA_MAP, DMA_UNMAP


def test_no_device_stands_still_for_what_is_refused_by_its_form(device: Busy, server: Server) -> None:
    page, size = 0x1000, DMA_MAP.size
    of_map = {
        "unknown flags": (size, 0x13),
        "two modes": (size, DmaFlags.MMAP | DmaFlags.FILE_IO),
        "a mode without its file": (size, DmaFlags.MMAP),
        "no room": (size - 1, DmaFlags.READ),
    }
    of_unmap = {
        "unknown flags": (DMA_UNMAP.size, 4, page),
        "all, and an address": (DMA_UNMAP.size, UnmapFlags.ALL, page),
        "no room": (DMA_UNMAP.size - 1, 0, page),
    }
    requests = {f"DMA_MAP: {what}": (Command.DMA_MAP, DMA_MAP.pack(*of, 0, GUEST, page)) for what, of in of_map.items()}
    for what, (argsz, flags, length) in of_unmap.items():
        requests[f"DMA_UNMAP: {what}"] = (Command.DMA_UNMAP, DMA_UNMAP.pack(argsz, flags, GUEST, length))
    with connect(server) as client:
        for what, (command, payload) in requests.items():
            assert client.wait(client.submit(command, payload)).errno == errno.EINVAL, what
        assert device.holds == 0


def raise_it() -> Quiesce:
    raise ProtocolError("busy", errno.EBUSY)


def fail_at_once() -> Quiesce:
    answer = Quiesce()
    answer.fail(errno.EBUSY)
    return answer


def fail_later() -> Quiesce:
    answer = Quiesce()
    threading.Thread(target=answer.fail, args=[errno.EBUSY]).start()
    return answer


@pytest.mark.parametrize("refuse", [raise_it, fail_at_once, fail_later])
def test_a_guest_resets_a_device_that_refuses_and_a_client_does_not(
    device: Busy, server: Server, refuse: Callable[[], Quiesce]
) -> None:
    """PCI has no way to refuse a guest's reset, DEVICE_RESET has one; nobody is told to go on who never stood still."""
    with connect(server) as client:
        device.quiet = refuse
        client.store(0, 0, 4, 9)
        with pytest.raises(RemoteError) as refused:
            client.reset()
        assert refused.value.errno == errno.EBUSY
        assert client.load(0, 0, 4) == 9
        initiate_flr(client)
        assert comes_true(client, lambda: device.value == 0)
        assert device.comes_to("quiesce", "quiesce", "flr")
