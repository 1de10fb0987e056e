"""A script cut down as far as whoever asks says that it still goes wrong, in parts that make sense."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from userdev.reduction import Reduction
from vfio_user.interposer.replay.evidence import Evidence
from vfio_user.interposer.replay.outcome import Difference
from vfio_user.interposer.replay.script import Script
from vfio_user.interposer.replay.steps import place_of
from vfio_user.interposer.trace import MessageRecord, Raw

Fails = Callable[[Script], bool]
Ended = Literal["minimal", "time is up", "interrupted"]
Progress = Callable[[int, int, float], None]
"""Told of (messages left, replays so far, seconds so far)."""
BUDGET_SECONDS = 600.0
"""Seconds that a search takes at most, unless told otherwise."""


@dataclass
class Minimized:
    """The smallest script found that still fails."""

    script: Script
    before: int
    """Messages of the client's in the whole trace."""
    after: int
    replays: int
    ended: Ended
    """Why the search ended: nothing can be left out any more, time was up, or somebody interrupted it."""
    seconds: float = 0.0
    difference: Difference | None = None
    """What goes wrong, by the script's numbers; None where the caller decided that."""
    confirmed: bool = True
    """Whether it failed once more in the end, with all the patience that was asked for."""
    is_empty: bool = False
    """Whether all was left out that may be: the beginning of the session alone, VERSION, fails too."""

    def json(self) -> dict[str, Any]:
        """The same for programs."""
        return {
            "before": self.before,
            "after": self.after,
            "replays": self.replays,
            "seconds": round(self.seconds, 3),
            "ended": self.ended,
            "confirmed": self.confirmed,
            "empty": self.is_empty,
            "difference": self.difference.json() if self.difference is not None else None,
        }


def reduce_script(
    script: Script,
    fails: Fails,
    *,
    keep: Collection[int] = (),
    evidence: Evidence | None = None,
    seconds: float = BUDGET_SECONDS,
    progress: Progress = lambda left, replays, seconds: None,
) -> Minimized:
    """The smallest part of a script that makes sense and of which `fails` says that it goes wrong.

    That all of it does is taken for granted. VERSION stays, and so do the records `keep` with all that they need.

    evidence: of what has to stay for a recorded answer to be right still.
    """
    began = time.monotonic()
    causes = script.causes
    always = causes.closure([*script.versions, *keep])

    def whole(numbers: Sequence[int]) -> set[int]:
        sensible = causes.without_orphans(numbers, always)
        return causes.closure(evidence.closed(sensible | always) if evidence else sensible) - always

    def kind(step: MessageRecord | Raw) -> Hashable:
        if isinstance(step, Raw) or (evidence is not None and step.number in evidence.moves):
            return "moves" if isinstance(step, MessageRecord) else "bytes"
        return place_of(script.dialect, step.message)

    kinds = {step.number: kind(step) for step in script.requests}
    search = Reduction(
        [step.number for step in script.requests if step.number not in always],
        lambda numbers: fails(script.only({*always, *numbers})),
        closed=whole,
        alike=lambda number: kinds[number],
        stop=lambda: time.monotonic() - began >= seconds,
        progress=lambda left, tries: progress(left + len(always), tries, time.monotonic() - began),
    )
    ended: Ended = "interrupted"
    with contextlib.suppress(KeyboardInterrupt):  # what was found until then is the result
        search.run()
        ended = "minimal" if search.minimal else "time is up"
    found = script.only({*always, *search.best})
    spent = time.monotonic() - began
    return Minimized(
        found, len(script.requests), len(found.requests), search.tries, ended, spent, is_empty=not (keep or search.best)
    )
