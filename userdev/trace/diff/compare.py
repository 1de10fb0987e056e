"""Compares two traces: lane by lane, since what happens between two of them is a matter of time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from userdev.counted import times
from userdev.trace.diff.alignment import Hunk, hunks
from userdev.trace.diff.sequence import Sequence, Sequences, Tokens
from userdev.trace.exchanges import Exchange, Reading

ANSWER, ASKED, ONLY_A, ONLY_B, REPEATS, INTERRUPTS, BEHIND = (
    "answer",
    "asked",
    "only in A",
    "only in B",
    "repeats",
    "interrupts",
    "interrupt",
)
"""The kinds of difference: the same was asked and answered otherwise; something else was written to the same place;
only one has it; the same was read more often; there were more interrupts; one came behind a write of the one only."""


@dataclass(frozen=True)
class Difference:
    """One difference. Records are numbers of the trace that they are of, 0 where it has none."""

    kind: str
    what: str
    """What it is about, in words."""
    a: str = ""
    """As A has it."""
    b: str = ""
    a_record: int = 0
    b_record: int = 0
    a_reply: int = 0
    b_reply: int = 0

    @property
    def text(self) -> str:
        """What differs, in a line."""
        return self.what if self.a == self.b else f"{self.what}: {self.a or 'nothing'} in A, {self.b or 'nothing'} in B"


@dataclass
class Comparison:
    """Everything that differs, and how much is the same."""

    differences: list[Difference] = field(default_factory=list)
    same: int = 0
    """Exchanges that are alike; what was polled for counts as one."""
    polled: int = 0
    """Among them, reads that one trace has more often in a row than the other: that is time."""


class _Texts:
    """Says what exchanges are about, in words."""

    def __init__(self, tokens: Tokens, reading: Reading) -> None:
        self.tokens = tokens
        self._reading = reading

    def title(self, token: int) -> str:
        return self.tokens.examples[token].place.title

    def asked(self, token: int) -> str:
        exchange = self.tokens.examples[token]
        if exchange.place.is_access and exchange.place.writes and exchange.value is not None:
            return f"{exchange.value:#x}"
        return _words(self._reading.fields(exchange.asked, exchange))

    def answered(self, token: int) -> str:
        exchange = self.tokens.examples[token]
        if not exchange.reply:
            return ""
        if exchange.error:
            return exchange.error
        if exchange.place.is_access and not exchange.place.writes and exchange.value is not None:
            return f"{exchange.value:#x}"
        return _words(self._reading.fields(exchange.answered, exchange)) or "an answer"

    def whole(self, token: int) -> str:
        """Title, what was written, and what was answered."""
        exchange = self.tokens.examples[token]
        written = f" = {self.asked(token)}" if exchange.place.writes else ""
        answer = self.answered(token) if exchange.error or not exchange.place.writes else ""
        return f"{self.title(token)}{written}{f' -> {answer}' if answer else ''}"

    def apart(self, a: int, b: int) -> tuple[str, str, str]:
        """The kind of difference between two that are about the same place, and each one's words for it."""
        one, other = self.tokens.examples[a], self.tokens.examples[b]
        if self._reading.without_id(one.asked) != self._reading.without_id(other.asked):
            return ASKED, *_only_different(self._fields(one, one.asked), self._fields(other, other.asked))
        if one.reply and other.reply and not (one.error or other.error or one.place.is_access):
            return ANSWER, *_only_different(self._fields(one, one.answered), self._fields(other, other.answered))
        return ANSWER, self.answered(a), self.answered(b)

    def _fields(self, exchange: Exchange, message: bytes) -> dict[str, Any]:
        if exchange.place.is_access and exchange.value is not None:
            return {"": f"{exchange.value:#x}"}
        return self._reading.fields(message, exchange)


def compare(a: Sequences, b: Sequences, tokens: Tokens, reading: Reading, *, polls: bool = False) -> Comparison:
    """Find every difference; `polls` counts how often the same was read in a row as one."""
    found = Comparison()
    texts = _Texts(tokens, reading)
    pairs: dict[int, int] = {}
    for lane in sorted(a.lanes.keys() | b.lanes.keys()):
        _compare_lane(a.lanes.get(lane, Sequence()), b.lanes.get(lane, Sequence()), texts, found, pairs, polls=polls)
    found.differences += _interrupts(a, b, pairs, texts)
    found.differences.sort(key=lambda one: (one.a_record or one.b_record, one.b_record))
    return found


