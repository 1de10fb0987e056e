"""How a server sees the doorbells that nobody tells it of, in a page that the client may map.

A guest that maps the page rings by a store to memory: no exit, no message. So the page is looked at, on the session's
worker: again and again while doorbells move, then after pauses that grow with the time since one has, up to a bound,
and not at all while the controller is disabled or stands still. A client that does not map rings by messages, which end
up in the page too.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from time import monotonic

from userdev_servers.nvme.controller import Controller
from userdev_servers.nvme.doorbell_page import DoorbellPage, place_of
from userdev_servers.nvme.engine import Engine
from userdev_servers.nvme.queues import SavedQueues
from userdev_servers.nvme.spec import Csts

LOOKS = 100
"""So many in vain, one right after the other, before the first pause."""
SHORTEST_SECONDS = 0.001
"""Seconds of a pause, at least."""
SHARE = 1 / 8
"""Of the time since a doorbell moved: a guest that is slow to ring waits no longer than so much more."""


class Doorbells:
    """Looks at the page of one controller. `look` and all else is called where handlers run."""

    def __init__(
        self,
        page: DoorbellPage,
        controller: Controller,
        engine: Engine,
        call_later: Callable[[float, Callable[[], None]], object],
        longest: float,
    ) -> None:
        """`longest`: the bound of pauses, in seconds. `call_later` is the device's."""
        self.page = page
        self._controller = controller
        self._queues = controller.queues
        self._engine = engine
        self._call_later = call_later
        self._longest = longest
        self._left_over = page.is_left_over
        """The first client is told, as one that rings too early."""
        self.looks = 0
        """So far."""
        self._planned: float | None = None  # the pause before the next look; None: there is none
        self._turn = 0  # the number of that look
        self._left = 0  # looks before the next pause
        self._last = 0.0  # when a doorbell moved, or was about to

    # What is in the page

    def settle(self) -> None:
        """Take over where the guest says that its queues are, and act on it another time."""
        rung = self.page.rung
        for sq in self._queues.submission.values():
            if (sq.shadow is None or not sq.id) and (tail := rung[place_of(sq)] & 0xFFFF) < sq.size:
                sq.tail = tail
        for cq in self._queues.completion.values():
            if (cq.shadow is None or not cq.id) and (head := rung[place_of(cq)] & 0xFFFF) < cq.size:
                cq.head = head

    def sign(self, queues: SavedQueues) -> None:
        """The page goes with these queues, which are being saved."""
        if self._controller.state.enabled:  # and not about to become what was saved elsewhere
            self.page.sign(queues)

    def load(self, queues: SavedQueues) -> None:
        """After the controller has these queues. What was rung since they were saved is seen by the next look."""
        page = self.page
        is_theirs = page.goes_with(queues)
        if not is_theirs:
            page.clear()
        places = {place_of(sq): sq.tail for sq in self._queues.submission.values()}
        places |= {place_of(cq): cq.head for cq in self._queues.completion.values()}
        for index, place in places.items():
            page.seen[index] = place
            if not is_theirs:
                page.rung[index] = place

    # Looking

    def watch(self) -> None:
        """Look, from now on, and often: there is work, or there was."""
        self._left, self._last = LOOKS, monotonic()
        if self._planned != 0 and self._has_to_look:
            self._plan(0.0)

    def watch_anew(self) -> None:
        """Plan the next look again: the plan went with the client before, or with a reset."""
        self._planned = None
        if self._left_over:
            self._left_over = False
            self._controller.state.status |= Csts.FATAL
        self.watch()

    def look(self, turn: int) -> None:
        """Act on what the guest has rung, and plan the next look."""
        if turn != self._turn:
            return
        self._planned = None
        if not self._has_to_look:
            return
        self.looks += 1
        self._left -= 1
        try:
            if self._take():
                self.watch()
        finally:
            if self._planned is None:
                self._plan(self._next_pause())

    def _plan(self, pause: float) -> None:
        """The next look; one that was planned before is not made."""
        self._planned = pause
        self._turn += 1
        self._call_later(pause, partial(self.look, self._turn))

    def _next_pause(self) -> float:
        if self._left > 0:
            os.sched_yield()
            return 0.0
        return min(max(SHORTEST_SECONDS, SHARE * (monotonic() - self._last)), self._longest)

    @property
    def _has_to_look(self) -> bool:
        return self._controller.runs and not self._engine.quiet

    def _take(self) -> bool:
        """Ring what has changed in the page, and shadow doorbells; whether there was anything."""
        engine, queues = self._engine, self._queues
        moved = bool(self._controller.state.shadow_buffers) and engine.look_at_shadows()
        rung, seen = self.page.rung, self.page.seen
        if rung == seen:
            return moved
        for number in queues.completion:
            if (head := rung[2 * number + 1]) != seen[2 * number + 1]:
                seen[2 * number + 1] = head
                engine.completion_doorbell(number, head & 0xFFFF)
        for number in queues.submission:
            if (tail := rung[2 * number]) != seen[2 * number]:
                seen[2 * number] = tail
                engine.submission_doorbell(number, tail & 0xFFFF)
        if rung != seen:
            self._refuse()
        return True

    def _refuse(self) -> None:
        """Tell the guest of doorbells that it has rung for queues that are not there."""
        for index, value in enumerate(self.page.rung):
            if value != self.page.seen[index]:
                self.page.seen[index] = value
                self._engine.ring(index, value)
