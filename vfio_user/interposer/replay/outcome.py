"""What a replay found."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from userdev.errors import VerdictError
from vfio_user.wire import Message


class What(Enum):
    """The kinds of difference."""

    REPLY = "another reply"
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
    """The first thing that the server did otherwise than was recorded."""

    what: What
    record: int
    """Of the trace: the request whose reply differs, or what was expected; 0 where nothing was."""
    expected: str = ""
    found: str = ""
    evidence: Any = None
    """What the server did, to be recognised again: bytes, or a tuple."""

    def __str__(self) -> str:
        lines = [f"{self.what.value}, at record {self.record}" if self.record else self.what.value]
        lines += [f"  expected: {self.expected}"] if self.expected else []
        lines += [f"  found:    {self.found}"] if self.found else []
        return "\n".join(lines)


@dataclass
class ReplayOutcome:
    """A replay as it went."""

    sent: int = 0
    """Messages of the client's that were played."""
    compared: int = 0
    """Replies, DMA accesses and interrupts that were as recorded."""
    seconds: float = 0.0
    difference: Difference | None = None
    """The first; None: the server did everything as recorded."""
    replies: dict[int, Message] = field(default_factory=dict)
    """By the number of the request's record: what the server answered."""
    dma_writes: list[bytes] = field(default_factory=list)
    """Payloads of the server's DMA_WRITEs, in order."""
    interrupts: list[tuple[int, int]] = field(default_factory=list)
    """(index, vector) of the interrupts, in order."""
    memory_was_mapped: bool = False
    """The recorded server reached guest memory past the interposer: the replay's memory is empty there."""

    @property
    def same(self) -> bool:
        """Whether the server did all that was recorded."""
        return self.difference is None

    def check(self) -> None:
        """For tests.

        Raises:
            VerdictError: the server did something else than was recorded.
        """
        if self.difference is not None:
            raise VerdictError("the replay differs", evidence=self.text())

    def text(self) -> str:
        """For people."""
        lines = [f"{self.sent} messages played in {self.seconds:.3f} s, {self.compared} answers as recorded"]
        if self.difference is not None:
            lines.append(str(self.difference))
        if self.memory_was_mapped:
            lines.append("note: guest memory was not captured, and is empty here (record with --capture-dma)")
        return "\n".join(lines)
