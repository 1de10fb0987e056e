"""The loop of a soak: events in their order until it is enough, a fresh guest after each failure, which is reduced."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any, Protocol

from userdev.errors import UserdevError, UserError, VerdictError
from vfio_user.soak.failed import Failed
from vfio_user.soak.journal import Journal
from vfio_user.soak.measuring import Clock
from vfio_user.soak.order import Happening, Order
from vfio_user.soak.reduction import Reduction, Untried, reduce
from vfio_user.soak.until import MOST_FAILURES, Until

LAST = 16
"""Of the events before a failure, those that may have to do with it."""
FIRST = "guest1"
"""The folder of a soak's first guest."""
END = "end"
"""What a failure is told of that shows when the guest ends, behind all events: none of them is known to be to blame."""
TRIES = 12
"""Fresh guests that a failure is worth."""


class SoakedGuest(Protocol):
    """What the loop needs of a guest."""

    possible: dict[str, list[str]]
    """The events that can happen to it, and to what of it."""
    left_out: dict[str, str]
    """What cannot, and why."""

    def do(self, happening: Happening, then: Happening | None = None) -> dict[str, Any]:
        """Have it happen, see that nothing was lost, and return what was measured; `then` is what comes next.

        Raises:
            Failed: something was.
            HostFailure: a host could not do its part, and nothing is known by that.
        """

    def raised(self) -> list[str]:
        """What its servers have raised since this was asked last, though all went right."""

    def finish(self) -> None:
        """End the work.

        Raises:
            Failed: something of it was wrong.
        """


class Begin(Protocol):
    """Makes a fresh guest at work, with a folder for its evidence."""

    def __call__(self, folder: Path, *, recorded: bool = False) -> AbstractContextManager[SoakedGuest]:
        """Make one. `recorded`: its life is short, so that everything in it may be recorded."""


class Listener(Protocol):
    """Whoever is told how a soak goes."""

    def begins(self, order: Mapping[str, Sequence[str]], left_out: Mapping[str, str]) -> None:
        """A guest works: what can happen to it, what cannot, and why."""

    def happens(self, happening: Happening) -> None:
        """An event begins."""

    def happened(self, facts: Mapping[str, Any]) -> None:
        """It has ended: its line in the journal."""

    def failed(self, happening: Happening, failure: Failed) -> None:
        """Something was lost."""

    def tries(self, events: Sequence[Happening]) -> None:
        """A sequence is tried with a fresh guest."""

    def reduced(self, reduction: Reduction[Happening]) -> None:
        """What is left of a failure."""


