"""Shrinks a trace on which a server goes wrong to the part that it takes, and keeps the cause.

Pieces of what the client did are left out (`userdev.reduction`), with all that makes no sense without them (`causes`),
as long as the server goes wrong in the same way (`symptom`). That a server answers the same as before does not make it
wrong still: without the write that clears a flag the flag is rightly set. So what is left has to be good on a
reference, whose answers then are what the shorter trace has recorded. Where there is none the recorded answers have to
do: what they depend on is learned of the recording (`evidence`), and only the record that goes wrong is compared.
"""

from __future__ import annotations

import contextlib
import shlex
import subprocess
import tempfile
import time
from collections.abc import Callable, Collection, Hashable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from userdev.errors import UserError
from userdev.reduction import Reduction
from vfio_user.interposer.replay.evidence import Evidence
from vfio_user.interposer.replay.ignoring import Ignored
from vfio_user.interposer.replay.outcome import Difference, ReplayOutcome
from vfio_user.interposer.replay.player import PATIENCE_SECONDS, replay
from vfio_user.interposer.replay.script import Script, load_script
from vfio_user.interposer.replay.steps import place_of
from vfio_user.interposer.replay.symptom import Symptom, asked_again, may_pass, not_asked_again, symptom_of
from vfio_user.interposer.trace import MessageRecord, Raw
from vfio_user.interposer.trace.registers import RegisterMap, registers_of

Fails = Callable[[Script], bool]
Ended = Literal["minimal", "time is up", "interrupted"]
Progress = Callable[[int, int, float], None]
"""Told of (messages left, replays so far, seconds so far)."""
BUDGET_SECONDS = 600.0
"""Seconds that a search takes at most, unless told otherwise."""
LEAST_PATIENCE = 0.25
"""Seconds that a server has during a search, more where it was slow before; the result is tried with all it has."""
SLOWER = 20
"""So many times longer than the slowest answer of the whole trace."""


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

    def json(self) -> dict[str, Any]:
        """The same for programs."""
        return {
            "before": self.before,
            "after": self.after,
            "replays": self.replays,
            "seconds": round(self.seconds, 3),
            "ended": self.ended,
            "confirmed": self.confirmed,
            "difference": self.difference.json() if self.difference is not None else None,
        }


def minimize(
    trace: str | Path | Script,
    server_command: str,
    *,
    against: str | None = None,
    check: str | None = None,
    record: int | None = None,
    session: int = 1,
    ignore: Ignored | Collection[str] = (),
    registers: RegisterMap | None = None,
    patience: float = PATIENCE_SECONDS,
    seconds: float = BUDGET_SECONDS,
    progress: Progress = lambda left, replays, seconds: None,
) -> Minimized:
    """Shrink a trace on which a server goes wrong.

    against: the command of a reference, which does right what the server does wrong. The trace may then be of either.
    check: a command that decides instead of a replay: `{trace}` is the candidate, exit status 0 means that it no
        longer fails; `{server}` is `server_command`.
    record: the record that is to be explained, where several differ; the first if not given.
    seconds: after which the search ends with the best so far; so does KeyboardInterrupt.

    Raises:
        UserError: it does not fail to begin with, not each time, not at that record, or cannot be replayed.
    """
    script = trace if isinstance(trace, Script) else load_script(trace, session)
    if check is not None:
        fails = _checked_by(check, server_command)
        if not fails(script):
            raise UserError(f"the trace does not fail to begin with: {check} succeeds")
        return reduce_script(script, fails, seconds=seconds, progress=progress)
    registers = registers or registers_of(script.header)
    ignored = ignore if isinstance(ignore, Ignored) else Ignored.parse(ignore, registers)
    trial = _Trial(server_command, against, ignored, registers, patience)
    return _Explanation(trial, script, record).minimize(seconds, progress)


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
    return Minimized(found, len(script.requests), len(found.requests), search.tries, ended, spent)


