"""The table of benchmarks and their goals."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.__main__ import rows
from benchmarks.goals import BENCHMARKS, Benchmark, Goal
from tests.cases import for_each

FOLDER = Path(__file__).parent.parent / "benchmarks"
PARTS = {"__init__", "__main__", "bare_relay", "bare_server", "build", "goals", "migration_device", "vhost_blk_floor"}
"""Modules that are none by themselves."""


def test_each_benchmark_is_in_the_table() -> None:
    assert {path.stem for path in FOLDER.glob("*.py")} - PARTS == BENCHMARKS.keys()


@for_each(BENCHMARKS)
def test_a_goal_is_a_bound_on_one_side_of_a_figure(name: str) -> None:
    for goal in BENCHMARKS[name].goals:
        assert (goal.at_least is None) != (goal.at_most is None)
        bound = goal.at_least if goal.at_least is not None else goal.at_most
        assert bound is not None
        better, worse = (bound * 1.1, bound * 0.9) if goal.at_least is not None else (bound * 0.9, bound * 1.1)
        assert [goal.is_met(value) for value in (better, bound, worse)] == [True, True, False]


def test_a_figure_that_was_not_measured_is_no_goal_that_was_met() -> None:
    benchmark = Benchmark([Goal("a", lambda found: float(found["a"]), at_least=1.0)])
    for found in (None, {}, {"a": "none"}):
        (row,) = rows("x", benchmark, found, {"a": 2})
        assert (row.value, row.before, row.met) == (None, 2.0, None)
    (row,) = rows("x", benchmark, {"a": 0.5}, None)
    assert (row.value, row.before, row.met) == (0.5, None, False)


@pytest.mark.network
@pytest.mark.nightly
@pytest.mark.timeout(3600)
def test_each_goal_finds_its_figure(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks", "--quick", "--json", str(tmp_path / "table.json")]
    said = subprocess.run(command, capture_output=True, text=True, check=False, cwd=FOLDER.parent).stdout
    assert "region_access" in said
    assert "not measured" not in said
