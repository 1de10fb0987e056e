"""What each test reaches: measured once, and again only of tests that are others now.

The plugin (`-p tests.mutants.reach`) has coverage keep each test's lines apart. A process that a test starts is
measured too, by coverage's own hook, as that test's: pytest says in the environment which one is running.

A measurement (`Layer`) keeps the text of what it has measured. A file of tests is asked for in the newest one that has
it as it is, and lines of a module that has changed since are found again by what is around them: who has written tests
for what survived waits for these tests alone.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import coverage
import pytest

from tests.mutants.rooms import sources
from tests.seeded_bugs.planting import ROOT

FOLDER_VARIABLE = "VFIO_USER_REACH"
FILES_AT_ONCE = 60
"""Files of tests that are measured together: so much is measured again after an interruption."""
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


class Layer:
    """One measurement: lines by test, seconds by test, and the texts that it was made of."""

    def __init__(self, folder: Path) -> None:
        made_of = json.loads((folder / "complete.json").read_text())
        self.number: int = made_of["number"]
        self.tests: dict[str, str] = made_of["tests"]
        """Digests of files of tests."""
        self._root: str = made_of["root"]
        self._texts: dict[str, str] = made_of["texts"]
        self._data = coverage.CoverageData(str(folder / "lines"))
        self._data.read()
        self.seconds: dict[str, float] = {}
        for path in folder.glob("seconds-*.json"):
            self.seconds.update(json.loads(path.read_text()))
        self._contexts = cache(self._contexts_of)
        self._lines = cache(self._lines_of)

    def contexts(self, file: str, lines: Iterable[int]) -> set[str]:
        """Tests that reach any of these lines of the file as it is now; "" where it was while modules were imported."""
        now = self._lines(file)
        measured = {line for wanted in lines for line in now.get(wanted, ())}
        by_line = self._contexts(file)
        return {_test(context) for line in measured for context in by_line.get(line, ())}

    def _contexts_of(self, file: str) -> dict[int, list[str]]:
        by_line: dict[int, list[str]] = self._data.contexts_by_lineno(str(Path(self._root) / file))
        return by_line

    def _lines_of(self, file: str) -> dict[int, range]:
        """Of each line, those that were in its place: itself, or all that others have replaced."""
        before, after = self._texts.get(file, "").splitlines(), (ROOT / file).read_text().splitlines()
        lines: dict[int, range] = {}
        for tag, old, old_end, new, new_end in difflib.SequenceMatcher(None, before, after, False).get_opcodes():
            for index in range(new, new_end):
                if tag == "equal":
                    lines[index + 1] = range(old + index - new + 1, old + index - new + 2)
                else:
                    lines[index + 1] = range(max(old, 1), old_end + 2)
        return lines


class Measured:
    """What is known of all tests as they are now."""

    def __init__(self, layers: Sequence[Layer], tests: dict[str, str]) -> None:
        self._layers = sorted(layers, key=lambda layer: -layer.number)
        owners = {
            file: next((layer for layer in self._layers if layer.tests.get(file) == digest), None)
            for file, digest in tests.items()
        }
        self._files = {layer: {file for file in tests if owners[file] is layer} for layer in self._layers}
        self.files = {file: layer.number for file, layer in owners.items() if layer is not None}
        """The files of tests that count, with the number of the measurement: what is new has a higher one."""
        self.seconds: dict[str, float] = {}
        for layer, files in self._files.items():
            self.seconds.update({test: took for test, took in layer.seconds.items() if _file(test) in files})

    def tests(self, file: str, lines: Iterable[int]) -> list[str]:
        """Those that reach any of these lines, in no order."""
        wanted = list(lines)
        found: set[str] = set()
        for layer, files in self._files.items():
            found |= {test for test in layer.contexts(file, wanted) if _file(test) in files and test in layer.seconds}
        return sorted(found)

    def at_import(self, file: str, lines: Iterable[int]) -> bool:
        """Whether any of these lines was run while modules were imported."""
        wanted = list(lines)
        return any("" in layer.contexts(file, wanted) for layer in self._layers)


def _file(test: str) -> str:
    return test.partition("::")[0]


def _test(context: str) -> str:
    """A context is what a test is called, with its phase in a process that it has started."""
    name, _, phase = context.rpartition(" (")
    return name if phase in ("setup)", "call)", "teardown)") else context.strip("|")


def measure(results: Path, patterns: Sequence[str], *, jobs: int) -> Measured:
    """Run those files of tests that have not been measured as they are, and tell what is known of all.

    Args:
        patterns: of the files of tests that count, from the root of the checkout; all where there is none.
    """
    digests = {
        str(path.relative_to(ROOT)): hashlib.sha256(path.read_bytes()).hexdigest()[:16]
        for pattern in patterns or ["tests/**/test_*.py"]
        for path in ROOT.glob(pattern)
    }
    folder = results / "reach"
    layers = [Layer(path.parent) for path in folder.glob("*/complete.json")]
    known = [layer.tests for layer in layers]
    missing = {
        file: digest for file, digest in digests.items() if not any(tests.get(file) == digest for tests in known)
    }
    number = max((layer.number for layer in layers), default=0) + 1
    for part in range(0, len(missing), FILES_AT_ONCE):
        files = sorted(missing)[part : part + FILES_AT_ONCE]
        layers.append(_run(folder / f"{number}-{part}", number, {file: missing[file] for file in files}, jobs))
    return Measured(layers, digests)


def _run(folder: Path, number: int, tests: dict[str, str], jobs: int) -> Layer:
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was interrupted
    folder.mkdir(parents=True)
    settings = folder / "coveragerc"
    settings.write_text(SETTINGS.format(folder=folder, source=",".join(str(ROOT / name) for name in PACKAGES)))
    texts = {str(path.relative_to(ROOT)): path.read_text() for path in sources()}
    command = [sys.executable, "-m", "pytest", "-p", "tests.mutants.reach", "--timeout", "600"]
    done = subprocess.run(
        [*command, "--numprocesses", str(jobs), "--dist", "worksteal", *sorted(tests)],
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
    combined = coverage.Coverage(data_file=str(folder / "lines"), config_file=str(settings), messages=False)
    combined.combine(strict=True)
    combined.save()
    made_of = {"number": number, "root": str(ROOT), "tests": tests, "texts": texts}
    (folder / "complete.json").write_text(json.dumps(made_of))
    return Layer(folder)


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
