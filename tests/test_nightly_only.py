"""`vfio-user nightly --only`: some cells of a plan, or some cases of theirs, by names and patterns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from tests.test_nightly_plan import written
from userdev.errors import UserError
from vfio_user.cli import nightly
from vfio_user.cli._completion import complete_cells
from vfio_user.nightly.cells import cells_of
from vfio_user.nightly.matrix import draw_plan
from vfio_user.nightly.plan import read_plan
from vfio_user.nightly.staging import Stage

PLAN = """\
name: ours
groups:
  first: {servers: [edu, nvme], tests: [dma], vary: {cpus: [1, 2]}, combine: all}
  second: {servers: [gpio], tests: [dma]}
"""
CELLS = ["edu", "edu+cpus=2", "nvme", "nvme+cpus=2", "gpio"]


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    plan = read_plan(written(tmp_path, PLAN))
    tests: dict[str, Any] = {group: {"t.py:A.x": {}, "t.py:A.y": {}} for group in ("first", "second")}
    return Stage(plan, cells_of(plan, draw_plan(plan)), tests)


def test_a_pattern_fits_a_cell_or_a_case_as_a_shells_fits_a_file(stage: Stage) -> None:
    both = ("t.py:A.x", "t.py:A.y")
    cases: dict[tuple[str, ...], list[str]] = {
        (): [f"{cell}/{test}" for cell in CELLS for test in both],
        ("edu",): [f"edu/{test}" for test in both],
        ("edu*",): [f"{cell}/{test}" for cell in CELLS[:2] for test in both],
        ("gpio", "*cpus=2/*.y"): ["edu+cpus=2/t.py:A.y", "nvme+cpus=2/t.py:A.y", "gpio/t.py:A.x", "gpio/t.py:A.y"],
        ("nvme/t.py:A.x",): ["nvme/t.py:A.x"],
    }
    for patterns, expected in cases.items():
        limited = stage.limited(patterns)
        assert [case.id for found in limited.cases().values() for case in found] == expected, patterns
        used = list(dict.fromkeys(case.partition("/")[0].partition("+")[0] for case in expected))
        assert limited.used_servers == used, "no server is made ready that no case needs"


def test_a_pattern_that_fits_nothing_is_refused_with_what_there_is(stage: Stage) -> None:
    with pytest.raises(UserError, match="'edy'") as refused:
        stage.limited(["gpio", "edy"])
    assert "did you mean 'edu'?" in refused.value.hint
    assert all(cell in refused.value.hint for cell in CELLS)


def test_what_is_listed_and_estimated_is_what_would_be_run(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("VFIO_USER_RESULTS", str(tmp_path / "results"))
    monkeypatch.setattr(nightly, "prepare_environment", lambda *_, **_named: None)
    monkeypatch.setattr(nightly, "staged", lambda *_: stage)
    words = ["--plan", str(tmp_path / "plan.yaml"), "--only", "gpio/*.x", "--only", "edu"]
    listed = CliRunner().invoke(nightly.command, [*words, "--list"])
    assert listed.output.splitlines() == ["edu/t.py:A.x", "edu/t.py:A.y", "gpio/t.py:A.x"]
    estimated = CliRunner().invoke(nightly.command, [*words, "--dry-run"])
    assert estimated.output.splitlines()[:2] == ["edu: 2", "gpio: 1"]
    assert "3 cases" in estimated.output


def test_a_shell_completes_the_cells_of_the_plan_that_was_named(tmp_path: Path) -> None:
    def completed(path: Path | None, incomplete: str) -> list[str]:
        context = click.Context(nightly.command)
        context.params["path"] = path
        option = next(each for each in nightly.command.params if each.name == "only")
        return [item.value for item in complete_cells(context, option, incomplete) if item.type == "plain"]

    plan = written(tmp_path, PLAN)
    assert completed(plan, "") == CELLS
    assert completed(plan, "edu+") == ["edu+cpus=2"]
    assert (completed(None, ""), completed(tmp_path / "none.yaml", "")) == ([], [])
