"""Calls and errors of rings that have no descriptor for them, as messages ("In-band notifications").

The channel must not fill up: of each ring one message is under way at a time, and what happens before it is
acknowledged is told by one more.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from vhost_user.backend.channel import Answered
from vhost_user.wire import BackEndRequest
from vhost_user.wire.payloads import VringState

Ask = Callable[[BackEndRequest, VringState, Answered], bool]
"""Asks on the channel; False where there is none, or it takes nothing."""


class InBand:
    """VRING_CALL and VRING_ERR of one session."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask
        self._told: dict[tuple[BackEndRequest, int], bool] = {}
        """What is not acknowledged yet, and whether it has happened again since."""

    def signal(self, request: BackEndRequest, ring: int) -> None:
        """Tell of a ring."""
        if (request, ring) in self._told:
            self._told[request, ring] = True
        elif self._ask(request, VringState(ring, 0), partial(self._read, request, ring)):
            self._told[request, ring] = False

    def forget(self) -> None:
        """Have another channel, on which nothing is under way."""
        self._told.clear()

    def _read(self, request: BackEndRequest, ring: int, _: int) -> None:
        if self._told.pop((request, ring), False):
            self.signal(request, ring)