def _compare_lane(
    a: Sequence, b: Sequence, texts: _Texts, found: Comparison, pairs: dict[int, int], *, polls: bool
) -> None:
    """Put down what differs between two lanes, and which records of the one are which of the other's."""
    at_a = at_b = 0
    for hunk in [*hunks(a.tokens, b.tokens), Hunk(len(a.tokens), len(a.tokens), len(b.tokens), len(b.tokens))]:
        for one, other in zip(range(at_a, hunk.a_from), range(at_b, hunk.b_from), strict=True):
            pairs[a.numbers[one]] = b.numbers[other]
            found.same += 1
            if a.repeats[one] != b.repeats[other]:
                found.polled += 1
                if polls:
                    counts = times(a.repeats[one]), times(b.repeats[other])
                    records = a.numbers[one], b.numbers[other]
                    found.differences.append(Difference(REPEATS, texts.whole(a.tokens[one]), *counts, *records))
        found.differences += _within(a, b, hunk, texts, pairs)
        at_a, at_b = hunk.a_to, hunk.b_to


def _within(a: Sequence, b: Sequence, hunk: Hunk, texts: _Texts, pairs: dict[int, int]) -> Iterator[Difference]:
    """What differs where nothing is wholly the same: what is about the same place belongs together."""
    places = texts.tokens.places
    of_a = [places[token] for token in a.tokens[hunk.a_from : hunk.a_to]]
    of_b = [places[token] for token in b.tokens[hunk.b_from : hunk.b_to]]
    at_a = at_b = 0
    for inner in [*hunks(of_a, of_b), Hunk(len(of_a), len(of_a), len(of_b), len(of_b))]:
        for one, other in zip(range(at_a, inner.a_from), range(at_b, inner.b_from), strict=True):
            yield _differing(a, hunk.a_from + one, b, hunk.b_from + other, texts, pairs)
        for one in range(inner.a_from, inner.a_to):
            place = hunk.a_from + one
            text = texts.whole(a.tokens[place])
            yield Difference(ONLY_A, text, a_record=a.numbers[place], a_reply=a.replies[place])
        for other in range(inner.b_from, inner.b_to):
            place = hunk.b_from + other
            text = texts.whole(b.tokens[place])
            yield Difference(ONLY_B, text, b_record=b.numbers[place], b_reply=b.replies[place])
        at_a, at_b = inner.a_to, inner.b_to


def _differing(a: Sequence, one: int, b: Sequence, other: int, texts: _Texts, pairs: dict[int, int]) -> Difference:
    kind, told_a, told_b = texts.apart(a.tokens[one], b.tokens[other])
    records = a.numbers[one], b.numbers[other]
    pairs[records[0]] = records[1]
    title = texts.title(a.tokens[one])
    return Difference(kind, title, told_a, told_b, *records, a.replies[one], b.replies[other])


def _interrupts(a: Sequences, b: Sequences, pairs: Mapping[int, int], texts: _Texts) -> Iterator[Difference]:
    """Vectors of which there were more in one trace, and the writes behind which they are missing in the other."""
    for name in sorted(a.interrupts.keys() | b.interrupts.keys()):
        count_a, count_b = a.interrupts[name], b.interrupts[name]
        if count_a == count_b:
            continue
        counts = times(count_a), times(count_b)
        yield Difference(INTERRUPTS, name, *counts)
        behind = [
            (one, other, a.behind.get(one, Counter())[name], b.behind.get(other, Counter())[name])
            for one, other in pairs.items()
        ]
        lacking = [each for each in behind if each[2] != each[3]]
        if sum(abs(in_a - in_b) for _, _, in_a, in_b in lacking) == abs(count_a - count_b):
            writes = {
                number: token
                for lane in a.lanes.values()
                for number, token in zip(lane.numbers, lane.tokens, strict=True)
            }
            for one, other, in_a, in_b in lacking:
                words = f"{name} behind {texts.whole(writes[one])}", _often(in_a), _often(in_b)
                yield Difference(BEHIND, *words, a_record=one, b_record=other)


def _often(count: int) -> str:
    return ("none", "one")[count] if count < 2 else f"{count:,}"


def _only_different(a: dict[str, Any], b: dict[str, Any]) -> tuple[str, str]:
    """The fields that differ, of each."""
    names = [name for name in {**a, **b} if a.get(name) != b.get(name)]
    return _words({name: a[name] for name in names if name in a}), _words(
        {name: b[name] for name in names if name in b}
    )


def _words(fields: Mapping[str, Any]) -> str:
    return " ".join(f"{name}={value}" if name else str(value) for name, value in fields.items())
