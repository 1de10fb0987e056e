"""Tests that hold for many cases, each in a moment: one test for all, which says what it failed with.

Pytest takes longer for a test than many of these cases take, and each of its workers collects every one.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from typing import Any

Check = Callable[..., None]


def for_each_row(rows: Iterable[Iterable[Any]]) -> Callable[[Check], Callable[[], None]]:
    """Make a check of a row's columns the test of all rows."""
    table = [tuple(row) for row in rows]
    assert table, "there is nothing to be tried"

    def made(check: Check) -> Callable[[], None]:
        def test() -> None:
            for row in table:
                try:
                    check(*row)
                except BaseException as failure:
                    failure.add_note(f"with {', '.join(map(repr, row))}")
                    raise

        test.__name__, test.__qualname__ = check.__name__, check.__qualname__
        test.__module__, test.__doc__ = check.__module__, check.__doc__
        return test

    return made


def for_each(*axes: Iterable[Any]) -> Callable[[Check], Callable[[], None]]:
    """Make a check of one of each the test of all combinations."""
    return for_each_row(itertools.product(*axes))
