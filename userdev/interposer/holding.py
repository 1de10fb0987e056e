"""Requests of the client's that are kept back, while a server is replaced, say, or a migration goes on."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Generic

from userdev.interposer.passing import M, Passing
from userdev.relay.backlog import Backlog
from userdev.relay.direction import Direction
from userdev.relay.loop import Future
from userdev.transport import close_all


class Holding(Generic[M]):
    """Keeps requests to the server back for as long as anybody wants that, and lets them go on in their order."""

    def __init__(self, backlog: Backlog, send_on: Callable[[Passing[M]], None], changed: Callable[[], None]) -> None:
        """`send_on` takes each request that goes on; `changed` is called when holding has begun, or may have ended."""
        self._backlog = backlog
        self._send_on = send_on
        self._changed = changed
        self._holds = 0
        self._free: list[Future[None]] = []
        self._held: deque[Passing[M]] = deque()
        self._closed = False

    def __len__(self) -> int:
        return len(self._held)

    @property
    def active(self) -> bool:
        """Whether requests are to be kept back."""
        return self._holds > 0

    def hold(self) -> None:
        """Keep requests back until `resume`; holds count. The client's replies go on."""
        self._holds += 1
        self._changed()

    def until_free(self) -> Future[None]:
        """What is done once nobody wants requests kept back any more, and before those go on that were."""
        free: Future[None] = Future()
        self._free.append(free)
        return free

    def resume(self) -> None:
        """Let them go on, in their order."""
        self._holds = max(0, self._holds - 1)
        if not self._holds:
            self._tell_free()
        while self._held and not self._holds and not self._closed:
            self._send_on(self._next())
        self._changed()

    def keep(self, request: Passing[M]) -> None:
        """This one has come while requests are kept back."""
        request.since = time.monotonic()
        self._held.append(request)
        self._backlog.keep(Direction.TO_SERVER, request.message.size)

    def take(self, since: float) -> list[M]:
        """Take out those that have been held since that time (monotonic seconds) or longer."""
        taken = []
        while self._held and (self._held[0].since or 0.0) <= since:
            taken.append(self._next().message)
        return taken

    def close(self) -> None:
        """Let go of all of them."""
        self._closed = True
        self._tell_free()
        for held in self._held:
            close_all(held.message.fds)
        self._held.clear()

    def _tell_free(self) -> None:
        free, self._free = self._free, []
        for waiting in free:
            waiting.resolve(None)

    def _next(self) -> Passing[M]:
        held = self._held.popleft()
        self._backlog.let_go(Direction.TO_SERVER, held.message.size)
        return held
