"""A campaign: sequences are played one after the other; what is found is reduced, told apart by its cause, and kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import monotonic
from typing import Protocol

from userdev.fuzz.finds import Find, Found
from userdev.fuzz.steps import Step, Value
from userdev.process import Deadline
from userdev.reduction import Reduction

Sequences = Iterator[tuple[Step, ...]]


class Subject(Protocol):
    """A server under test, and what plays sequences with it in its protocol."""

    protocol: str

    def play(self, steps: Sequence[Step]) -> Found | None:
        """Play a sequence with a device that is as after its start, and ask every oracle; what went wrong first.

        Without a step it is probed, no more.
        """

    def renew(self) -> None:
        """Have a fresh server for the next sequence, where that is possible."""

    def facts(self) -> dict[str, str]:
        """Of what a find is: the device, for people."""


class Reporter(Protocol):
    """Whoever tells people how a campaign goes."""

    def played(self, summary: Summary) -> None:
        """Hear that another sequence has been played."""

    def found(self, find: Find) -> None:
        """Hear of a cause that was not known, before it is reduced."""

    def reducing(self, left: int, tries: int) -> None:
        """Hear that so many steps are left after so many tries."""

    def kept(self, find: Find, path: Path | None) -> None:
        """Hear what was kept of it."""


@dataclass(frozen=True)
class Bounds:
    """How long, and how many. Seconds and numbers."""

    seconds: float = math.inf
    sequences: float = math.inf
    finds: float = math.inf
    """So many causes that were seen again are enough: others may be what sequences before have left."""
    reduction: float = 60.0
    """Seconds for the reduction of one find."""
    at_least: float = 5.0
    """Seconds of that for one that is found when the time is over: 40 steps that were not reduced tell little."""
    tries: int = 300
    """Sequences for the reduction of one find."""


@dataclass
class Summary:
    """What became of a campaign."""

    sequences: int = 0
    steps: int = 0
    seconds: float = 0.0
    interrupted: bool = False
    finds: dict[str, Find] = field(default_factory=dict)
    """By cause."""
    ignored: int = 0
    """Sequences that led to what is known and left out."""
    raised: str = ""
    """What the server's own code raised first beside sequences in which nothing was found."""


