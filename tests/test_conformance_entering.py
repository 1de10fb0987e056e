"""A check that cannot be told from others, or says nothing, is refused where it is entered."""

from __future__ import annotations

from typing import Any

import pytest

from userdev.conformance import Group, Level


def titled(bench: Any) -> None:
    """It does what it does."""


def untitled(bench: Any) -> None:
    pass


@pytest.mark.parametrize(
    ("name", "given", "function", "error"),
    [
        ("Adds Twice", {}, titled, ValueError),
        ("", {}, titled, ValueError),
        ("mine/adds", {}, titled, ValueError),
        ("there", {}, titled, ValueError),
        ("adds", {"level": "must"}, titled, TypeError),
        ("adds", {}, untitled, ValueError),
    ],
)
def test_a_check_that_is_none_is_refused_with_its_id(
    name: str, given: Any, function: Any, error: type[Exception]
) -> None:
    group = Group[Any]("mine", "a rule")
    group.check("there")(titled)
    with pytest.raises(error, match=f"check mine/{name}"):
        group.check(name, **given)(function)
    assert [check.id for check in group] == ["mine/there"]


@pytest.mark.parametrize("level", Level)
def test_a_check_of_any_level_is_entered(level: Level) -> None:
    group = Group[Any]("mine", "a rule")
    group.check("adds-twice-2", level=level)(titled)
    assert [(check.id, check.level, check.title) for check in group] == [
        ("mine/adds-twice-2", level, "It does what it does")
    ]