@dataclass
class Soak:
    """One soak. `folder` has a folder for each of its guests; `tries` are those for each failure."""

    begin: Begin
    journal: Journal
    weights: Mapping[str, float]
    until: Until
    folder: Path
    listener: Listener
    tries: int = TRIES
    _tried: int = field(default=0, init=False)
    _tried_in: dict[tuple[Happening, ...], Path] = field(default_factory=dict, init=False)
    """The folders of the last failure's tries."""

    def run(self) -> None:
        """Go on until it is enough; what was done and what failed is in the journal.

        Raises:
            UserError: it cannot be done.
        """
        clock = Clock()
        guests = 0
        while not self._is_enough:
            guests += 1
            done: list[Happening] = []
            folder, lived = self.folder / f"guest{guests}", False
            try:
                with self.begin(folder) as guest:
                    self._live(guest, done, clock)
                    lived = True
                    guest.finish()
                    self._note_raised(guest)
            except VerdictError as error:
                if not done:
                    raise
                blamed = replace(done[-1], event=END, target="") if lived else done[-1]
                self._after(Failed.of(error), blamed, done[-LAST:], folder)

    def repeat(self, numbers: Sequence[int]) -> Failed | None:
        """Do the events of these numbers alone, with a fresh guest; what was lost."""
        try:
            with self.begin(self.folder / FIRST, recorded=True) as guest:
                self._begins(guest)
                order = Order(self.journal.seed, self.weights, guest.possible)
                for happening, then in _with_next([order.happening(number) for number in numbers]):
                    self._have_happen(guest, happening, then)
                guest.finish()
                self._note_raised(guest)
        except VerdictError as error:
            return Failed.of(error)
        return None

    def _begins(self, guest: SoakedGuest) -> None:
        """Tell of a guest what can happen to it, and why not of what was asked for alone."""
        left_out = {what: why for what, why in guest.left_out.items() if self.weights.get(what.split()[0], 1.0)}
        self.listener.begins(guest.possible, left_out)

    @property
    def _is_enough(self) -> bool:
        done = self.journal.done
        return self.until.reached(done, self.journal.run_seconds) or done.failures >= MOST_FAILURES

    @property
    def _is_last(self) -> bool:
        """Whether it is enough with one event more, as far as that is known."""
        done = self.journal.done
        return self.until.reached(replace(done, events=done.events + 1), self.journal.run_seconds)

    def _live(self, guest: SoakedGuest, done: list[Happening], clock: Clock) -> None:
        """Events of one guest; `done` gets each, before it happens."""
        self._begins(guest)
        order = Order(self.journal.seed, self.weights, guest.possible)
        while not self._is_enough:
            number = self.journal.next_number
            happening = order.happening(number)
            done.append(happening)
            self._have_happen(guest, happening, None if self._is_last else order.happening(number + 1))
            if jump := clock.jump():
                self.journal.note(jump)

    def _have_happen(self, guest: SoakedGuest, happening: Happening, then: Happening | None) -> None:
        self.listener.happens(happening)
        self.journal.event(_line(happening, guest.do(happening, then)))
        self.listener.happened(self.journal.events[-1])
        self._note_raised(guest)

    def _note_raised(self, guest: SoakedGuest) -> None:
        for said in guest.raised():
            self.journal.note(said)

    def _after(self, failure: Failed, happening: Happening, last: Sequence[Happening], folder: Path) -> None:
        """Reduce a failure of `happening`, and write it down; one that was reduced before is the same again."""
        self.listener.failed(happening, failure)
        known = any(
            (line["event"], line["check"]) == (happening.event, failure.check) for line in self.journal.failures
        )
        self.journal.failure(
            {
                **_line(happening, {}),
                "check": failure.check,
                "detail": failure.detail,
                "evidence": failure.evidence,
                "folder": str(folder),
                "last": [str(each) for each in last],
                "seen_before": known,
            }
        )
        if not self.tries or known:
            return
        number = len(self.journal.failures)
        self._tried_in.clear()
        reduction = reduce(
            last, lambda some: self._fails(some, failure, number), self.tries, lambda one: (one.event, one.target)
        )
        self.journal.reduced(
            {
                "reduced": [each.number for each in reduction.events],
                "reduced_to": [str(each) for each in reduction.events],
                "reproduced": reduction.reproduced,
                "minimal": reduction.minimal,
                "tries": reduction.tries,
                "untried": reduction.untried,
                "tried_in": str(self._tried_in.get(reduction.events, folder)),
            }
        )
        self.listener.reduced(reduction)

    def _fails(self, events: Sequence[Happening], wanted: Failed, number: int) -> bool:
        """Whether a fresh guest to which this happens loses the same.

        Raises:
            Untried: no guest can be had, or a host could not do its part.
        """
        self._tried += 1
        self.listener.tries(events)
        folder = self._tried_in[tuple(events)] = self.folder / f"failure{number}-try{self._tried}"
        try:
            with self.begin(folder, recorded=True) as guest:
                for happening, then in _with_next(events):
                    guest.do(happening, then)
                guest.finish()
        except UserdevError as error:
            same = Failed.of(error).check == wanted.check
            if isinstance(error, UserError) and not same:
                raise Untried(str(error)) from error
            return same
        return False


def _with_next(events: Sequence[Happening]) -> Iterator[tuple[Happening, Happening | None]]:
    """Each of them with the one behind it; there is none behind the last."""
    return zip_longest(events, events[1:])


def _line(happening: Happening, facts: Mapping[str, Any]) -> dict[str, Any]:
    return {"number": happening.number, "event": happening.event, "target": happening.target, **facts}


def parse_numbers(text: str) -> list[int]:
    """Numbers of events, from "3,17,18".

    Raises:
        UserError: they are none.
    """
    try:
        numbers = [int(word) for word in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 1:
        raise UserError(f"{text!r} are no numbers of events", hint="for example 3,17,18")
    return numbers
