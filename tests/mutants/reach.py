"""Which tests reach which lines, and how long each takes: a pytest plugin that writes it, and what reads it.

The plugin (`-p tests.mutants.reach`) has coverage keep each test's lines apart. A process that a test starts is
measured too, by coverage's own hook, as that test's: pytest says in the environment which one is running.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import coverage
import pytest

from tests.mutants.rooms import sources
from tests.seeded_bugs.planting import ROOT

FOLDER_VARIABLE = "VFIO_USER_REACH"
PACKAGES = ("userdev", "vfio_user", "vhost_user", "servers/userdev_servers")
SETTINGS = """[run]
data_file = {folder}/lines
parallel = true
concurrency = thread
sigterm = true
context = ${{PYTEST_CURRENT_TEST-}}
disable_warnings = no-data-collected,module-not-imported,couldnt-parse
source = {source}
"""


class Measured:
    """What was measured: tests by line, seconds by test."""

    def __init__(self, folder: Path) -> None:
        self._data = coverage.CoverageData(str(folder / "lines"))
        self._data.read()
        self.seconds: dict[str, float] = {}
        for path in folder.glob("seconds-*.json"):
            self.seconds.update(json.loads(path.read_text()))
        self._of_file: dict[str, dict[int, list[str]]] = {}

    def tests(self, file: str, lines: Iterable[int]) -> list[str]:
        """Those that reach any of these lines, in no order."""
        if file not in self._of_file:
            self._of_file[file] = self._data.contexts_by_lineno(str(ROOT / file))
        found = {_test(context) for line in lines for context in self._of_file[file].get(line, ())}
        return [test for test in found if test in self.seconds]


def _test(context: str) -> str:
    """A context is what a test is called, with its phase in a process that it has started."""
    name, _, phase = context.rpartition(" (")
    return name if phase in ("setup)", "call)", "teardown)") else context.strip("|")


def measure(folder: Path, tests: Sequence[str], *, jobs: int) -> Measured:
    """Run the tests, or read what has been measured with the same sources and tests."""
    digest = hashlib.sha256(json.dumps(sorted(tests)).encode())
    for path in sources():
        digest.update(path.read_bytes())
    folder = folder / f"reach-{digest.hexdigest()[:12]}"
    if not (folder / "complete").exists():
        _run(folder, tests, jobs)
    return Measured(folder)


def _run(folder: Path, tests: Sequence[str], jobs: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    settings = folder / "coveragerc"
    settings.write_text(SETTINGS.format(folder=folder, source=",".join(str(ROOT / name) for name in PACKAGES)))
    command = [sys.executable, "-m", "pytest", "-p", "tests.mutants.reach", "--timeout", "600", *tests]
    done = subprocess.run(
        [*command, "--numprocesses", str(jobs), "--dist", "worksteal"],
        cwd=ROOT,
        env={**os.environ, FOLDER_VARIABLE: str(folder), "COVERAGE_PROCESS_START": str(settings)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode not in (0, 1):
        raise SystemExit(f"mutants: the tests could not be run\n{done.stdout[-4000:]}")
    print(done.stdout.rstrip().rpartition("\n")[2], flush=True)
    whole = coverage.Coverage(data_file=str(folder / "lines"), config_file=str(settings), messages=False)
    whole.combine(strict=True)
    whole.save()
    (folder / "complete").touch()


class _Recorder:
    """In each process of pytest: one context per test, and its seconds."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._seconds: dict[str, float] = defaultdict(float)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Any:
        running = coverage.Coverage.current()
        if running is not None:
            running.switch_context(item.nodeid)
        return (yield)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._seconds[report.nodeid] += report.duration
        if report.failed or (report.skipped and report.when == "call"):
            self._seconds[report.nodeid] = float("inf")

    def pytest_unconfigure(self) -> None:
        passed = {test: seconds for test, seconds in self._seconds.items() if seconds != float("inf")}
        (self._folder / f"seconds-{os.getpid()}.json").write_text(json.dumps(passed))


def pytest_configure(config: pytest.Config) -> None:
    if FOLDER_VARIABLE in os.environ:
        config.pluginmanager.register(_Recorder(Path(os.environ[FOLDER_VARIABLE])))
