"""What a device's hooks are told of is so when they are called, and work that it posts is done once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.vhost.reverse import Reverse
from tests.vhost_frontend import PROTOCOL, FrontEnd, P, R
from vhost_user.backend import Server
from vhost_user.device import model_of


class Watching(Reverse):
    """At each hook: what has been done, the configuration, the queues that run and what its driver has by then."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, Any] = {}
        self.running: set[int] = set()

    def _look(self, hook: str) -> None:
        self.found[hook] = (self.done, self.mode, sorted(self.running))

    def on_features(self, features: int) -> None:
        self._look("features")

    def on_start(self, queue: int) -> None:
        self.running.add(queue)
        self._look("start")

    def on_stop(self, queue: int) -> None:
        self.running.discard(queue)
        self._look("stop")

    def on_reset(self) -> None:
        self._look("reset")

    def on_save(self) -> None:
        self._look("save")
        self.done += 10

    def on_load(self) -> None:
        self._look("load")

    def on_config(self, name: str) -> None:
        self._look("config")

    def on_detach(self) -> None:
        self._look("detach")


@pytest.fixture
def device() -> Watching:
    return Watching()


def test_at_each_hook_it_is_so_already(server: Server, stranger: FrontEnd, device: Watching) -> None:
    stranger.negotiate(protocol=PROTOCOL | P.DEVICE_STATE | P.CONFIG)
    stranger.share_memory()
    ring = stranger.queue()
    ring.start()
    for _ in range(3):
        ring.exchange(b"ab", 2)
    stranger.write_config(8, b"\0")
    ring.stop()
    state = stranger.save_state()
    stranger.do(R.RESET_DEVICE)
    stranger.load_state(state)
    ring.start(0)
    stranger.close()
    server.close()
    assert device.found == {
        "features": (0, 1, []),
        "start": (13, 0, [0]),
        "config": (3, 0, [0]),
        "stop": (13, 0, []),
        "save": (3, 0, []),
        "reset": (0, 1, []),
        "load": (13, 0, []),
        "detach": (13, 0, []),
    }


def test_work_that_waits_for_a_front_end_is_done_for_the_first_alone(tmp_path: Path, device: Watching) -> None:
    class Link:
        def __init__(self) -> None:
            self.work: list[str] = []

        def config_changed(self) -> None: ...

        def call_soon(self, work: Any) -> None:
            self.work.append(work.__name__)

    def early() -> None: ...
    def meanwhile() -> None: ...
    def late() -> None: ...

    model, links = model_of(device), [Link(), Link(), Link()]
    device.call_soon(early)
    model.attach(links[0])
    device.call_soon(meanwhile)
    for link in links[1:]:
        model.detach()
        device.call_soon(late)
        model.attach(link)
    assert [link.work for link in links] == [["early", "meanwhile"], ["late"], ["late"]]
