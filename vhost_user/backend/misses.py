"""Rings that wait for a translation, behind an IOMMU ("IOMMU support"): the session goes on meanwhile.

A request whose addresses are not all known stays where it is. They are asked for on the back-end's channel, and it is
tried again when the front-end has said so. A front-end that answers nothing, or never what was asked for, has a bound;
then the ring is broken, as one with an address outside of memory is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic
from typing import Protocol

from vhost_user.memory import IotlbMiss
from vhost_user.wire.payloads import IotlbMessage

MISS_SECONDS = 60.0
"""That a request may wait for its translations: as long as a front-end may take to read what it is sent."""

MAX_TRIES = 8
"""Answers for one address that do not have it, before it is no use to ask again: it may be taken back at once."""

Ask = Callable[[IotlbMessage, Callable[[int], None]], None]
"""Asks the front-end; calls back with the number of its answer, where it gives one."""


class Waiting(Protocol):
    """A ring that can wait."""

    pending: bool

    def break_down(self, why: str) -> None:
        """Take no requests any more; calls `Misses.drop`."""


@dataclass
class _Wait:
    wanted: IotlbMessage
    until: float
    tries: int = 0
    answered: bool = False


class Misses:
    """The rings that wait, and what for: one address each, the first that was missed."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask
        self._waits: dict[Waiting, _Wait] = {}

    @property
    def deadline(self) -> float | None:
        """When `expire` is to be called (of `monotonic`); None: nobody waits."""
        return min((wait.until for wait in self._waits.values()), default=None) if self._waits else None

    def wait(self, ring: Waiting, miss: IotlbMiss) -> None:
        """Have a ring wait for what it has missed; what was asked for and is not answered is not asked for again."""
        wanted = miss.message
        wait = self._waits.get(ring)
        if wait is None:
            wait = self._waits[ring] = _Wait(wanted, monotonic() + MISS_SECONDS)
        elif wait.wanted != wanted:
            wait.wanted, wait.tries, wait.answered = wanted, 0, False
        elif not wait.answered:
            return
        wait.answered = False
        wait.tries += 1
        if wait.tries > MAX_TRIES:
            ring.break_down(f"{miss}, whatever the front-end answers")
        else:
            self._ask_for(ring, wanted)

    def ask_again(self) -> None:
        """Ask for what is not answered: there is another channel."""
        for ring, wait in self._waits.items():
            if not wait.answered:
                self._ask_for(ring, wait.wanted)

    def drop(self, ring: Waiting) -> None:
        """Have a ring wait no more: it has gone on, or does not run."""
        self._waits.pop(ring, None)

    def updated(self, message: IotlbMessage) -> None:
        """Have those try again whose address the front-end has told a translation of."""
        for ring, wait in self._waits.items():
            if message.iova <= wait.wanted.iova < message.iova + message.size:
                wait.answered = ring.pending = True

    def expire(self, now: float) -> None:
        """Break those that have waited too long."""
        for ring, wait in list(self._waits.items()):
            if now >= wait.until:
                ring.break_down(f"{_what(wait.wanted)} was missing for {MISS_SECONDS:g} s")

    def _ask_for(self, ring: Waiting, wanted: IotlbMessage) -> None:
        self._ask(wanted, lambda error: self._answer(ring, wanted, error))

    def _answer(self, ring: Waiting, wanted: IotlbMessage, error: int) -> None:
        wait = self._waits.get(ring)
        if wait is None or wait.wanted != wanted:
            return
        if error:
            ring.break_down(f"the front-end has no translation: {_what(wanted)} is missing")
        else:
            wait.answered = ring.pending = True


def _what(wanted: IotlbMessage) -> str:
    return f"the translation of {wanted.iova:#x}, permissions {wanted.permissions},"
