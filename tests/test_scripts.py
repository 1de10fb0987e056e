"""`scripts/test` and `.ci/run` over a virtual environment of stand-in tools: what they run, say and return."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

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
        _put(tmp_path, name, STAND_IN.format(name=name))
    digest = hashlib.sha256((ROOT / "pyproject.toml").read_bytes()).hexdigest()
    for extra in ("harness", "lint", "test", "docs", "mutants"):
        (tmp_path / f".vfio-user-{extra}").write_text(f"{digest} {ROOT}\n")
    return tmp_path


def _put(tools: Path, name: str, script: str) -> None:
    (tools / "bin" / name).write_text(script)
    (tools / "bin" / name).chmod(0o755)


def _as(user: str, tools: Path) -> None:
    """Have scripts believe that they are of a user, who may make namespaces."""
    _put(tools, "id", f"#!/bin/sh\necho {user}\n")
    _put(tools, "unshare", "#!/bin/sh\n")


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


def test_what_a_ci_keeps_below_the_project_is_no_part_of_it(tmp_path: Path) -> None:
    """Where caches have to be there (GitLab), what was unpacked into them failed our linters, and a new project's."""
    new = ROOT / "vfio_user/new_project/templates"
    for ci, ignored in (
        (ROOT / ".gitlab-ci.yml", ROOT / ".gitignore"),
        (new / "gitlab-ci.yml.txt", new / "gitignore.txt"),
    ):
        (tmp_path / ".gitignore").write_text(ignored.read_text())
        subprocess.run(["git", "init", "-q", tmp_path], check=True)
        kept = [f"{path}/its.py" for job in yaml.safe_load(ci.read_text()).values() for path in _kept_by(job)]
        asked = subprocess.run(["git", "-C", tmp_path, "check-ignore", *kept], capture_output=True, text=True)
        assert kept, ci
        assert asked.stdout.splitlines() == kept, ci


def _kept_by(job: object) -> list[str]:
    return list(job["cache"]["paths"]) if isinstance(job, dict) and "cache" in job else []


@pytest.mark.parametrize("fails", [False, True])
def test_ci_runs_every_stage_and_a_fresh_machine_beside_them_whose_failure_is_the_end(tools: Path, fails: bool) -> None:
    _as("0", tools)
    fresh = STAND_IN.format(name="python").replace("--fail", "tests.fresh" if fails else "--fail")
    _put(tools, "python", fresh)
    status, lines = run(tools, script=".ci/run")
    stages = [line.split()[0] for line in lines if " passed " in line]
    assert sorted([*stages, "provisioning"]) == sorted(STAGES)
    told = [number for number, line in enumerate(lines) if line.startswith("python -m tests.fresh ")]
    assert (status, len(told)) == ((1, 2) if fails else (0, 1))
    assert told[0] < lines.index("vfio-user test-e2e"), "the guests have the machine for themselves"
    assert not fails or told[-1] == len(lines) - 2


@pytest.mark.parametrize("user", ["0", "1000"], ids=["root", "user"])
def test_a_night_is_red_for_no_fresh_machine_where_there_can_be_none(tools: Path, user: str, tmp_path: Path) -> None:
    """As in the workflow of GitHub's, where it is an ordinary user's; all else is run in both."""
    checkout = tmp_path / "checkout"
    shutil.copytree(ROOT / "scripts", checkout / "scripts")
    shutil.copy(ROOT / "pyproject.toml", checkout)
    (checkout / "build").mkdir()
    for stamp in tools.glob(".vfio-user-*"):
        stamp.write_text(stamp.read_text().replace(str(ROOT), str(checkout)))
    _as(user, tools)
    _put(tools, "pytest", STAND_IN.format(name="pytest"))
    status, lines = run(tools, script=str(checkout / "scripts/nightly"))
    assert status == 0, lines
    fresh = [line for line in lines if line.startswith("python -m tests.fresh")]
    assert [line.partition("tests.fresh")[2].strip() for line in fresh] == (
        ["", "--user", "--suite trixie", "--suite forky"] if user == "0" else []
    )
    for begun in ("python -m tests.mutants", "vfio-user nightly --plan", "vfio-user soak", "pytest -m not pure"):
        assert any(line.startswith(begun) for line in lines), begun


def test_a_command_beside_busy_loops_has_its_status_and_leaves_none() -> None:
    """Who reads what it says sees the end: nothing that holds it is left."""
    others = "import os, psutil; print(len(psutil.Process(os.getppid()).children()) - 1); raise SystemExit(7)"
    command = [str(ROOT / "scripts/beside"), "3", sys.executable, "-c", others]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (7, "3\n")


@for_each([[], ["4"], ["many", "true"]])
def test_how_many_loops_beside_what_has_to_be_said(arguments: list[str]) -> None:
    assert subprocess.run([ROOT / "scripts/beside", *arguments], capture_output=True).returncode == 2
