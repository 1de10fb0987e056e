"""`scripts/test` and `.ci/run` over a virtual environment of stand-in tools: what they run, say and return."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cases import for_each

ROOT = Path(__file__).resolve().parent.parent
STAGES = ["lint", "types", "unit", "docs", "detect", "fuzz", "provisioning", "e2e"]
TOOLS = ("python", "ruff", "mypy", "check-jsonschema", "vfio-user")
STAND_IN = """#!/bin/sh
echo "{name} $*"
echo "so says {name}" >&2
case " $* " in *" --fail "*) exit 3 ;; esac
"""


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """An environment that counts as set up; each tool says its name and arguments, and `--fail` is status 3."""
    (tmp_path / "bin").mkdir()
    for name in TOOLS:
        tool = tmp_path / "bin" / name
        tool.write_text(STAND_IN.format(name=name))
        tool.chmod(0o755)
    digest = hashlib.sha256((ROOT / "pyproject.toml").read_bytes()).hexdigest()
    for extra in ("harness", "lint", "test", "docs"):
        (tmp_path / f".vfio-user-{extra}").write_text(f"{digest} {ROOT}\n")
    return tmp_path


def run(tools: Path, *arguments: str, script: str = "scripts/test") -> tuple[int, list[str]]:
    done = subprocess.run(
        [ROOT / script, *arguments],
        env={"PATH": f"{tools / 'bin'}:{os.environ['PATH']}", "VFIO_USER_VENV": str(tools)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.returncode, done.stdout.splitlines()


def test_every_stage_runs_and_is_reported(tools: Path) -> None:
    status, lines = run(tools)
    assert status == 0
    stages = [line.split()[0] for line in lines if " passed " in line]
    assert stages == STAGES
    assert "vfio-user test-e2e" in " ".join(lines)


def test_a_stage_that_fails_is_not_the_last_and_its_end_is_repeated(tools: Path) -> None:
    status, lines = run(tools, "types", "e2e", "--", "--fail")
    assert status == 1
    assert [line.split()[:2] for line in lines[-2:]] == [["types", "FAILED"], ["e2e", "FAILED"]]
    assert lines.count("mypy --fail") == lines.count("so says mypy") == 2
    assert lines.count("vfio-user test-e2e --fail") == 2


def test_what_passed_is_said_once(tools: Path) -> None:
    status, lines = run(tools, "types")
    assert status == 0
    assert lines.count("so says mypy") == 1


def test_what_is_no_stage_is_refused_before_anything_runs(tools: Path) -> None:
    assert run(tools, "types", "smoke") == (2, [])


@pytest.mark.parametrize("fails", [False, True])
def test_ci_runs_every_stage_and_a_fresh_machine_beside_them_whose_failure_is_the_end(tools: Path, fails: bool) -> None:
    root = tools / "bin/id"
    root.write_text("#!/bin/sh\necho 0\n")
    root.chmod(0o755)
    fresh = STAND_IN.format(name="python").replace("--fail", "tests.fresh" if fails else "--fail")
    (tools / "bin/python").write_text(fresh)
    status, lines = run(tools, script=".ci/run")
    stages = [line.split()[0] for line in lines if " passed " in line]
    assert sorted([*stages, "provisioning"]) == sorted(STAGES)
    told = [number for number, line in enumerate(lines) if line.startswith("python -m tests.fresh ")]
    assert (status, len(told)) == ((1, 2) if fails else (0, 1))
    assert told[0] < lines.index("vfio-user test-e2e"), "the guests have the machine for themselves"
    assert not fails or told[-1] == len(lines) - 2


def test_a_command_beside_busy_loops_has_its_status_and_leaves_none() -> None:
    """Who reads what it says sees the end: nothing that holds it is left."""
    others = "import os, psutil; print(len(psutil.Process(os.getppid()).children()) - 1); raise SystemExit(7)"
    command = [str(ROOT / "scripts/beside"), "3", sys.executable, "-c", others]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (7, "3\n")


@for_each([[], ["4"], ["many", "true"]])
def test_how_many_loops_beside_what_has_to_be_said(arguments: list[str]) -> None:
    assert subprocess.run([ROOT / "scripts/beside", *arguments], capture_output=True).returncode == 2
