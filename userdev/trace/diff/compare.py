"""Compares two traces: lane by lane, since what happens between two of them is a matter of time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from userdev.counted import times
from userdev.descriptors import FdKind
from userdev.trace.diff.alignment import Hunk, hunks
from userdev.trace.diff.sequence import Sequence, Sequences, Tokens
from userdev.trace.exchanges import Exchange, Reading
from userdev.trace.lines import DATA, DATA_SHOWN, word

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
        return _words(self._asked(self.tokens.examples[token]))

    def answered(self, token: int) -> str:
        exchange = self.tokens.examples[token]
        return _words(self._answer(exchange)) or ("an answer" if exchange.reply else "")

    def whole(self, token: int) -> str:
        """Title, what was written, and what was answered."""
        exchange = self.tokens.examples[token]
        written = f" = {self.asked(token)}" if exchange.place.writes else ""
        answer = self.answered(token) if exchange.error or not exchange.place.writes else ""
        return f"{self.title(token)}{written}{f' -> {answer}' if answer else ''}"

    def apart(self, a: int, b: int) -> Iterator[tuple[str, str, str]]:
        """The kinds of difference between two that are about the same place, and each one's words for it."""
        one, other = self.tokens.examples[a], self.tokens.examples[b]
        questions = self._asked(one), self._asked(other)
        was_asked = self._said(one.asked, one.asked_fds) != self._said(other.asked, other.asked_fds)
        if was_asked:
            yield ASKED, *_only_different(*questions, but={})
            if self._said(one.answered, one.answered_fds) == self._said(other.answered, other.answered_fds):
                return
        if not (one.reply and other.reply) or one.error or other.error:
            told = self.answered(a), self.answered(b)
            differs = told[0] != told[1]
        else:  # what an answer has of its question is told of that
            told = _only_different(self._answer(one), self._answer(other), but=_differing_fields(*questions))
            differs = any(told)
        if differs or not was_asked:
            yield ANSWER, *told

    def _said(self, message: bytes, fds: tuple[FdKind, ...]) -> tuple[bytes, tuple[FdKind, ...]]:
        return self._reading.without_id(message) if message else b"", fds

    def _asked(self, exchange: Exchange) -> dict[str, Any]:
        if exchange.place.is_access and exchange.place.writes and exchange.value is not None:
            said: dict[str, Any] = {"": f"{exchange.value:#x}"}
        else:
            said = self._reading.fields(exchange.asked, exchange)
        return said | _kinds(exchange.asked_fds)

    def _answer(self, exchange: Exchange) -> dict[str, Any]:
        if not exchange.reply:
            return {}
        if exchange.error:
            said: dict[str, Any] = {"": exchange.error}
        elif exchange.place.is_access and not exchange.place.writes and exchange.value is not None:
            said = {"": f"{exchange.value:#x}"}
        else:
            said = self._reading.fields(exchange.answered, exchange)
        return said | _kinds(exchange.answered_fds)


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
            yield from _differing(a, hunk.a_from + one, b, hunk.b_from + other, texts, pairs)
        for one in range(inner.a_from, inner.a_to):
            place = hunk.a_from + one
            text = texts.whole(a.tokens[place])
            yield Difference(ONLY_A, text, a_record=a.numbers[place], a_reply=a.replies[place])
        for other in range(inner.b_from, inner.b_to):
            place = hunk.b_from + other
            text = texts.whole(b.tokens[place])
            yield Difference(ONLY_B, text, b_record=b.numbers[place], b_reply=b.replies[place])
        at_a, at_b = inner.a_to, inner.b_to


def _differing(
    a: Sequence, one: int, b: Sequence, other: int, texts: _Texts, pairs: dict[int, int]
) -> Iterator[Difference]:
    records = a.numbers[one], b.numbers[other]
    pairs[records[0]] = records[1]
    title = texts.title(a.tokens[one])
    for kind, told_a, told_b in texts.apart(a.tokens[one], b.tokens[other]):
        yield Difference(kind, title, told_a, told_b, *records, a.replies[one], b.replies[other])


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


def _differing_fields(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The fields that differ, as each has them; None where one has not."""
    return {name: (a.get(name), b.get(name)) for name in {**a, **b} if a.get(name) != b.get(name)}


def _only_different(
    a: Mapping[str, Any], b: Mapping[str, Any], *, but: Mapping[str, tuple[Any, Any]]
) -> tuple[str, str]:
    """The fields of each that differ, in words, without those that differ just so in `but`."""
    names = [name for name, each in _differing_fields(a, b).items() if each != but.get(name)]
    start = _first_other(a.get(DATA, ""), b.get(DATA, "")) // 2
    told = [_words({name: each[name] for name in names if name in each}, start) for each in (a, b)]
    return told[0], told[1]


def _kinds(fds: tuple[FdKind, ...]) -> dict[str, str]:
    """Descriptors as a field, which only messages with some have."""
    return {"fds": ",".join(kind.name.lower() for kind in fds)} if fds else {}


def _first_other(one: str, other: str) -> int:
    """Where two texts begin to differ."""
    return next(
        (at for at, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]), min(len(one), len(other))
    )


def _words(fields: Mapping[str, Any], start: int = 0) -> str:
    """Fields as people read them; of long data what is from byte `start` on, where it differs from another's."""
    return " ".join(
        _piece(value, start) if name == DATA else f"{name}={word(value)}" if name else word(value)
        for name, value in fields.items()
    )


def _piece(digits: str, start: int) -> str:
    """Data as hexadecimal digits, which may be cut."""
    size = len(digits) // 2
    if size <= DATA_SHOWN:
        return f"{DATA}={digits}"
    piece = digits[2 * start : 2 * (start + DATA_SHOWN)]
    cut = "..." if start + DATA_SHOWN < size else ""
    return " ".join(filter(None, (f"{DATA}[{size}]", f"from {start:#x} on:" if start else "", f"{piece}{cut}")))
