"""One test for many cases says which of them it failed with, and tries each."""

from __future__ import annotations

import inspect

import pytest

from tests.cases import for_each, for_each_row


def test_each_combination_is_tried() -> None:
    tried = []

    @for_each("ab", [1, 2])
    def check(letter: str, number: int) -> None:
        tried.append((letter, number))

    check()
    assert tried == [("a", 1), ("a", 2), ("b", 1), ("b", 2)]


def test_a_failure_says_with_what() -> None:
    @for_each_row([("good", True), ("bad", False)])
    def check(name: str, good: bool) -> None:
        """Be good."""
        assert good

    with pytest.raises(AssertionError) as failure:
        check()
    assert failure.value.__notes__ == ["with 'bad', False"]
    assert (check.__name__, check.__doc__, not inspect.signature(check).parameters) == ("check", "Be good.", True)


def test_nothing_is_no_test() -> None:
    with pytest.raises(AssertionError, match="nothing to be tried"):
        for_each([], [1])
