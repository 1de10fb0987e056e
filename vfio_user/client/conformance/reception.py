"""Who comes to the server next: the client who shows, behind a check, that it still serves is that of the next one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

from userdev.busy_wait import BusyWait
from userdev.conformance import Crash, Target
from userdev.transport import Stream
from vfio_user.client.conformance.bench import Bench, Observer
from vfio_user.wire import Dialect


class Reception:
    """A server under test with one client at most who waits to be a check's: a new one, with a version agreed.

    Every other begins with a server that no client waits at, as one that serves one at a time would refuse it. A
    context manager, so that none waits behind the last check.
    """

    def __init__(self, target: Target, dialect: Dialect, *, timeout: float) -> None:
        self._target = target
        self._dialect = dialect
        self._timeout = timeout
        self._busy_wait = BusyWait()
        self._waiting: tuple[Stream, Observer] | None = None

    def bench(self) -> Bench:
        """One check's view of the server."""
        return Bench(self, self._dialect, timeout=self._timeout, first=self._first, busy_wait=self._busy_wait)

    def connect(self) -> Stream:
        """As `Target.connect`."""
        self._dismiss()
        return self._target.connect()

    def settle(self, stays: Callable[[Stream, float], None] | None = None) -> None:
        """As `Target.settle`; who is served then waits, where nobody else `stays`."""
        self._dismiss()
        self._target.settle(stays or self._have_wait)

    def renew(self) -> None:
        """As `ServerUnderTest.renew`."""
        self._dismiss()
        self._target.renew()

    def crashed(self) -> Crash | None:
        """As `ServerUnderTest.crashed`."""
        return self._target.crashed()

    @property
    def pid(self) -> int | None:
        """As `Target.pid`."""
        return self._target.pid

    def _have_wait(self, stream: Stream, timeout: float) -> None:
        client = Observer(stream, dialect=self._dialect, timeout=timeout, busy_wait=self._busy_wait)
        client.negotiate(minor=0)
        self._waiting = stream, client

    def _first(self) -> Observer | None:
        """The one who waits, unless the server has ended meanwhile, or let it go."""
        if self._waiting is None or self._waiting[0].is_hung_up:
            return None
        (_, client), self._waiting = self._waiting, None
        return client

    def _dismiss(self) -> None:
        if self._waiting is not None:
            self._waiting[1].close()
            self._waiting = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._dismiss()