class Campaign:
    """One run of the fuzzer against one server."""

    def __init__(
        self,
        subject: Subject,
        drawn: Sequences,
        *,
        seed: int,
        bounds: Bounds,
        listener: Reporter,
        folder: Path | None,
        ignored: Callable[[Found], bool] = lambda _: False,
        said: Callable[[], tuple[str, str]] = lambda: ("", ""),
    ) -> None:
        """Sequences are taken from `drawn`; finds are written into `folder`, but for what is `ignored`.

        said: what the server has raised last since the last call, and what it has warned of, where that can be read
        """
        self._subject = subject
        self._drawn = drawn
        self._seed = seed
        self._bounds = bounds
        self._listener = listener
        self._folder = folder
        self._ignored = ignored
        self._said = said
        self.summary = Summary()

    def run(self, wrong: Sequence[Found] = ()) -> Summary:
        """Play until a bound is reached, or Ctrl-C: what was found until then is kept. `wrong`: what is known already.

        Raises:
            UserError: there is no server any more, and it is not ours to start.
        """
        begin = monotonic()
        try:
            for known in wrong:
                self._take(known, (), begin)
            while not self._enough(monotonic() - begin) and (steps := next(self._drawn, None)) is not None:
                found = self._subject.play(steps)
                self.summary.sequences += 1
                self.summary.steps += len(steps)
                if found is not None:
                    self._take(found, steps, begin)
                    self._said()  # of what is found
                else:
                    self.summary.raised = self.summary.raised or self._said()[0]
                self.summary.seconds = monotonic() - begin
                self._listener.played(self.summary)
        except KeyboardInterrupt:
            self.summary.interrupted = True
        self.summary.seconds = monotonic() - begin
        return self.summary

    def _enough(self, seconds: float) -> bool:
        done = self.summary
        bounds = self._bounds
        sure = sum(find.reproduced for find in done.finds.values())
        return seconds >= bounds.seconds or done.sequences >= bounds.sequences or sure >= bounds.finds

    def _take(self, found: Found, steps: tuple[Step, ...], begin: float) -> None:
        self._subject.renew()
        if self._ignored(found):
            self.summary.ignored += 1
            return
        finds = self.summary.finds
        if found.cause in finds:
            finds[found.cause] = replace(finds[found.cause], times=finds[found.cause].times + 1)
            return
        find = Find(
            self._subject.protocol,
            found.oracle.id,
            found.oracle.rule,
            found.cause,
            str(found),
            steps[: found.begun] or steps,  # what had not begun is not to blame
            self._seed,
            self.summary.sequences,
            level=found.level.name,
            said=next(filter(None, self._said()), ""),
            subject=self._subject.facts(),
        )
        self._keep(find)
        self._listener.found(find)
        left = self._bounds.seconds - (monotonic() - begin)
        reduced = self._reduced(find, max(self._bounds.at_least, min(self._bounds.reduction, left)))
        self._listener.kept(reduced, self._keep(reduced))
        self._subject.renew()

    def _keep(self, find: Find) -> Path | None:
        self.summary.finds[find.cause] = find
        return find.write(self._folder) if self._folder is not None else None

    def _reduced(self, find: Find, seconds: float) -> Find:
        """The same cause with fewer steps, and simpler ones, as far as the time goes.

        A fresh server for each try would take most of the time; so all tries have one server, which a new client
        resets, and what is left is tried with a fresh one. Only where that says no, or one server does not show the
        same twice, each try has its own.
        """
        deadline = Deadline(seconds)
        if not find.steps:
            return replace(find, reproduced=True, minimal=True)
        for fresh in (False, True):
            steps, minimal = self._shortest(find, fresh, deadline)
            again = self._seen_again(replace(find, steps=steps, minimal=minimal)) if steps else None
            if again is not None:
                return again
        return find

    def _seen_again(self, find: Find) -> Find | None:
        """The find as a fresh server shows it, which has to end for its last words; None: it does not show it."""
        self._subject.renew()
        self._said()
        found = self._subject.play(find.steps)
        if found is None or found.cause != find.cause:
            return None
        self._subject.renew()
        return replace(find, what=str(found), said=next(filter(None, self._said()), ""), reproduced=True)

    def _shortest(self, find: Find, fresh: bool, deadline: Deadline) -> tuple[tuple[Step, ...], bool]:
        """The shortest sequence that was found in this time, and whether nothing of it can be left out.

        None at all where the whole does not show it so.
        """
        steps, tries = find.steps, 0

        def fails(some: Sequence[Step]) -> bool:
            nonlocal tries
            if tries and deadline.passed:
                return False
            tries += 1
            if fresh:
                self._subject.renew()
            again = self._subject.play(some)
            if again is None or again.cause != find.cause:
                return False
            self._listener.reducing(len(some), tries)
            return True

        # a find is at the end of its steps: that alone first, as where each try takes long there are few
        parts = dict.fromkeys((steps[-1:], steps, *_windows(steps)))
        shown = next(filter(fails, parts), None)
        if shown is None:
            return (), False
        steps = shown
        search = Reduction(
            range(len(steps)),
            lambda places: fails([steps[place] for place in places]),
            least=1,
            stop=lambda: deadline.passed or tries >= self._bounds.tries,
        )
        search.run()
        untold = not fresh and 1 < len(steps) == len(search.best)
        if untold and not deadline.passed and not fails(steps):
            return (), False  # nor does this server show the whole again: nothing is known by what it did not show
        return _simpler(tuple(steps[place] for place in search.best), fails), search.minimal


def _windows(steps: tuple[Step, ...]) -> list[tuple[Step, ...]]:
    """Pieces of a sequence, each over the border of two others: what a garbage collection hides shows in few steps."""
    size = max(1, len(steps) // 4)
    return [steps[begin : begin + size] for begin in range(0, len(steps), max(1, size // 2))]


def _simpler(steps: tuple[Step, ...], fails: Callable[[Sequence[Step]], bool]) -> tuple[Step, ...]:
    """The same steps with arguments that say less: zeros, shorter data, shorter lists."""
    for at in range(len(steps)):
        for place, (name, value) in enumerate(steps[at].arguments):
            for less in _less(value):
                arguments = list(steps[at].arguments)
                arguments[place] = (name, less)
                some = (*steps[:at], Step(steps[at].name, tuple(arguments)), *steps[at + 1 :])
                if fails(some):
                    steps = some
                    break
    return steps


def _less(value: Value) -> list[Value]:
    match value:
        case int():
            return [less for less in (0, 1, value // 2) if abs(less) < abs(value)]
        case str():
            return [less for less in ("", value[:2], "00" * (len(value) // 2)) if less != value and len(value) > 1]
    return [value[:1], value[: len(value) // 2]] if len(value) > 1 else []
