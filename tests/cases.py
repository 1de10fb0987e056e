"""Tests that hold for many cases, each in a moment: one test for all, which says what it failed with.

Pytest takes longer for a test than many of these cases take, and each of its workers collects every one.
"""

from __future__ import annotations

import contextlib
import inspect
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

Check = Callable[..., None]
Names = Iterable[str] | Callable[[Any], object]


def for_each_row(
    rows: Mapping[str, Iterable[Any]] | Iterable[Iterable[Any]], ids: Names | None = None
) -> Callable[[Check], Callable[..., None]]:
    """Make a check of a row's columns the test of all rows.

    What the check takes beyond them are fixtures: each row has a folder, a monkeypatch and a log of its own, and
    others are the same for all. `ids` name rows as those of pytest's `parametrize` do; rows may be by their names.
    """
    if isinstance(rows, Mapping):
        ids, rows = rows, rows.values()
    table = [tuple(row) for row in rows]
    assert table, "there is nothing to be tried"
    names = _names(table, ids)
    assert len(names) == len(table), "each row has one name"

    def made(check: Check) -> Callable[..., None]:
        fixtures = list(inspect.signature(check).parameters.values())[len(table[0]) :]

        def test(**given: Any) -> None:
            for number, (name, row) in enumerate(zip(names, table, strict=True)):
                try:
                    with contextlib.ExitStack() as until:
                        check(*row, **{of: _own(number, fixture, until) for of, fixture in given.items()})
                except BaseException as failure:
                    failure.add_note(f"with {name}")
                    raise

        test.__name__, test.__qualname__ = check.__name__, check.__qualname__
        test.__module__, test.__doc__ = check.__module__, check.__doc__
        vars(test)["__signature__"] = inspect.Signature(fixtures)
        return test

    return made


def for_each(*axes: Iterable[Any], ids: Names | None = None) -> Callable[[Check], Callable[..., None]]:
    """Make a check of one of each the test of all combinations."""
    return for_each_row(itertools.product(*axes), ids)


def _names(table: Sequence[tuple[Any, ...]], ids: Names | None) -> list[str]:
    if ids is None:
        return [", ".join(map(repr, row)) for row in table]
    if callable(ids):
        return [", ".join(str(ids(value)) for value in row) for row in table]
    return [str(name) for name in ids]


def _own(number: int, fixture: Any, until: contextlib.ExitStack) -> Any:
    """What one case has of a fixture, as if it were a test of its own."""
    match fixture:
        case Path():
            folder = fixture / str(number)
            folder.mkdir()
            return folder
        case pytest.MonkeyPatch():
            return until.enter_context(pytest.MonkeyPatch.context())
        case pytest.LogCaptureFixture():
            fixture.clear()
        case pytest.CaptureFixture():
            fixture.readouterr()
    return fixture
