"""What has gone wrong beside a wait for a guest, and may be why nothing comes: a server that ended, a queue that broke.

Neither says that nothing will come: a command that does not need that device is answered as ever. So a wait has then
no more patience than under KVM, counted from there, and says what it was that went wrong.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime

from userdev.process import Child, Deadline
from vfio_user.harness.last_words import told_end
from vfio_user.harness.server_exceptions import logged_exceptions
from vfio_user.harness.timeouts import waited
from vfio_user.page.logs import SERVER_LINE, moment_near
from vfio_user.page.texts import lines_of

BROKE = re.compile(r"WARNING (?P<who>.+) is broken until it is started again: (?P<why>.*)")
"""What a back-end says of a queue that is broken, behind the time."""
WORKS = re.compile(r"INFO (?P<who>.+) is (?:started again|gone with its front-end) after it was broken")
"""What it says once that queue runs again, or nobody has it any more."""
_LOOK_SECONDS = 1.0  # between two looks at what may have gone wrong, once a wait has lasted


@dataclass(frozen=True)
class Trouble:
    """What went wrong, in a sentence, and when, in seconds since 1970."""

    when: float
    sentence: str


Look = Callable[[], Trouble | None]
"""Asks what has gone wrong so far; None: nothing that is known."""


def nothing_wrong() -> None:
    """The answer of who knows of nothing beside a wait."""


def first_trouble(children: Iterable[Child]) -> Trouble | None:
    """The first that went wrong with these programs and still is: one has ended badly by itself, or its queue broke."""
    told = (trouble for child in children for trouble in (_end_of(child), _broken_queue_of(child)) if trouble)
    return min(told, key=lambda trouble: trouble.when, default=None)


class Wait:
    """A wait for something of a guest, until its deadline or, where something is wrong beside it, no longer than that.

    `deadline` has been multiplied by `patience` already; `look` is asked once the wait has lasted as long as under KVM.
    """

    def __init__(self, deadline: Deadline, patience: float, look: Look = nothing_wrong) -> None:
        self._deadline, self._patience, self._look = deadline, patience, look
        self._grace = deadline.seconds / patience
        self._began = self._since = time.monotonic()
        """By the clock that does not jump, as all of a wait: its beginning, and that of what is wrong beside it."""
        self._trouble: Trouble | None = None
        self._looked = -_LOOK_SECONDS  # time.monotonic()'s

    @property
    def remaining(self) -> float:
        """Seconds left, as far as is known now: 0.0 when it is over."""
        left = self._deadline.remaining
        if left and not self._has_lasted:
            return left
        if time.monotonic() >= self._looked + _LOOK_SECONDS or not left:
            self._look_around()
        if self._trouble is None:
            return left
        return min(left, max(0.0, self._since + self._grace - time.monotonic()))

    @property
    def turn(self) -> float:
        """The seconds of them to wait until it is asked again."""
        if not self._has_lasted:
            return min(self._deadline.remaining, max(0.0, self._began + self._grace - time.monotonic()))
        return min(self.remaining, _LOOK_SECONDS)

    @property
    def _has_lasted(self) -> bool:
        return time.monotonic() >= self._began + self._grace

    def _look_around(self) -> None:
        found, self._looked = self._look(), time.monotonic()
        if found is not None and found != self._trouble:
            self._since = min(self._looked, max(self._began, self._looked - (time.time() - found.when)))
        self._trouble = found

    @property
    def has_passed(self) -> bool:
        """Whether it lasted until its deadline."""
        return self._deadline.passed

    @property
    def was_in_vain(self) -> bool:
        """Whether something was wrong beside it when it was asked last."""
        return self._trouble is not None

    def without(self, what: str) -> str:
        """What has not come ("no answer came") as a sentence: how long it was waited for, and what went wrong first."""
        if self._trouble is None:
            return f"{what} in {waited(self._grace, self._patience)}"
        lasted = time.monotonic() - self._since
        return f"{self._trouble.sentence}; after that {what} in {lasted:.3g} s"


def _end_of(child: Child) -> Trouble | None:
    return Trouble(child.ended or 0.0, told_end(child)) if child.ended_badly else None


def _broken_queue_of(child: Child) -> Trouble | None:
    """The first of its queues that broke and does not run again, by its log."""
    now = datetime.fromtimestamp(child.began)
    broken: dict[str, Trouble] = {}
    for told in filter(None, map(SERVER_LINE.match, lines_of(child.log))):
        now = moment_near(told[1], now)
        if (works := WORKS.match(told[2])) is not None:
            broken.pop(works["who"], None)
        elif (broke := BROKE.match(told[2])) is not None:
            broken[broke["who"]] = Trouble(now.timestamp(), f"{child.name}: {broke['who']} is broken: {broke['why']}")
    first = min(broken.values(), key=lambda trouble: trouble.when, default=None)
    if first is None:
        return None
    raised = next((one for one in logged_exceptions([child]) if one.when <= first.when), None)
    return first if raised is None else Trouble(raised.when, raised.sentence)
