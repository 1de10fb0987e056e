"""A device for tests of back-ends: it gives back what it reads, and remembers what it was told."""

from __future__ import annotations

import threading

from vhost_user.device import Chain, Queues, Taken, VhostDevice, config_field, queue, state
from vhost_user.frontend.conformance import DeviceKind

REVERSE = DeviceKind("reverse", 42, 0, (b"abc", 8), lambda done: done.data == b"cba", 9)
"""What the device below is to checks: its id, a request of its, and what is right."""


class Reverse(VhostDevice):
    """Gives back what it reads, backwards; "wait" once `go_on` is set."""

    virtio_id = 42
    queues = Queues(2, size=64)
    features = 1 << 5 | 1 << 50
    done: int = state(0)
    capacity: int = config_field(8, 7)
    mode: int = config_field(1, 1, writable=True)

    def __init__(self) -> None:
        super().__init__()
        self.events: list[str] = []
        self.go_on = threading.Event()

    @queue()
    def reverse(self, chain: Chain) -> Taken:
        data = chain.read()
        if data == b"fail":
            raise RuntimeError("on purpose")
        if data.startswith(b"wait"):
            return lambda: self._reverse_later(chain, data)
        self.done += 1
        return chain.write(data[::-1])

    def _reverse_later(self, chain: Chain, data: bytes) -> int:
        assert self.go_on.wait(10)
        if data == b"wait and fail":
            raise RuntimeError("on purpose")
        return chain.write(data[::-1])

    def on_attach(self) -> None:
        self.events.append("attach")

    def on_detach(self) -> None:
        self.events.append("detach")

    def on_start(self, queue: int) -> None:
        self.events.append(f"start {queue}")

    def on_stop(self, queue: int) -> None:
        self.events.append(f"stop {queue}")

    def on_reset(self) -> None:
        self.events.append("reset")

    def on_config(self, name: str) -> None:
        self.events.append(f"config {name}")
