"""Counts are said in one way, and one of something is no plural."""

from __future__ import annotations

import re
from pathlib import Path

from tests.cases import for_each_row
from userdev.counted import amount, counted, times

ROOT = Path(__file__).parent.parent
BY_HAND = re.compile(r"""(['"])s\1 (?:if|\*) """)


@for_each_row([(0, "0 cases"), (1, "1 case"), (2, "2 cases"), (12_345, "12,345 cases"), (-1, "-1 cases")])
def test_a_count_has_the_form_of_its_noun(number: int, said: str) -> None:
    assert counted(number, "case") == said


def test_a_plural_of_its_own_is_given() -> None:
    assert (counted(1, "try", "tries"), counted(3, "try", "tries")) == ("1 try", "3 tries")


def test_how_often_has_a_word_for_once() -> None:
    assert (times(1), times(2), times(1_000)) == ("once", "2 times", "1,000 times")


def test_bytes_are_told_in_the_largest_unit_that_there_is_one_of() -> None:
    """Also where rounding makes one of it."""
    for size, said in {
        0: "0 B",
        1023: "1023 B",
        1024: "1.0 KiB",
        1536: "1.5 KiB",
        (1 << 20) - 1: "1.0 MiB",
        1 << 30: "1.0 GiB",
        (1 << 30) - (1 << 20): "1023.0 MiB",
        5 << 40: "5.0 TiB",
        5 << 50: "5120.0 TiB",
    }.items():
        assert amount(size) == said, size


def test_no_message_makes_a_plural_by_itself() -> None:
    rooms = ("userdev", "vfio_user", "vhost_user", "servers")
    found = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for room in rooms
        for path in (ROOT / room).rglob("*.py")
        for line in path.read_text().splitlines()
        if BY_HAND.search(line)
    ]
    assert found == []
