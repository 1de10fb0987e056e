"""What is odd about a trace, in words: a guest that spins, a read that is seldom so, an interrupt that did not come."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from userdev.counted import counted, times
from userdev.trace.exchanges import Place
from userdev.trace.format import View
from userdev.trace.stats.stats import Stats
from userdev.trace.stats.tally import EXAMPLES, Answers, Tally

SPINS = 100
"""Reads of the same that are a loop..."""
SPIN_INTERVAL = 10_000_000
"""...where they come within so many ns of each other, on the average: what a timer does is no loop."""
ENOUGH = 20
"""Times that something has to have happened before it has a usual way."""
USUAL = 0.9
"""The share of all that is usual."""


@dataclass(frozen=True)
class Finding:
    """Something odd."""

    kind: str
    text: str
    records: Sequence[int] = ()
    """Numbers of records to look at, not all of them."""

    def __str__(self) -> str:
        named = "record" if len(self.records) == 1 else "records"
        where = f" ({named} {', '.join(map(str, self.records))})"
        return f"{self.kind}: {self.text}{where if self.records else ''}"


def findings(stats: Stats) -> list[Finding]:
    """Everything, what is surely wrong first."""
    found = [*_errors(stats), *_unmodelled(stats), *_unanswered(stats)]
    if stats.bytes_unframed:
        found.append(Finding("no messages", f"{counted(stats.bytes_unframed, 'byte')} passed outside of any"))
    spins = sorted(_spinning(stats), key=lambda spin: -spin[0])
    return [*found, *_no_interrupts(stats), *_seldom(stats), *_not_read_back(stats), *(finding for _, finding in spins)]


def _errors(stats: Stats) -> Iterator[Finding]:
    for place, tally in stats.tallies.items():
        for name, count in tally.errors.counts.items():
            times = f"{count:,} of {tally.count:,}"
            yield Finding("error", f"{place.title} was answered with {name}, {times}", tally.errors.records[name])


def _unmodelled(stats: Stats) -> Iterator[Finding]:
    for place, tally in stats.tallies.items():
        if place.unknown:
            done = "written" if place.writes else "read"
            text = f"{place.where} was {done} {times(tally.count)}, {place.size} bytes, and no register is named there"
            yield Finding("not modelled", text, [tally.last_number])


def _unanswered(stats: Stats) -> Iterator[Finding]:
    """Requests without an answer; of those that only came in, as many were changed as were sent on otherwise."""
    lost: dict[Place, list[int]] = {}
    unpassed: dict[Place, list[int]] = {}
    for exchange in stats.exchanges.rest():
        if exchange.reply:
            unpassed.setdefault(exchange.place, []).append(exchange.number)
        elif exchange.view != View.RECEIVED:
            lost.setdefault(exchange.place, []).append(exchange.number)
    for place, numbers in lost.items():
        yield Finding("unanswered", f"{place.title} {times(len(numbers))}", numbers[:EXAMPLES])
    for place, numbers in unpassed.items():
        yield Finding("not passed on", f"the answer to {place.title} {times(len(numbers))}", numbers[:EXAMPLES])


def _spinning(stats: Stats) -> Iterator[tuple[int, Finding]]:
    for place, tally in stats.tallies.items():
        run = tally.longest_run
        took = run.ended - run.began
        if run.count < SPINS or took > run.count * SPIN_INTERVAL or run.value is None:
            continue
        text = f"{place.subject} was read {run.count:,} times and gave {run.value:#x} each time, in {took / 1e9:.3f} s"
        yield run.count, Finding("spinning", text, [run.first, run.last])


def _no_interrupts(stats: Stats) -> Iterator[Finding]:
    """Writes that an interrupt usually comes behind, most closely of all, and sometimes does not."""
    for name in stats.vectors:
        behind = [(followed.nearest[name], place, followed) for place, followed in stats.followed.items()]
        _, place, followed = max(behind, key=lambda one: one[0], default=(0, None, None))
        if place is None or followed is None:
            continue
        last = stats.pending.get(place)
        came = last is not None and name in last.seen
        count, total = followed.by[name] + came, followed.total + came
        if total < ENOUGH:
            continue
        if place in stats.tallies and stats.vectors[name].count >= stats.tallies[place].count:
            continue  # all came, though not one behind each: several were under way
        if USUAL * total <= count < total:
            lacking = f"{total - count:,} of {total:,}"
            open_yet = ", without the last, behind which the trace ends" if last is not None and not came else ""
            text = f"{name} came behind every write of {place.subject} but {lacking}{open_yet}"
            yield Finding("no interrupt", text, followed.missing.get(name, ()))


def _seldom(stats: Stats) -> Iterator[Finding]:
    """Reads that nearly always give the same behind the same write."""
    for place, tally in stats.tallies.items():
        for circumstance, answers in tally.answers.items():
            if (usual := _usual(answers)) is None or not isinstance(circumstance, tuple):
                continue
            write, value = circumstance
            written = f"a write of {_shown(value)} to {write.subject}"
            for what, count in answers.counts.items():
                if what != usual:
                    often = f"{count:,} of {answers.counts.total():,}"
                    text = f"{place.subject} reads {_shown(usual)} behind {written}, and {_shown(what)} in {often}"
                    yield Finding("seldom", text, answers.records[what])


def _not_read_back(stats: Stats) -> Iterator[Finding]:
    for place, tally in stats.tallies.items():
        if _usual(tally.read_back) is True and not _is_told(tally):
            often = f"{tally.read_back.counts[False]:,} of {tally.read_back.counts.total():,}"
            text = f"{place.subject} reads what was written to it, but for {often}"
            yield Finding("not read back", text, tally.read_back.records[False])


def _is_told(tally: Tally) -> bool:
    return any(_usual(answers) is not None for answers in tally.answers.values())


def _usual(answers: Answers) -> object | None:
    """What is usual among answers that are not all the same; None where nothing is, or all are."""
    total = answers.counts.total()
    if total < ENOUGH or len(answers.counts) < 2:
        return None
    what, count = answers.counts.most_common(1)[0]
    return what if count >= USUAL * total else None


def _shown(value: object) -> str:
    return f"{value:#x}" if isinstance(value, int) else "data" if value is None else str(value)
