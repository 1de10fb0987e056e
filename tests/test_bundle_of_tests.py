"""Tests keep bundles: of pytest, of avocado, and the cases of a night. No guest is booted for these."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bundle_kit import make_bundle
from tests.cases import for_each
from tests.checkout import modules
from tests.test_pytest_plugin import project as project  # a stranger's folder
from userdev.errors import UserError
from vfio_user.bundle import IN_RESULTS, OpenBundle, bundle_of, keeping_test, moved, open_bundle
from vfio_user.bundle.again import Command, do_again
from vfio_user.cli.test_e2e import _bundles
from vfio_user.harness.cell import CELL_VARIABLE, Cell
from vfio_user.nightly.bundles import Bundles
from vfio_user.nightly.morning import MARKDOWN, Morning, write_morning
from vfio_user.nightly.summary import Summary

pytest_plugins = ["pytester"]

OF_PYTEST = """
def test_that_fails(lab):
    (lab.folder / "edu.server.log").write_text("it listens")
    assert 5 == 4 + 2

def test_that_passes(lab):
    pass

def test_that_says_that_it_has_failed(lab):
    from userdev.errors import VerdictError
    lab.failure = VerdictError("it was seen elsewhere")
"""
OF_AVOCADO = """
from userdev.errors import VerdictError
from vfio_user.avocado_test import GuestTest

class Some(GuestTest):
    def test_that_fails(self):
        with self.lab() as lab:
            (lab.folder / "edu.server.log").write_text("it listens")
            raise VerdictError("the guest read 7")

    def test_that_fails_by_an_assertion(self):
        with self.lab():
            self.assertEqual(5, 4 + 2)

    def test_that_passes(self):
        with self.lab():
            pass

    def test_that_says_that_it_has_failed(self):
        with self.lab() as lab:
            lab.failure = VerdictError("it was seen elsewhere")
