"""A control socket whose command comes while the session of the device's client, or front-end, ends."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.cases import for_each
from tests.session_kit import Prober
from tests.vhost.reverse import Reverse
from tests.vhost_frontend import FrontEnd
from userdev.control import ControlClient
from userdev_servers import control
from userdev_servers.control import ControlSocket
from vfio_user.client import Client
from vfio_user.device import ResetKind
from vfio_user.server import Server
from vhost_user.backend import Server as VhostServer


class Held:
    """Where a device is kept, in one of its hooks, until the test says so."""

    def __init__(self) -> None:
        self.reached, self.released = threading.Event(), threading.Event()

    def wait(self) -> None:
        self.reached.set()
        assert self.released.wait(10)


class HeldProber(Prober, Held):
    def __init__(self) -> None:
        Prober.__init__(self)
        Held.__init__(self)

    def on_reset(self, kind: ResetKind) -> None:
        if kind is ResetKind.LOST_CONNECTION:
            self.wait()


class HeldReverse(Reverse, Held):
    def __init__(self) -> None:
        Reverse.__init__(self)
        Held.__init__(self)

    def on_detach(self) -> None:
        self.wait()


@contextmanager
def vfio(folder: Path) -> Iterator[tuple[Any, Callable[[], None]]]:
    device = HeldProber()
    with Server(device, str(folder / "s")) as server:
        client = Client.connect(str(server.listener.address))
        client.load(0, 0, 4)
        yield device, client.close


@contextmanager
def vhost(folder: Path) -> Iterator[tuple[Any, Callable[[], None]]]:
    device = HeldReverse()
    with VhostServer(device, f"unix:{folder}/s") as server:
        front_end = FrontEnd(str(server.listener.address))
        front_end.negotiate()
        yield device, front_end.close


SERVED: Mapping[str, Any] = {"vfio-user": vfio, "vhost-user": vhost}


@for_each(SERVED)
def test_what_was_asked_of_a_device_while_its_session_ends_is_done_and_answered(
    protocol: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is the host's, and not the client's: who asks would wait for nothing, and not know whether it was done."""
    monkeypatch.setattr(control, "ANSWER_SECONDS", 2.0)
    posted = threading.Event()
    run_soon = control._run_soon

    def run_and_say(device: Any, work: Callable[[], None]) -> None:
        run_soon(device, work)
        posted.set()

    monkeypatch.setattr(control, "_run_soon", run_and_say)
    with SERVED[protocol](tmp_path) as (device, leave), ThreadPoolExecutor(1) as other:
        done: list[str] = []

        def do(device: Any, request: Mapping[str, Any]) -> dict[str, Any]:
            done.append("done")
            return {"times": len(done)}

        served = ControlSocket(tmp_path / "control", device, {"do": do})
        with ControlClient(tmp_path / "control", timeout=5) as controller:
            leave()
            assert device.reached.wait(5)
            answer = other.submit(controller.call, "do")
            posted.wait(5)
            device.released.set()
            assert answer.result(5) == {"times": 1}
            assert controller.call("do") == {"times": 2}
        served.close()


def test_whose_command_is_not_done_in_time_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the command's own id, or whoever has asked more than one thing would not know which."""
    monkeypatch.setattr(control, "ANSWER_SECONDS", 0.01)
    monkeypatch.setattr(control, "_run_soon", lambda device, work: None)
    served = ControlSocket(tmp_path / "control", Prober(), {"do": lambda device, request: {}})
    with socket.socket(socket.AF_UNIX) as asking:
        asking.settimeout(30)
        asking.connect(str(tmp_path / "control"))
        asking.sendall(b'{"command": "do", "id": 7}\n')
        answer = json.loads(asking.makefile().readline())
    assert (answer["id"], "error" in answer) == (7, True)
    served.close()
