"""Tests that run in forks of the pytest that has collected them: each is run once, and what becomes of it is told."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.forked_workers import Shares

ROOT = Path(__file__).parent.parent
TESTS = """
import os, pytest, signal, time

@pytest.fixture(scope="module", autouse=True)
def ended():
    print("begun", file=open("fixtures", "a"))
    yield
    print("ended", file=open("fixtures", "a"))

@pytest.mark.parametrize("number", range(20))
def test_that_passes(number, tmp_path):
    print(os.getpid(), os.getppid(), tmp_path, file=open("ran", "a"))

def test_that_fails(capfd):
    print("what it said")
    assert [1, 2] == [1, 3]

def test_that_is_skipped():
    pytest.skip("for a reason")

def test_that_kills_its_process():
    os.kill(os.getpid(), signal.SIGKILL)

def test_behind_it():
    print("behind", file=open("ran", "a"))
"""


@pytest.fixture
def shares() -> Iterator[Shares]:
    """Of ten tests, for three workers."""
    made = Shares(10, 3)
    yield made
    made.close()


def test_each_worker_has_neighbours_and_knows_which_is_next(shares: Shares) -> None:
    assert [shares.take(0) for _ in range(3)] == [(0, 1), (1, 2), (2, None)]
    assert shares.take(2) == (6, 7)


def test_who_is_done_takes_the_second_half_of_the_longest_share_and_each_test_is_taken_once(shares: Shares) -> None:
    for _ in range(3):
        shares.take(0)
    assert shares.take(0) == (8, 9)  # of 6, 7, 8, 9
    taken = [shares.take(worker) for _ in range(10) for worker in range(3)]
    assert sorted(test for test, _ in filter(None, taken)) == [3, 4, 5, 6, 7, 9]


def test_a_test_that_was_promised_to_its_owner_is_not_taken_away() -> None:
    shares = Shares(4, 2)
    assert shares.take(0) == (0, 1)
    assert shares.take(1) == (2, 3)
    assert shares.take(1) == (3, None)
    assert shares.take(1) is None
    assert shares.take(0) == (1, None)
    shares.close()


def test_more_workers_than_tests_is_no_matter() -> None:
    shares = Shares(1, 4)
    assert [taken for worker in range(4) for taken in [shares.take(worker)] if taken] == [(0, None)]
    shares.close()


def test_nothing_is_left_of_a_run_that_is_given_up(shares: Shares) -> None:
    shares.take(1)
    shares.clear()
    assert [shares.take(worker) for worker in range(3)] == [None] * 3
    assert shares.current(1) == 3


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, int]:
    """Tests of every kind in two workers: the folder, what is shown and the status."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "test_all.py").write_text(TESTS)
    own = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "tests.forked_workers", "--forks", "2", "-rfs"],
        cwd=folder,
        env=own | {"PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
    )
    return folder, done.stdout, done.returncode


def test_each_test_is_run_once_in_a_folder_of_its_own(run: tuple[Path, str, int]) -> None:
    lines = [line.split() for line in (run[0] / "ran").read_text().splitlines()]
    assert sum(line == ["behind"] for line in lines) == 1
    rest = [line for line in lines if line != ["behind"]]
    assert len(rest) == 20
    assert len({folder for _, _, folder in rest}) == 20
    assert len({parent for _, parent, _ in rest}) == 1


def test_what_becomes_of_each_is_shown_with_what_it_printed(run: tuple[Path, str, int]) -> None:
    _, shown, status = run
    assert status == pytest.ExitCode.TESTS_FAILED
    assert "2 failed, 21 passed, 1 skipped" in shown
    assert "At index 1 diff: 2 != 3" in shown
    assert "what it said" in shown
    assert "for a reason" in shown


def test_one_whose_process_dies_has_failed_and_the_rest_is_done(run: tuple[Path, str, int]) -> None:
    assert "the process that ran this test ended with SIGKILL" in run[1]
    assert "FAILED test_all.py::test_that_kills_its_process" in run[1]


def test_fixtures_end_with_the_last_test_that_has_them(run: tuple[Path, str, int]) -> None:
    said = (run[0] / "fixtures").read_text().split()
    assert said.count("begun") >= 3
    assert said.count("begun") - said.count("ended") == 1  # of the process that was killed
