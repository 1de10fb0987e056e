"""The way in which a server goes wrong, to be recognised again in a shorter session.

The same record has to go wrong in the same way: the same wrong reply to the same request, the same interrupt lost, the
same wrong data at the same place. What else a server does then differs, and may.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from vfio_user.interposer.replay.outcome import Difference, ReplayOutcome, What
from vfio_user.interposer.replay.script import Script
from vfio_user.interposer.replay.steps import ScriptStep
from vfio_user.interposer.trace import MessageRecord
from vfio_user.wire import Command

GONE = frozenset({What.CLOSED, What.NO_REPLY})
"""The differences after which little or nothing is played."""
_UNEXPECTED = frozenset({What.DMA_UNEXPECTED, What.INTERRUPT_UNEXPECTED, What.UNEXPECTED})


@dataclass(frozen=True)
class Symptom:
    """One difference, and what goes with it."""

    difference: Difference
    fate: str = ""
    """How the server's process ended, where it did."""
    again: int = 0
    """Where the server answers wrong once, and right when it is asked again: the number of the second request. One that
    answers wrong the second time too is wrong for another reason."""

    @property
    def record(self) -> int:
        """The record that goes wrong: the one that differs, or the request after which comes what should not."""
        return self.difference.record or self.difference.after

    @property
    def compared(self) -> frozenset[int]:
        """What a replay has to compare to see it."""
        return frozenset() if self.difference.what in GONE else frozenset({self.record})

    def needed(self, script: Script) -> set[int]:
        """The client's requests without which it cannot show."""
        causes = script.causes
        if self.difference.what is What.CLOSED:
            wanted: set[int] = set()
        elif self.difference.record in causes.cause:
            wanted = causes.needs.get(self.difference.record, set())
        else:
            wanted = {self.record}
        return causes.closure([*script.versions, *wanted])

    def cut(self, script: Script) -> Script:
        """The script without what comes after it, which cannot matter; asked again, where that belongs to it."""
        last = self.difference.after if self.difference.what is What.CLOSED else self.record
        cut = script.up_to(last)
        return asked_again(cut, self.record, self.again) if self.again else cut

    def shows(self, outcome: ReplayOutcome) -> bool:
        """Whether a server went wrong in this way."""
        return any(self.is_(found, outcome) for found in outcome.differences) and self._was_passing(outcome)

    def spares(self, outcome: ReplayOutcome) -> bool:
        """Whether a server that was played the same, a reference, did right where this one goes wrong."""
        alike = (self.difference.what, self.difference.evidence)
        return not any(
            found.what in GONE
            or (bool(found.record) and found.record == self.difference.record)
            or (found.what in _UNEXPECTED and (found.what, found.evidence) == alike)
            for found in outcome.differences
        )

    def is_(self, found: Difference, outcome: ReplayOutcome) -> bool:
        """Whether one of the differences of a replay is it."""
        wanted = self.difference
        if found.what is not wanted.what:
            return False
        match wanted.what:
            case What.CLOSED:
                return outcome.fate == self.fate and bool(found.evidence & wanted.evidence)
            case What.REPLY | What.DMA_WRITE:
                return (found.record, found.evidence) == (wanted.record, wanted.evidence)
            case What.DMA_UNEXPECTED | What.INTERRUPT_UNEXPECTED | What.UNEXPECTED:
                return (found.after, found.evidence) == (wanted.after, wanted.evidence)
            case _:
                return found.record == wanted.record

    def _was_passing(self, outcome: ReplayOutcome) -> bool:
        return not self.again or all(found.record != self.again for found in outcome.differences)


def asked_again(script: Script, record: int, number: int) -> Script:
    """The script with the same request once more at its end, as record `number`, and the same reply to it."""
    more: list[ScriptStep] = []
    for step in script.steps:
        if step.number == record:
            more.append(replace(step, number=number))
        elif isinstance(step, MessageRecord) and step.pair == record:
            more.append(replace(step, number=number + 1, pair=number))
    return replace(script, steps=(*script.steps, *more))


def not_asked_again(script: Script, number: int) -> Script:
    """The script without that."""
    return replace(script, steps=tuple(step for step in script.steps if step.number not in (number, number + 1)))


def symptom_of(difference: Difference, outcome: ReplayOutcome) -> Symptom:
    """What a replay of the whole has shown."""
    return Symptom(difference, outcome.fate if difference.what is What.CLOSED else "")


def may_pass(script: Script, difference: Difference) -> bool:
    """Whether it is something that can be asked again: what a register reads."""
    reads = script.dialect.number(Command.REGION_READ)
    return difference.what is What.REPLY and any(
        isinstance(step, MessageRecord) and step.number == difference.record and step.message.command == reads
        for step in script.steps
    )
