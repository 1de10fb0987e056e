"""What a replay found."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any

from userdev.counted import counted
from userdev.errors import VerdictError
from vfio_user.interposer.replay.script import Script
from vfio_user.wire import Message

RECORDS_SHOWN = 8
"""Numbers of records that a line of text lists, where the same differs again and again."""


class What(Enum):
    """The kinds of difference."""

    REPLY = "another reply"
    REPLY_ID = "a reply with another request's id"
    NO_REPLY = "no reply"
    CLOSED = "the server closed the connection"
    DMA_WRITE = "another DMA write"
    DMA_MISSING = "DMA that did not come"
    DMA_UNEXPECTED = "DMA that was not recorded"
    INTERRUPT_MISSING = "an interrupt that did not come"
    INTERRUPT_UNEXPECTED = "an interrupt that was not recorded"
    UNEXPECTED = "a message that was not recorded"


@dataclass(frozen=True)
class Difference:
    """One thing that the server did otherwise than was recorded."""

    what: What
    record: int
    """Of the trace: the request whose reply differs, or what was expected; 0 where nothing was."""
    expected: str = ""
    found: str = ""
    evidence: Any = None
    """What the server did, to be recognised again: bytes, or a tuple."""
    after: int = 0
    """Record of the client's last message before; 0 where there was none. Of interrupts that came too often, before the
    first of them that no recorded one was waiting for."""
    place: str = ""
    """Where it differs, without the values: the same for all that is alike."""

    @property
    def where(self) -> str:
        """The record, in words."""
        if self.record:
            return f", at record {self.record}"
        return f", after record {self.after}" if self.after else ""

    def __str__(self) -> str:
        lines = [f"{self.what.value}{self.where}"]
        lines += [f"  expected: {self.expected}"] if self.expected else []
        lines += [f"  found:    {self.found}"] if self.found else []
        return "\n".join(lines)

    def renumbered(self, numbers: dict[int, int]) -> Difference:
        """The same of a script whose records have other numbers."""
        return replace(self, record=numbers.get(self.record, 0), after=numbers.get(self.after, 0))

    def json(self) -> dict[str, Any]:
        """The same for programs; `what` is a name of `What`."""
        found = {"what": self.what.name, "record": self.record, "after": self.after, "place": self.place}
        return {**found, "expected": self.expected, "found": self.found}


@dataclass
class ReplayOutcome:
    """A replay as it went."""

    played: Script
    """The same requests with what this server did: its answers, interrupts and DMA."""
    sent: int = 0
    """Messages of the client's that were played."""
    compared: int = 0
    """Replies, DMA accesses and interrupts that were as recorded."""
    ignored: int = 0
    """Those that were not compared, as was asked."""
    unplayed: int = 0
    """Messages of the client's that were not played, as the server was gone."""
    seconds: float = 0.0
    slowest: float = 0.0
    """Seconds that the slowest of what was recorded took to come, the server's start aside."""
    differences: list[Difference] = field(default_factory=list)
    """All, in order; none: the server did everything as recorded."""
    fate: str = ""
    """How the server's process ended, where it was started for the replay and ended by itself."""
    replies: dict[int, Message] = field(default_factory=dict)
    """By the number of the request's record: what the server answered."""
    dma_writes: list[bytes] = field(default_factory=list)
    """Payloads of the server's DMA_WRITEs, in order."""
    interrupts: list[tuple[int, int]] = field(default_factory=list)
    """(index, vector) of the interrupts, in order."""
    memory_was_mapped: bool = False
    """The recorded server reached guest memory past the interposer: the replay's memory is empty there."""

    @property
    def difference(self) -> Difference | None:
        """The first; None: the server did everything as recorded."""
        return self.differences[0] if self.differences else None

    @property
    def same(self) -> bool:
        """Whether the server did all that was recorded."""
        return not self.differences

    def check(self) -> None:
        """For tests.

        Raises:
            VerdictError: the server did something else than was recorded.
        """
        if self.differences:
            raise VerdictError("the replay differs", evidence=self.text())

    def text(self) -> str:
        """For people: what differs in the same place is told once, with the records of all."""
        ignored = f", {self.ignored} ignored" if self.ignored else ""
        good = counted(self.compared, "answer")
        lines = [f"{counted(self.sent, 'message')} played in {self.seconds:.3f} s, {good} as recorded{ignored}"]
        if self.differences:
            count = len(self.differences)
            lines.append(f"{counted(count, 'difference')}:")
        alike: dict[tuple[What, str], list[Difference]] = {}
        for difference in self.differences:
            alike.setdefault((difference.what, difference.place), []).append(difference)
        for first, *more in alike.values():
            lines.append(str(first))
            if more:
                lines.append(f"  and {len(more)} more like it, at {_records(more)}")
        if self.fate:
            lines.append(f"the server {self.fate}")
        if self.unplayed:
            lines.append(f"not played: {counted(self.unplayed, 'message')}")
        if self.memory_was_mapped:
            lines.append("note: guest memory was not captured, and is empty here (record with --capture-dma)")
        return "\n".join(lines)

    def json(self) -> dict[str, Any]:
        """The same for programs: every difference by itself."""
        return {
            "same": self.same,
            "sent": self.sent,
            "compared": self.compared,
            "ignored": self.ignored,
            "unplayed": self.unplayed,
            "seconds": round(self.seconds, 6),
            "fate": self.fate,
            "memory_was_mapped": self.memory_was_mapped,
            "differences": [difference.json() for difference in self.differences],
        }


def _records(differences: list[Difference]) -> str:
    numbers = [str(each.record or each.after) for each in differences]
    named = "record " if len(numbers) == 1 else "records "
    return named + ", ".join(numbers[:RECORDS_SHOWN]) + ("..." if len(numbers) > RECORDS_SHOWN else "")
