"""When a soak has done enough: after a time, at a time of the day, after so many events, at the first failure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from userdev.errors import UserError

_FORMS = "8h, 90m, 1h30m or 45s; 07:30; 1000 (events); first-failure"
_TIME = re.compile(r"(?=\d)(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m(?:in)?)?(?:(\d+)s)?")
_CLOCK = re.compile(r"([01]?\d|2[0-3]):([0-5]\d)")
_EVENTS = re.compile(r"(\d+)(?: ?events?)?")


MOST_FAILURES = 10
"""After so many a soak is no use any more."""


@dataclass(frozen=True)
class Done:
    """How far a soak is: seconds of all its runs, events, failures."""

    seconds: float = 0.0
    events: int = 0
    failures: int = 0


@dataclass(frozen=True)
class Until:
    """Whatever of this comes first. `run_seconds` are of this run alone: up to a time of the day."""

    seconds: float | None = None
    run_seconds: float | None = None
    events: int | None = None
    first_failure: bool = False

    @classmethod
    def parse(cls, texts: Sequence[str], now: datetime) -> Until:
        """From the words of a command line, each a bound; of two of the same kind the last.

        Raises:
            UserError: one is none.
        """
        seconds = run_seconds = events = None
        first_failure = False
        for text in texts:
            word = text.strip().lower().replace("_", "-")
            if word == "first-failure":
                first_failure = True
            elif clock := _CLOCK.fullmatch(word):
                run_seconds = _until_clock(now, int(clock[1]), int(clock[2]))
            elif (count := _EVENTS.fullmatch(word)) and int(count[1]):
                events = int(count[1])
            elif (time := _TIME.fullmatch(word)) and any(map(int, filter(None, time.groups()))):
                days, hours, minutes, rest = (int(part or 0) for part in time.groups())
                seconds = float(((days * 24 + hours) * 60 + minutes) * 60 + rest)
            else:
                raise UserError(f"{text!r} is nothing that a soak can go on until", hint=f"for example {_FORMS}")
        return cls(seconds, run_seconds, events, first_failure)

    def reached(self, done: Done, run_seconds: float) -> bool:
        """Whether it is enough; `run_seconds` are those of this run."""
        return self.part(done, run_seconds) >= 1 or (self.first_failure and done.failures > 0)

    def goes_beyond(self, done: Done) -> bool:
        """Whether a soak that has ended there is to go on: its bounds are of all runs, and none of them is reached.

        A time of the day is of a run alone: what went on until then has done what it was to do.
        """
        is_of_all = self.run_seconds is None and (self.seconds, self.events) != (None, None)
        return is_of_all and done.failures < MOST_FAILURES and not self.reached(done, 0.0)

    def part(self, done: Done, run_seconds: float) -> float:
        """How much of it is done, from 0 to 1; 0 where only a failure ends it."""
        parts = [
            now / bound
            for now, bound in (
                (done.seconds, self.seconds),
                (run_seconds, self.run_seconds),
                (done.events, self.events),
            )
            if bound
        ]
        return min(1.0, max(parts, default=0.0))

    def left(self, done: Done, run_seconds: float) -> float | None:
        """Seconds that it will still take, as far as that can be told; at this run's rate where events are counted."""
        times = [
            bound - now
            for now, bound in ((done.seconds, self.seconds), (run_seconds, self.run_seconds))
            if bound is not None
        ]
        if self.events is not None and done.events and done.seconds:
            times.append((self.events - done.events) * done.seconds / done.events)
        return max(0.0, min(times)) if times else None


def _until_clock(now: datetime, hour: int, minute: int) -> float:
    goal = now.replace(hour=hour, minute=minute, second=0, microsecond=0)
    goal = goal if goal > now else goal + timedelta(days=1)
    return goal.timestamp() - now.timestamp()  # a day in which the clocks are changed has no 24 hours
