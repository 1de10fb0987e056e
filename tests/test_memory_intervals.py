"""Intervals by address, against a list that is looked through from end to end."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from userdev.memory.intervals import IntervalMap

MOST = 24


@dataclass(frozen=True)
class Piece:
    iova: int
    end: int


@given(
    st.lists(st.tuples(st.integers(0, MOST), st.integers(0, 6), st.booleans()), max_size=30),
    st.integers(0, MOST + 2),
    st.integers(0, 8),
)
def test_every_question_is_answered_as_by_looking_at_all(
    steps: list[tuple[int, int, bool]], iova: int, count: int
) -> None:
    found, oracle = IntervalMap[Piece](), list[Piece]()
    for start, size, adds in steps:
        piece = Piece(start, start + size)
        if adds and not any(old.iova < piece.end and piece.iova < old.end for old in oracle):
            found.add(piece)
            oracle = [old for old in oracle if old.iova != start] + [piece]
        elif not adds:
            gone = found.remove(start)
            assert gone == next((old for old in oracle if old.iova == start), None)
            oracle = [old for old in oracle if old is not gone]
    oracle.sort(key=lambda piece: piece.iova)
    end = iova + count
    assert (list(found), len(found)) == (oracle, len(oracle))
    assert found.starting_at(iova) == next((piece for piece in oracle if piece.iova == iova), None)
    assert found.find(iova) == next((piece for piece in oracle if piece.iova <= iova < piece.end), None)
    assert found.last_before(end) == next((piece for piece in reversed(oracle) if piece.iova < end), None)
    touched = [piece for piece in oracle if iova <= piece.iova < end or (piece.iova < iova < piece.end)]
    assert found.within(iova, end) == touched
    found.clear()
    assert (list(found), found.find(iova)) == ([], None)


def test_all_can_be_removed_while_they_are_gone_through() -> None:
    found = IntervalMap[Piece]()
    for start in range(0, 40, 4):
        found.add(Piece(start, start + 4))
    for piece in found:
        found.remove(piece.iova)
    assert not len(found)
