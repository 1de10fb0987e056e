"""What is counted of one place, and of one interrupt."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from userdev.trace.exchanges import Exchange
from userdev.trace.stats.latencies import Latencies

EXAMPLES = 5
"""Records that are named of what is told as a number."""


@dataclass(slots=True)
class Run:
    """Reads one after the other that all gave the same, with no write between them."""

    value: int | None = None
    count: int = 0
    first: int = 0
    last: int = 0
    """Numbers of records: the first request, and the last."""
    began: int = 0
    ended: int = 0
    """Times, ns."""


@dataclass(slots=True)
class Answers:
    """What one place read, or was followed by, in the same circumstances: how often, and where for example."""

    counts: Counter[object] = field(default_factory=Counter)
    records: dict[object, list[int]] = field(default_factory=dict)

    def add(self, what: object, record: int) -> None:
        """Count one."""
        self.counts[what] += 1
        examples = self.records.setdefault(what, [])
        if len(examples) < EXAMPLES:
            examples.append(record)


class Tally:
    """What is counted of one place."""

    __slots__ = (
        "after",
        "answers",
        "count",
        "errors",
        "last",
        "last_number",
        "latencies",
        "longest_run",
        "read_back",
        "run",
        "writes_before",
    )

    def __init__(self) -> None:
        self.count = 0
        self.errors = Answers()
        self.latencies = Latencies()
        self.last: int | None = None
        """The value of the last one."""
        self.last_number = 0
        self.run = self.longest_run = Run()
        self.writes_before = -1
        self.after: Exchange | None = None
        self.answers: dict[object, Answers] = {}
        """By the write that was before: what the first read behind it gave."""
        self.read_back = Answers()
        """Whether the first read behind a write of the same register gave what was written."""

    def ran(self, exchange: Exchange, writes: int) -> None:
        """Count a read in its run; `writes` is how many writes there were before."""
        run = self.run
        if exchange.value != run.value or writes != self.writes_before or exchange.value is None:
            self.writes_before = writes
            self.run = run = Run(exchange.value, 0, exchange.number, began=exchange.time)
        run.count += 1
        run.last = exchange.number
        run.ended = exchange.time
        if run.count > self.longest_run.count:
            self.longest_run = run


@dataclass(slots=True)
class Vector:
    """What is counted of one interrupt."""

    count: int = 0
    since_write: Latencies = field(default_factory=Latencies)
    """From the client's write before it."""


@dataclass(slots=True)
class Followed:
    """What came behind the writes of one place, each time before the next of them."""

    total: int = 0
    by: Counter[str] = field(default_factory=Counter)
    """Interrupt: so many of the writes."""
    nearest: Counter[str] = field(default_factory=Counter)
    """Interrupt: so often there was no other write between."""
    missing: dict[str, list[int]] = field(default_factory=dict)
    """Interrupt: records of writes behind which it did not come."""


@dataclass(slots=True)
class Pending:
    """A write, until the next one of the same place."""

    number: int
    seen: set[str] = field(default_factory=set)
