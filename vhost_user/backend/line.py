"""A descriptor by which the front-end is told: a ring's call, or its err."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from threading import Lock

from userdev.eventfd import drain, is_full, signaller

log = logging.getLogger("vhost_user.backend")


def _nobody() -> None:
    """What is signalled where there is no descriptor."""


class Line:
    """One eventfd of the front-end's, or none; as long as nothing was said of it, what is signalled in band.

    Whether it blocks is a flag that the front-end shares, so that one which fills it holds the thread that signals:
    `unblock`, from another thread, frees that.
    """

    def __init__(self, in_band: Callable[[], None] = _nobody) -> None:
        """`in_band` tells the front-end where that is negotiated, and does nothing otherwise."""
        self.signal = self._in_band = in_band
        self._fd = -1
        self._lock = Lock()

    def set(self, fd: int | None) -> None:
        """Take over this descriptor; None: the front-end looks by itself."""
        self._have(fd, _nobody if fd is None else signaller(fd))

    def forget(self) -> None:
        """Have nothing have been said of it."""
        self._have(None, self._in_band)

    @property
    def is_in_band(self) -> bool:
        """Whether nothing was said of it."""
        return self.signal is self._in_band

    def _have(self, fd: int | None, signal: Callable[[], None]) -> None:
        with self._lock:
            self.signal = signal
            before, self._fd = self._fd, -1 if fd is None else fd
            if before >= 0:
                os.close(before)

    def unblock(self) -> None:
        """Free whoever waits for room in it, from any thread; it is not signalled any more then."""
        with self._lock:
            if self._fd >= 0 and is_full(self._fd):
                self.signal = _nobody
                drain(self._fd)
                log.warning("an eventfd of the front-end was full: it is not signalled any more")