"""


def kept_by_pytest(project: pytest.Pytester, *words: str) -> list[OpenBundle]:
    project.makepyfile(test_some=OF_PYTEST)
    done = project.runpytest_inprocess("-p", "no:cacheprovider", *words)
    done.assert_outcomes(failed=1, passed=2)
    return [open_bundle(path.parent) for path in sorted(project.path.rglob("bundle.json"))]


def test_tests_of_pytest_leave_what_does_them_again(project: pytest.Pytester) -> None:
    kept, *others = kept_by_pytest(project, "--bundle", "all")
    assert [each.bundle.outcome.verdict for each in (kept, *others)] == ["FAIL", "PASS", "FAIL"]
    assert kept.folder == project.path / "all" / "test_some.py-test_that_fails"
    assert kept.bundle.recipe.arguments == ("test_some.py::test_that_fails",)
    assert (kept.folder / "edu.server.log").read_text() == "it listens"


@pytest.mark.nightly
def test_a_test_of_pytest_is_done_again_from_its_bundle(
    project: pytest.Pytester, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, _ = kept_by_pytest(project, "--bundle", "auto")
    shutil.copytree(kept.folder, tmp_path / "sent")
    sent = open_bundle(tmp_path / "sent")
    monkeypatch.chdir(project.path)
    again = do_again(sent, Command.of(sent), tmp_path / "again")
    assert again.same, again.differences


def run_avocado(folder: Path, cell: Cell) -> list[Path]:
    """The folders of the tests of a job of avocado's, in their order."""
    (folder / "test_some.py").write_text(OF_AVOCADO)
    subprocess.run(
        [sys.executable, "-m", "tests.avocado_job", str(folder / "test_some.py"), str(folder / "results"), "60"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": modules(), CELL_VARIABLE: cell.text},
        check=True,
        capture_output=True,
    )
    return sorted(path.parent for path in (folder / "results").glob("job-*/test-results/*/data"))


def test_tests_of_avocado_that_fail_leave_what_does_them_again(tmp_path: Path) -> None:
    results = run_avocado(tmp_path, Cell(bundle="auto", device="nvme", servers={"edu": "./server {socket}"}))
    found = [open_bundle(place) for place in map(bundle_of, results) if place is not None]
    assert [each.bundle.outcome.verdict for each in found] == ["FAIL", "FAIL", "FAIL"]
    recipe = found[0].bundle.recipe
    assert recipe.arguments == (f"{tmp_path / 'test_some.py'}:Some.test_that_fails",)
    assert list(recipe.files) == [str(tmp_path / "test_some.py")]
    assert Command.of(found[0]).cell == Cell(device="nvme", servers={"edu": "./server {socket}"})


def test_a_test_of_the_projects_own_is_named_so_that_it_is_found_from_anywhere() -> None:
    keeping = keeping_test("avocado_tests/test_dma.py:Dma.test_both_ways", Cell(bundle="auto"))
    assert keeping.recipe.arguments == ("test_dma.py:Dma.test_both_ways",)


def test_what_ran_on_a_slot_is_done_again_where_its_test_is() -> None:
    keeping = keeping_test("outside/home/me/test_mine.py:Mine.test_it", Cell(bundle="auto"))
    assert keeping.recipe.arguments == ("/home/me/test_mine.py:Mine.test_it",)


def left_by(folder: Path, name: str) -> Path:
    """The folder of a test of avocado's that has left a bundle."""
    (folder / name / "data").mkdir(parents=True)
    make_bundle(folder / name / "data" / IN_RESULTS)
    shutil.rmtree(folder / name / "data" / f"{IN_RESULTS}-results")
    return folder / name


@for_each([None, "all"])
def test_bundles_of_a_job_are_told_and_moved_where_they_are_wanted(into: str | None, tmp_path: Path) -> None:
    tests = [
        {"name": f"{number}-avocado_tests/test_dma.py:Dma.test_{number}", "logdir": str(left_by(tmp_path, str(number)))}
        for number in (1, 2)
    ]
    found = list(_bundles(tests, tmp_path / into if into else None))
    assert all(open_bundle(place) for place in found)
    if into:
        assert [place.relative_to(tmp_path / into).name for place in found] == [
            "test_dma.py-Dma.test_1",
            "test_dma.py-Dma.test_2",
        ]


def test_a_bundle_that_cannot_be_moved_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be moved"):
        moved(left_by(tmp_path, "1") / "data" / IN_RESULTS, tmp_path / "file", "a test")


# -- nights ----------------------------------------------------------------------------------------------------------


@for_each([True, False])
def test_the_cells_of_a_night_are_what_they_are(interpose: bool) -> None:
    cell = Cell(interpose=interpose, device="edu")
    assert Bundles().in_cell(cell) == cell
    kept = Bundles("auto", 7).in_cell(cell)
    assert (kept.interpose, kept.trace, kept.bundle, kept.bundle_size) == (interpose, interpose, "auto", 7)
    assert Bundles("/somewhere").in_cell(cell).bundle == "always"


def night(folder: Path, bundle: str) -> Summary:
    """A night with one case, which failed and left this bundle."""
    case = {"id": "edu/test_dma.py:Dma.test_1", "cell": "edu", "test": "test_dma.py:Dma.test_1"}
    return Summary.model_validate(
        {
            "night": folder.name,
            "plan": {"name": "quick", "file": "plan.yaml", "digest": ""},
            "began": "2026-01-01T00:00:00Z",
            "status": "finished",
            "cells": [{"id": "edu", "parameters": {}, "planned": 1}],
            "results": [{**case, "verdict": "FAIL", "cause": "it read 7", "evidence": "1", "bundle": bundle}],
        }
    )


@for_each(["auto", "elsewhere"])
def test_the_morning_page_links_to_the_bundle_of_a_case(wanted: str, tmp_path: Path) -> None:
    folder = tmp_path / "night"
    results = left_by(folder, "1")
    place = Bundles(wanted if wanted == "auto" else str(tmp_path / wanted)).take(results, "edu/test_1", folder)
    summary = night(folder, place)
    morning = Morning(summary, folder)
    assert (folder / morning.bundle_link(summary.results[0])).is_file()
    write_morning(summary, folder)
    assert f"`vfio-user repro {folder / place}`" in (folder / MARKDOWN).read_text(), "it is read elsewhere"
    assert open_bundle((folder / place).resolve()).bundle.outcome.verdict == "FAIL"
    assert summary.results[0].bundle_is_evidence is (wanted == "auto")
