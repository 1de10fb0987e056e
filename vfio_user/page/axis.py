"""What happened, on one axis of time: columns of numbers, and what was said of each, every wording once.

That is what the page embeds. A million register accesses are few wordings, since a driver does the same again and
again; where they are many, words are kept in blocks that the page takes apart when somebody looks there.
"""

from __future__ import annotations

import base64
import json
import math
import re
import sys
import zlib
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from itertools import pairwise
from typing import Any

from userdev.printable import printable

BLOCK = 2048
"""Wordings of a block."""
MOST_PLACES = 32
"""Rows of one area, such as a BAR; the places that were reached least share one more."""
OTHERS = "other places"
_LEVEL = 6


class Kind(IntEnum):
    """The kinds of what happens. Of many at one place of the page the highest is shown."""

    NOISE = 0
    SAID = 1
    READ = 2
    WRITE = 3
    MESSAGE = 4
    STEP = 5
    EVENT = 6
    REFUSED = 7
    FAULT = 8
    """Done on purpose."""
    WRONG = 9


@dataclass(frozen=True)
class Row:
    """A line of the page: `group` heads several, `area` and `place` say which of them."""

    group: str
    area: str = ""
    place: str = ""

    @property
    def name(self) -> str:
        """What stands before it."""
        return " ".join(filter(None, (self.area, self.place)))


class Axis:
    """Everything that is put on it, in whatever order. Times are nanoseconds since 1970."""

    def __init__(self) -> None:
        self._rows: dict[Row, int] = {}
        self._words: dict[str, int] = {}
        self._when, self._lasted = array("q"), array("q")
        self._row, self._said = array("I"), array("I")
        self._record, self._answer = array("I"), array("I")
        self._kind = array("B")

    def __len__(self) -> int:
        return len(self._when)

    def row(self, group: str, area: str = "", place: str = "") -> int:
        """The number of a row, which is there from now on."""
        return self._rows.setdefault(Row(group, area, place), len(self._rows))

    def said(self, title: str, details: Mapping[str, Any], short: str = "") -> int:
        """The number of a wording: a sentence, the same in a word or two, and fields with their values."""
        words = json.dumps([printable(title), printable(short), _shown(details)], ensure_ascii=False, default=str)
        return self._words.setdefault(words, len(self._words))

    def add(
        self, row: int, when: int, said: int, kind: Kind, lasted: int = 0, record: int = 0, answer: int = 0
    ) -> None:
        """Put something on the axis: `record` and `answer` are numbers in the trace that it comes from."""
        self._row.append(row)
        self._when.append(when)
        self._said.append(said)
        self._kind.append(kind)
        self._lasted.append(max(0, lasted))
        self._record.append(record)
        self._answer.append(answer)

    def tell(
        self,
        row: Row,
        when: int,
        title: str,
        details: Mapping[str, Any],
        kind: Kind,
        *,
        lasted: int = 0,
        short: str = "",
    ) -> None:
        """Put on the axis what happens seldom."""
        self.add(
            self.row(row.group, row.area, row.place), when, self.said(title, details, short or title), kind, lasted
        )

    @property
    def began(self) -> int:
        """The first moment; 0 where nothing is on the axis."""
        return min(self._when, default=0)

    @property
    def ended(self) -> int:
        """The last one."""
        return max(map(int.__add__, self._when, self._lasted), default=0)

    def packed(self) -> Packed:
        """All of it, in the order of time."""
        when = self._when
        order: Sequence[int] = range(len(when))
        if any(later < earlier for earlier, later in pairwise(when)):
            order = sorted(order, key=when.__getitem__)
        rows, places = self._fewer_rows()
        began = self.began
        steps, before = array("q"), began
        for index in order:
            steps.append(when[index] - before)
            before = when[index]
        columns = {
            **_halves("when", steps),
            **_halves("lasted", _in_order(self._lasted, order)),
            "row": _column(array("H", (places[self._row[index]] for index in order))),
            "said": _column(_in_order(self._said, order)),
            "kind": _column(_in_order(self._kind, order)),
            "record": _column(_in_order(self._record, order)),
            "answer": _column(_in_order(self._answer, order)),
        }
        words = list(self._words)
        blocks = [_compressed("\n".join(words[at : at + BLOCK]).encode()) for at in range(0, len(words), BLOCK)]
        return Packed(began, self.ended, len(when), [[row.group, row.name] for row in rows], columns, blocks)

    def _fewer_rows(self) -> tuple[list[Row], list[int]]:
        """The rows that are kept, and for each that there is the number of the one that it is in."""
        all_rows = list(self._rows)
        counts = Counter(self._row)
        areas: dict[tuple[str, str], list[int]] = {}
        for number, row in enumerate(all_rows):
            areas.setdefault((row.group, row.area), []).append(number)
        homes = list(all_rows)
        for (group, area), numbers in areas.items():
            for number in sorted(numbers, key=lambda number: -counts[number])[MOST_PLACES:]:
                homes[number] = Row(group, area, OTHERS)
        rows = sorted(set(homes), key=_Order(all_rows))
        number_of = {row: number for number, row in enumerate(rows)}
        return rows, [number_of[home] for home in homes]


