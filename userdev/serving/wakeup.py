"""Waiting for another thread and for a socket at once."""

from __future__ import annotations

import os
import select
from time import monotonic


class Wakeup:
    """An event that is waited for together with a socket. A context manager: `set` may not come after its end."""

    def __init__(self) -> None:
        self._event = os.eventfd(0, os.EFD_CLOEXEC)

    def set(self) -> None:
        """Wake the waiting thread; any thread may call it."""
        os.eventfd_write(self._event, 1)

    def wait(self, deadline: float | None, socket: int | None = None, events: int = select.POLLIN) -> bool:
        """Wait until this is set, until the deadline (of `monotonic`), or until the socket is ready, which is told."""
        poll = select.poll()
        poll.register(self._event, select.POLLIN)
        if socket is not None:
            poll.register(socket, events)
        left = None if deadline is None else max(0.0, deadline - monotonic()) * 1000
        return any(fd == socket for fd, _ in poll.poll(left))

    def __enter__(self) -> Wakeup:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._event)
