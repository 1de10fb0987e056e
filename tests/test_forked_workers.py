"""Tests in forks come to what they come to in the process itself, and those of a fork that ends are no fewer."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.seeded_bugs.planting import ROOT

SHARED = """
import os, pathlib, pytest
HERE = pathlib.Path(__file__).parent

@pytest.fixture(scope="module")
def shared():
    with open(HERE / "made", "a") as made:
        made.write(f"{os.getpid()}\\n")
    yield
    (HERE / "ended").write_text("")
"""
ENDS = """
def test_passes(shared, tmp_path):
    print("of the first")
    assert "fork" in str(tmp_path)

def test_fails(shared):
    print("of the second")
    assert not "to be"

def test_is_killed(shared):
    os.kill(os.getpid(), 9)

def test_is_what_was_left(shared):
    pass

def test_is_skipped():
    pytest.skip("for a reason")

@pytest.fixture
def bad():
    yield
    raise OSError("in its end")

def test_ends_badly(bad):
    pass
"""
WAITS = """
def test_waits(shared):
    open(HERE / "met", "w").close()
    os.read(os.pipe()[0], 1)
"""
FAILS = """
def test_fails():
    open(HERE / "met").close()
    assert not "to be"
"""


def run(folder: Path, *options: str, **modules: str) -> list[str]:
    """The lines that pytest prints of the tests of these modules, in two forks."""
    for name, text in modules.items():
        (folder / f"{name}.py").write_text(SHARED + text)
    (folder / "pytest.ini").write_text("[pytest]\n")
    plain = ["--disable-plugin-autoload", "-p", "no:cacheprovider", "-p", "tests.forked_workers", "--forks", "2"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *plain, *options, "-c", str(folder / "pytest.ini"), str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1, done.stderr
    return done.stdout.splitlines()


def test_a_test_comes_to_what_it_comes_to_and_one_that_ends_its_process_takes_no_other_along(tmp_path: Path) -> None:
    said = run(tmp_path, "-rA", test_ends=ENDS, test_other="def test_passes(shared):\n    pass\n")
    words = ("PASSED", "FAILED", "ERROR", "SKIPPED")
    verdicts = sorted(tuple(line.split(" - ")[0].split("::")) for line in said if line.startswith(words))
    found = [(verdict.split()[0], *name) for verdict, *name in verdicts]
    assert found == [
        ("ERROR", "test_ends_badly"),
        ("FAILED", "test_fails"),
        ("FAILED", "test_is_killed"),
        ("PASSED", "test_ends_badly"),
        ("PASSED", "test_is_what_was_left"),
        ("PASSED", "test_passes"),
        ("PASSED", "test_passes"),
        ("SKIPPED",),
    ]
    assert "the process that ran this test ended in it with status -9" in said
    assert "of the second" in said[: said.index(next(line for line in said if "short test summary" in line))]
    assert len((tmp_path / "made").read_text().split()) == 3  # one of it each: both modules, and what was left


def test_who_waits_is_ended_in_order_when_a_failure_is_enough(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "met")
    said = run(tmp_path, "-x", test_fails=FAILS, test_waits=WAITS)
    assert said[-1].startswith("1 failed in")
    assert (tmp_path / "ended").exists()
