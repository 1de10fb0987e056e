"""One test for many cases says which of them it failed with, and tries each."""

from __future__ import annotations

import inspect
import logging
import os
from collections.abc import Callable
from pathlib import Path

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


@for_each_row([(["a name", "another"], "with another"), (str.upper, "with BAD"), (None, "with 'bad'")])
def test_cases_have_the_names_that_they_are_given(ids: list[str] | Callable[[str], str] | None, note: str) -> None:
    @for_each(["good", "bad"], ids=ids)
    def check(name: str) -> None:
        assert name == "good"

    with pytest.raises(AssertionError) as failure:
        check()
    assert failure.value.__notes__ == [note]


def test_rows_may_be_by_their_names() -> None:
    @for_each_row({"a good one": (1,), "a bad one": (2,)})
    def check(number: int) -> None:
        assert number == 1

    with pytest.raises(AssertionError) as failure:
        check()
    assert failure.value.__notes__ == ["with a bad one"]


@for_each([1, 2])
def test_each_case_begins_as_a_test_does(
    number: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert (list(tmp_path.iterdir()), caplog.records, capsys.readouterr().out) == ([], [], "")
    assert "OF_A_CASE" not in os.environ
    (tmp_path / "file").touch()
    monkeypatch.setenv("OF_A_CASE", str(number))
    logging.getLogger(__name__).warning("of case %d", number)
    print(number)


def test_nothing_is_no_test() -> None:
    with pytest.raises(AssertionError, match="nothing to be tried"):
        for_each([], [1])
