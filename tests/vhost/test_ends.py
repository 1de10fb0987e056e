"""The end of a front-end's session against what its device has posted."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.vhost.reverse import Reverse
from tests.vhost_frontend import FrontEnd, Queue
from vhost_user.backend import Server


class Leaving(Reverse):
    """Says what it is asked for, also while its front-end leaves, where it waits."""

    def __init__(self) -> None:
        super().__init__()
        self.leaves = threading.Event()
        self.at_detach: Callable[[], None] = lambda: None
        self.settled = threading.Condition()

    def on_detach(self) -> None:
        super().on_detach()
        self.leaves.set()
        self.at_detach()
        assert self.go_on.wait(10)

    def say(self, what: str) -> None:
        with self.settled:
            self.events.append(what)
            self.settled.notify_all()

    def comes_to_say(self, what: str) -> bool:
        with self.settled:
            return self.settled.wait_for(lambda: what in self.events, 5)


@pytest.fixture
def device() -> Leaving:
    return Leaving()


@pytest.fixture
def server(device: Reverse, tmp_path: Path) -> Iterator[Server]:
    with Server(device, f"unix:{tmp_path}/s") as server:
        yield server


def test_work_that_is_posted_while_a_front_end_leaves_is_done_once(
    server: Server, device: Leaving, front_end: FrontEnd
) -> None:
    """By the hook itself, by a thread meanwhile, by a thread while there is nobody; before whatever comes behind it."""
    device.at_detach = lambda: device.call_soon(lambda: device.say("hook"))
    front_end.stream.shutdown()
    assert device.leaves.wait(5)
    device.call_soon(lambda: device.say("thread"))
    device.config_changed()
    assert device.events == ["attach", "detach"]
    device.go_on.set()
    assert device.comes_to_say("thread")
    server._serving.join(5)  # type: ignore[union-attr]
    device.call_soon(lambda: device.say("nobody"))
    assert device.events == ["attach", "detach", "hook", "thread"]
    with FrontEnd(str(server.listener.address)) as other:
        other.negotiate()
        assert device.comes_to_say("nobody")
    assert sorted(device.events[2:6]) == ["attach", "hook", "nobody", "thread"]


def test_work_that_fails_while_a_front_end_leaves_takes_no_other_along(
    server: Server, device: Leaving, front_end: FrontEnd
) -> None:
    def fail() -> None:
        raise RuntimeError("on purpose")

    front_end.stream.shutdown()
    assert device.leaves.wait(5)
    device.call_soon(fail)
    device.call_soon(lambda: device.say("done"))
    device.go_on.set()
    assert device.comes_to_say("done")
    with FrontEnd(str(server.listener.address)) as other:
        other.negotiate()
        ring = queue_of(other)
        assert ring.exchange(b"ab", 2).data == b"ba"
        ring.close()


def queue_of(front_end: FrontEnd) -> Queue:
    front_end.share_memory()
    ring = front_end.queue()
    ring.start()
    return ring
