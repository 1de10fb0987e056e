"""A check that cannot be told from others, or says nothing, is refused where it is entered."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.cases import for_each, for_each_row
from userdev.conformance import Group, Level, require_known_needs
from userdev.errors import UserError
from vfio_user.cli._own_checks import own_checks
from vfio_user.client.conformance import CATALOGUE


def titled(bench: Any) -> None:
    """It does what it does."""


def untitled(bench: Any) -> None:
    pass


@for_each_row(
    [
        ("Adds Twice", {}, titled, ValueError),
        ("", {}, titled, ValueError),
        ("mine/adds", {}, titled, ValueError),
        ("there", {}, titled, ValueError),
        ("adds", {"level": "must"}, titled, TypeError),
        ("adds", {}, untitled, ValueError),
    ]
)
def test_a_check_that_is_none_is_refused_with_its_id(
    name: str, given: Any, function: Any, error: type[Exception]
) -> None:
    group = Group[Any]("mine", "a rule")
    group.check("there")(titled)
    with pytest.raises(error, match=f"check mine/{name}"):
        group.check(name, **given)(function)
    assert [check.id for check in group] == ["mine/there"]


def test_a_check_needs_only_what_there_is() -> None:
    theirs, mine = Group[Any]("theirs", "a rule"), Group[Any]("mine", "a rule")
    theirs.check("describes")(titled)
    mine.check("first", needs=("theirs/describes",))(titled)
    mine.check("then", needs=("mine/first",))(titled)
    require_known_needs(list(mine), list(theirs))
    mine.check("wrong", needs=("theirs/descibes",))(titled)
    with pytest.raises(ValueError, match=r"check mine/wrong needs 'theirs/descibes'.*'theirs/describes'"):
        require_known_needs(list(mine), list(theirs))


CHECKS = """
from vfio_user.client.conformance import Bench, Group
from vfio_user.client.conformance.device import info

mine = Group[Bench]("mine", "a rule of mine", needs=("{need}",))

@mine.check("adds-twice")
def adds_twice(bench):
    "It adds twice."
"""


def test_checks_of_a_file_are_those_of_its_own_groups(tmp_path: Path) -> None:
    """Not those of the catalogue that it imports and may need."""
    (tmp_path / "checks_of_mine.py").write_text(CHECKS.format(need="info/describes"))
    own = own_checks(tmp_path / "checks_of_mine.py", CATALOGUE)
    assert [(check.id, check.needs) for check in own] == [("mine/adds-twice", ("info/describes",))]


def test_a_file_without_a_check_that_can_be_run_is_refused_with_what_is_wrong(tmp_path: Path) -> None:
    refused = {
        "": "has no check",
        "from vfio_user.client.conformance.device import info": "has no check",
        "1 / 0": r"ZeroDivisionError.*\.py:1",
        CHECKS.format(need="info/descibes"): "info/describes",
        CHECKS.format(need="info/describes").replace('"mine"', '"info"').replace("adds-twice", "describes"): (
            "already"
        ),
    }
    for number, (text, said) in enumerate(refused.items()):
        path = tmp_path / f"refused_checks_{number}.py"
        path.write_text(text)
        with pytest.raises(UserError) as told:
            own_checks(path, CATALOGUE)
        assert re.search(said, str(told.value)), text
    with pytest.raises(UserError, match="no such file"):
        own_checks(tmp_path / "nowhere.py", CATALOGUE)


@for_each(Level)
def test_a_check_of_any_level_is_entered(level: Level) -> None:
    group = Group[Any]("mine", "a rule")
    group.check("adds-twice-2", level=level)(titled)
    assert [(check.id, check.level, check.title) for check in group] == [
        ("mine/adds-twice-2", level, "It does what it does")
    ]
