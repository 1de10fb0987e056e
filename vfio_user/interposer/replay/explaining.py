"""What goes wrong in a trace, and what of it that takes.

That a server answers the same as before does not make it wrong still: without the write that clears a flag the flag is
rightly set. So what is left has to be good on a reference, whose answers then are what the shorter trace has recorded.
Where there is none the recorded answers have to do: what they depend on is learned of the recording (`evidence`), and
only the record that goes wrong is compared.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from subprocess import DEVNULL

from userdev.errors import UserError
from vfio_user.interposer.replay.evidence import Evidence
from vfio_user.interposer.replay.ignoring import Ignored
from vfio_user.interposer.replay.outcome import Difference, ReplayOutcome
from vfio_user.interposer.replay.player import replay
from vfio_user.interposer.replay.reducing import Minimized, Progress, reduce_script
from vfio_user.interposer.replay.script import Script
from vfio_user.interposer.replay.symptom import GONE, Symptom, asked_again, may_pass, not_asked_again, symptom_of
from vfio_user.interposer.trace.registers import RegisterMap

LEAST_PATIENCE = 0.25
"""Seconds that a server has during a search, more where it was slow before; the result is tried with all it has."""
SLOWER = 20
"""So many times longer than the slowest answer of the whole trace."""
FOR_REPLIES = 4
"""So many times longer for what is answered: that costs only where it is not."""


@dataclass(frozen=True)
class Trial:
    """How a script is tried."""

    server: str
    reference: str | None
    ignored: Ignored
    registers: RegisterMap
    patience: float
    beside: float

    def suspect(self, script: Script) -> ReplayOutcome:
        """Played to the server that goes wrong."""
        return self._play(script, self.server)

    def good(self, script: Script) -> ReplayOutcome:
        """Played to the reference.

        Raises:
            UserError: it cannot be.
        """
        assert self.reference is not None
        try:
            return self._play(script, self.reference)
        except UserError as error:
            raise UserError(f"the reference cannot be tried: {error}", hint=error.hint) from None

    def hurried(self, slowest: float) -> Trial:
        """The same with no more patience than is needed."""
        least = max(LEAST_PATIENCE, SLOWER * slowest)
        return replace(self, patience=min(self.patience, FOR_REPLIES * least), beside=min(self.beside, least))

    def shows(self, symptom: Symptom, script: Script) -> bool:
        """Whether the server goes wrong in this way, and the reference, if there is one, does not."""
        if not symptom.shows(self.suspect(script)):
            return False
        return self.reference is None or symptom.spares(self.good(script))

    def _play(self, script: Script, command: str) -> ReplayOutcome:
        return replay(
            script,
            command,
            ignore=self.ignored,
            registers=self.registers,
            patience=self.patience,
            beside=self.beside,
            output=DEVNULL,
        )


class Explanation:
    """Finds what goes wrong, then what it takes."""

    def __init__(self, trial: Trial, script: Script, record: int | None) -> None:
        self._began = time.monotonic()
        self._trial = trial
        self._before = len(script.requests)
        if trial.reference is not None:  # what is right is what the reference does, whoever was recorded
            script = _right(trial.good(script))
        outcome = trial.suspect(script)
        self._symptom = self._found(outcome, self._steady(script, outcome), record)
        self._hurried = trial.hurried(outcome.slowest)
        self._script = self._symptom.cut(script)
        if trial.reference is None and may_pass(script, self._symptom.difference):
            self._ask_again()
        before = time.monotonic()
        if not trial.shows(self._symptom, self._script):
            raise _fitful(self._symptom.difference)
        self._once = time.monotonic() - before
        """Seconds that a replay with all patience takes, as the last one does, which the search leaves time for."""

    def minimize(self, seconds: float, progress: Progress) -> Minimized:
        """The result, with its difference in its own numbers; the seconds are counted from when this was made."""
        once = replace(self._symptom, again=0)
        for trial in (self._hurried, self._trial):
            left = max(0.0, seconds - self._spent - self._once)
            found = self._search(trial, left, progress)
            found.script = self._finished(found.script)
            outcome = self._trial.suspect(found.script)
            found.confirmed = once.shows(outcome)
            if found.confirmed or found.ended != "minimal":
                break
        found.seconds = self._spent
        found.before, found.after = self._before, len(found.script.requests)
        found.difference = next((each for each in outcome.differences if once.is_(each, outcome)), None)
        found.script, numbers = found.script.renumbered()
        if found.difference is not None:
            found.difference = found.difference.renumbered(numbers)
        return found

    @property
    def _spent(self) -> float:
        return time.monotonic() - self._began

    def _search(self, trial: Trial, seconds: float, progress: Progress) -> Minimized:
        keep = self._symptom.needed(self._script) | ({self._symptom.again} - {0})
        return reduce_script(
            self._script,
            lambda script: trial.shows(self._symptom, script),
            keep=keep,
            evidence=self._evidence(),
            seconds=seconds,
            progress=lambda left, tries, _: progress(left - bool(self._symptom.again), tries, self._spent),
        )

    def _evidence(self) -> Evidence | None:
        """Of what else has to stay, where no reference can be asked."""
        if self._trial.reference is None and may_pass(self._script, self._symptom.difference):
            return Evidence(self._script, self._symptom.difference.record)
        return None

    def _steady(self, script: Script, outcome: ReplayOutcome) -> list[Difference]:
        """The differences that come again, and that the reference has not against itself: a clock always differs."""
        found = outcome.differences
        if self._trial.reference is not None and found:
            always = self._trial.good(script)
            found = [each for each in found if symptom_of(each, outcome).spares(always)]
        if found:
            again = self._trial.suspect(script)
            found = [each for each in found if symptom_of(each, outcome).shows(again)]
        return found

    def _found(self, outcome: ReplayOutcome, steady: list[Difference], record: int | None) -> Symptom:
        """The difference that is to be explained."""
        if not outcome.differences:
            right = "as recorded" if self._trial.reference is None else "as the reference does"
            raise UserError(
                f"the trace does not fail to begin with: the server does everything {right}",
                hint="where the trace was recorded with this very server, say what is right: --against REFERENCE"
                if self._trial.reference is None
                else "",
            )
        wanted = [each for each in outcome.differences if record is None or record in (each.record, each.after)]
        if not wanted:
            raise UserError(f"nothing differs at record {record}", hint=outcome.text())
        chosen = next((each for each in wanted if each in steady), None)
        if chosen is None:
            raise _fitful(wanted[0])
        return symptom_of(chosen, outcome)

    def _ask_again(self) -> None:
        """Have the symptom say so, if a second reading is right."""
        number = max(step.number for step in self._script.steps) + 1
        passing = replace(self._symptom, again=number)
        twice = asked_again(self._script, self._symptom.record, number)
        if passing.shows(self._trial.suspect(twice)):
            self._symptom, self._script = passing, twice

    def _finished(self, script: Script) -> Script:
        """What was found as a trace of its own: with a reference's answers, or with those recorded that count."""
        if self._trial.reference is not None:
            played = self._trial.good(script).played
            if self._trial.good(played).same:
                return played
        if self._symptom.again:
            script = not_asked_again(script, self._symptom.again)
        return replace(script, compared=self._symptom.compared)


def _right(outcome: ReplayOutcome) -> Script:
    """What a reference was played, with its answers.

    Raises:
        UserError: it did not answer all of it.
    """
    gone = next((each for each in outcome.differences if each.what in GONE), None)
    if gone is not None:
        raise UserError("the reference goes wrong itself, and is none for this trace", hint=outcome.text())
    return outcome.played


def _fitful(difference: Difference) -> UserError:
    return UserError(
        f"the server does not go wrong each time: {difference.what.value}{difference.where} did not come again",
        hint="--check CMD decides by a command of yours, which may try it several times",
    )
