"""A pytest that has collected every test once, and runs some of them in forks with a mutant in.

A mutant costs a fork and the tests that are run: some 50 ms where the first test notices it. Those that what is
imported cannot be told (`grafting.PlantingError`, or lines that were run while it was imported) have a pytest of
their own (`ColdFork`).
"""

from __future__ import annotations

import gc
import os
import re
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.mutants.grafting import Functions
from tests.seeded_bugs.forking import SKIPPED, Fork
from tests.seeded_bugs.planting import VARIABLE, PlantingError

UNPLANTED = 72
"""Exit status of a run whose mutant cannot be put into what is imported."""
NO_TESTS = 5
PATIENCE_SECONDS = 5.0
PATIENCE_FACTOR = 20
"""A test may take this much longer than it did when it was measured, and is ended then: what hangs has noticed."""

_collected: _Collected | None = None


class _Collected:
    def __init__(self, session: pytest.Session, seconds: dict[str, float]) -> None:
        self.session = session
        self.items = {item.nodeid: item for item in session.items}
        self.seconds = seconds
        gc.unfreeze()
        self.functions = Functions()
        gc.freeze()  # forks share what they do not touch
        assert threading.active_count() == 1, "a thread does not survive a fork"


def with_collected_tests(files: Sequence[str], seconds: dict[str, float], work: Callable[[], None]) -> None:
    """Do the work in a pytest that has collected these files of tests; `WarmFork`s can be made meanwhile.

    Args:
        files: from the root of the checkout.
        seconds: what each test takes.

    Raises:
        SystemExit: the tests cannot be collected.
    """
    plugin = _Loop(seconds, work)
    options = ["-p", "no:cacheprovider", "--assert=plain", "--capture=no", "-qq", *files]
    status = pytest.main(options, plugins=[plugin])
    if plugin.error is not None:
        raise plugin.error
    if not plugin.done:
        raise SystemExit(f"mutants: the tests cannot be collected: pytest's status is {status}")


class _Loop:
    """Instead of pytest's own loop over the tests."""

    def __init__(self, seconds: dict[str, float], work: Callable[[], None]) -> None:
        self._seconds = seconds
        self._work = work
        self.done = False
        self.error: BaseException | None = None

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        global _collected
        _collected = _Collected(session, self._seconds)
        try:
            self._work()
        except BaseException as error:  # pytest would make words of it
            self.error = error
        self.done = True
        return True


class WarmFork(Fork):
    """Tests that have been collected, in a fork that has the mutant."""

    def _tests(self, folder: Path) -> int:
        assert _collected is not None
        if self.task.bug is not None:
            try:
                _collected.functions.change(self.task.bug, os.environ[VARIABLE])
            except PlantingError as error:
                print(error)
                return UNPLANTED
        items = [_collected.items[test] for test in self.task.tests if test in _collected.items]
        if not items:
            return NO_TESTS
        factory = items[0].config._tmp_path_factory  # type: ignore[attr-defined]
        factory._given_basetemp, factory._basetemp = folder / "t", None
        passed = _Passed()
        items[0].config.pluginmanager.register(passed)
        for item, following in zip(items, [*items[1:], None], strict=True):
            limit = PATIENCE_SECONDS + PATIENCE_FACTOR * _collected.seconds.get(item.nodeid, 0.0)
            item.add_marker(pytest.mark.timeout(limit), append=False)
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            if _collected.session.testsfailed:
                print(f"\nnoticed by {item.nodeid}")
                return 1
        return 0 if passed.any else SKIPPED


class _Passed:
    any = False

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.any |= report.when == "call" and report.passed
        if report.failed:
            print(f"{report.when}: {report.longreprtext[-1500:]}")


class ColdFork(Fork):
    """A Python of its own, which imports the changed module."""

    def _tests(self, folder: Path) -> int:
        options = ["-x", "--tb=short", "-p", "no:cacheprovider", "--assert=plain", "-rf"]
        options += ["--timeout", "60", "--basetemp", str(folder / "t")]
        os.execv(sys.executable, [sys.executable, "-m", "pytest", *options, *self.task.tests])


def noticed_by(output: str) -> str | None:
    """The test that has failed, as either kind of fork says it."""
    found = re.search(r"^noticed by (.+)$", output, re.MULTILINE) or re.search(
        r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", output, re.MULTILINE
    )
    return found[1] if found else None