@dataclass(frozen=True)
class _Trial:
    """How a script is tried."""

    server: str
    reference: str | None
    ignored: Ignored
    registers: RegisterMap
    patience: float

    def suspect(self, script: Script) -> ReplayOutcome:
        """Played to the server that goes wrong."""
        return self._play(script, self.server)

    def good(self, script: Script) -> ReplayOutcome:
        """Played to the reference."""
        assert self.reference is not None
        return self._play(script, self.reference)

    def hurried(self, slowest: float) -> _Trial:
        """The same with no more patience than is needed."""
        return replace(self, patience=min(self.patience, max(LEAST_PATIENCE, SLOWER * slowest)))

    def shows(self, symptom: Symptom, script: Script) -> bool:
        """Whether the server goes wrong in this way, and the reference, if there is one, does not."""
        if not symptom.shows(self.suspect(script)):
            return False
        return self.reference is None or symptom.spares(self.good(script))

    def _play(self, script: Script, command: str) -> ReplayOutcome:
        return replay(
            script, command, ignore=self.ignored, registers=self.registers, patience=self.patience, quiet=True
        )


class _Explanation:
    """Finds what goes wrong, then what it takes."""

    def __init__(self, trial: _Trial, script: Script, record: int | None) -> None:
        self._trial = trial
        self._before = len(script.requests)
        if trial.reference is not None:  # what is right is what the reference does, whoever was recorded
            script = trial.good(script).played
        outcome = trial.suspect(script)
        self._symptom = self._found(outcome, record)
        self._hurried = trial.hurried(outcome.slowest)
        self._script = self._symptom.cut(script)
        if trial.reference is None and may_pass(script, self._symptom.difference):
            self._ask_again()
        if not trial.shows(self._symptom, self._script):
            raise UserError(
                f"the server does not go wrong each time: {self._symptom.difference.what.value}"
                f"{self._symptom.difference.where} did not come again",
                hint="--check CMD decides by a command of yours, which may try it several times",
            )

    def minimize(self, seconds: float, progress: Progress) -> Minimized:
        """The result, with its difference in its own numbers."""
        began = time.monotonic()
        once = replace(self._symptom, again=0)
        for trial in (self._hurried, self._trial):
            left = max(0.0, began + seconds - time.monotonic())
            found = self._search(trial, left, progress)
            found.script = self._finished(found.script)
            outcome = self._trial.suspect(found.script)
            found.confirmed = once.shows(outcome)
            if found.confirmed or found.ended != "minimal":
                break
        found.seconds = time.monotonic() - began
        found.before, found.after = self._before, len(found.script.requests)
        found.difference = next((each for each in outcome.differences if once.is_(each, outcome)), None)
        found.script, numbers = found.script.renumbered()
        if found.difference is not None:
            found.difference = found.difference.renumbered(numbers)
        return found

    def _search(self, trial: _Trial, seconds: float, progress: Progress) -> Minimized:
        keep = self._symptom.needed(self._script) | ({self._symptom.again} - {0})
        return reduce_script(
            self._script,
            lambda script: trial.shows(self._symptom, script),
            keep=keep,
            evidence=self._evidence(),
            seconds=seconds,
            progress=progress,
        )

    def _evidence(self) -> Evidence | None:
        """Of what else has to stay, where no reference can be asked."""
        if self._trial.reference is None and may_pass(self._script, self._symptom.difference):
            return Evidence(self._script, self._symptom.difference.record)
        return None

    def _found(self, outcome: ReplayOutcome, record: int | None) -> Symptom:
        """The difference that is to be explained."""
        if not outcome.differences:
            right = "as recorded" if self._trial.reference is None else "as the reference does"
            raise UserError(
                f"the trace does not fail to begin with: the server does everything {right}",
                hint="where the trace was recorded with this very server, say what is right: --against REFERENCE"
                if self._trial.reference is None
                else "",
            )
        if record is None:
            return symptom_of(outcome.differences[0], outcome)
        chosen = next((each for each in outcome.differences if record in (each.record, each.after)), None)
        if chosen is None:
            raise UserError(f"nothing differs at record {record}", hint=outcome.text())
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


def _checked_by(command: str, server_command: str) -> Fails:
    words = shlex.split(command)

    def fails(script: Script) -> bool:
        with tempfile.TemporaryDirectory(prefix="vfu-") as folder:
            candidate = Path(folder) / "candidate.trace"
            script.write(candidate)
            filled = [word.replace("{trace}", str(candidate)).replace("{server}", server_command) for word in words]
            return subprocess.run(filled, check=False, capture_output=True).returncode != 0

    return fails