@dataclass(frozen=True)
class Packed:
    """An axis as a page has it: `columns` and `blocks` are zlib's, in base64."""

    began: int
    ended: int
    count: int
    rows: list[list[str]]
    columns: dict[str, str]
    blocks: list[str]

    def about(self) -> dict[str, Any]:
        """What the page has to know before it takes the columns apart."""
        return {
            "began": self.began / 1e9,
            "seconds": (self.ended - self.began) / 1e9,
            "count": self.count,
            "rows": self.rows,
            "block": BLOCK,
            "kinds": [kind.name.lower() for kind in Kind],
        }


class _Order:
    """Where a row comes: groups and areas as they were met, what has no places before what has, offsets by number."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self._groups: dict[str, int] = {}
        self._areas: dict[tuple[str, str], int] = {}
        for row in rows:
            self._groups.setdefault(row.group, len(self._groups))
            self._areas.setdefault((row.group, row.area), len(self._areas))

    def __call__(self, row: Row) -> tuple[int, bool, int, int, str]:
        is_offset = _OFFSET.fullmatch(row.place) is not None
        rank = 2 if row.place == OTHERS else int(is_offset)
        place = f"{int(row.place, 16):020}" if is_offset else row.place
        return self._groups[row.group], bool(row.place), self._areas[row.group, row.area], rank, place


_OFFSET = re.compile("0x[0-9a-f]+")
_LONGEST = 512
"""Characters of a value; bytes in hexadecimal may be a megabyte."""


_DEEPEST = 8


def _shown(value: Any, depth: int = 0) -> Any:
    """A value as it may be seen, and not longer or deeper than anybody reads."""
    if depth == _DEEPEST:
        return "..."
    match value:
        case str():
            text = printable(value)
            return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}... ({len(text)} characters)"
        case Mapping():
            return {printable(str(name)): _shown(each, depth + 1) for name, each in value.items()}
        case list() | tuple():
            return [_shown(each, depth + 1) for each in value[:64]]
        case float() if not math.isfinite(value):
            return str(value)  # in JSON it is no number
        case _:
            return value


def _halves(name: str, numbers: array[int]) -> dict[str, str]:
    """Numbers of 64 bits as two columns: the upper halves are nearly all 0."""
    return {
        name: _column(array("I", (number & 0xFFFFFFFF for number in numbers))),
        f"{name}_high": _column(array("I", (number >> 32 for number in numbers))),
    }


def _in_order(column: array[int], order: Iterable[int]) -> array[int]:
    return column if isinstance(order, range) else array(column.typecode, map(column.__getitem__, order))


def _column(numbers: array[int]) -> str:
    if sys.byteorder == "big":
        numbers = numbers[:]
        numbers.byteswap()
    return _compressed(numbers.tobytes())


def _compressed(data: bytes) -> str:
    return base64.b64encode(zlib.compress(data, _LEVEL)).decode()
