"""The whole of what commands tell of fixed inputs is what is kept; `python -m tests.tellings` renews that."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.cases import for_each
from tests.tellings import KEPT, differences, facts, plain
from tests.tellings.rooms import ROOMS, told_in


@pytest.mark.long
@for_each(ROOMS)
def test_all_that_is_told_is_what_is_kept(room: str, tmp_path: Path) -> None:
    kept = json.loads((KEPT / f"{room}.json").read_text())
    found = list(differences(kept, plain(told_in(room, tmp_path))))
    assert not found, "\n".join([f"{len(found)} values of {room} are otherwise:", *found[:40]])


def test_each_difference_is_told_with_the_command_and_its_path() -> None:
    kept = {"a command": {"out": [{"one": 1, "two": 2}, {"one": True}]}, "another": {"out": {"x": 1, "y": 2}}}
    told = {"a command": {"out": [{"one": 1, "three": 2}, {"one": 1}]}, "another": {"out": {"y": 2, "x": 1}}}
    assert [line.partition(":")[0] for line in differences(kept, told)] == [
        "a command > out[0] > two",
        "a command > out[0] > three",
        "a command > out[1] > one",
        "another > out",
    ]
    assert list(differences(kept, kept)) == []
    assert len(list(differences([1, 2], [1]))) == 1


def test_facts_of_a_text_are_its_columns_and_what_is_no_wording() -> None:
    assert facts("It has 3 of them, by NAME\n\nnothing but words\n  a  b=1\n") == ["3 NAME", "a | b=1"]


def test_nothing_is_kept_that_nobody_makes() -> None:
    assert {path.stem for path in KEPT.iterdir()} == set(ROOMS)


def test_what_is_told_does_not_hang_on_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SHELL", "/bin/of-nobody")
    monkeypatch.setenv("VFIO_USER_TIMEOUT_SCALE", "7")
    monkeypatch.setitem(ROOMS, "environment", lambda _: dict(os.environ))
    seen = told_in("environment", tmp_path)
    assert seen["SHELL"] == "/bin/bash"
    assert "VFIO_USER_TIMEOUT_SCALE" not in seen
