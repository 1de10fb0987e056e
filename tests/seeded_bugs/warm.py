"""A pytest that has collected every test once, and runs some of them in forks with a change in.

A change costs a fork and the tests that are run: some 50 ms where the first test notices it. Those that what is
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

from tests.seeded_bugs.forking import PROFILED, SKIPPED, Fork, Run
from tests.seeded_bugs.grafting import Functions
from tests.seeded_bugs.planting import VARIABLE, PlantingError

UNPLANTED = 72
"""Exit status of a run whose change cannot be put into what is imported."""
NO_TESTS = 5
_TRYING, _NOTICED = "trying ", "noticed by "

Limit = Callable[[str], float]
"""The seconds that a test may take, by its name: what hangs then has noticed."""

_collected: _Collected | None = None


class _Collected:
    def __init__(self, session: pytest.Session, limit: Limit) -> None:
        self.session = session
        self.limit = limit
        self._items = {item.nodeid: item for item in session.items}
        gc.unfreeze()
        self.functions = Functions()
        gc.freeze()  # forks share what they do not touch
        assert threading.active_count() == 1, "a thread does not survive a fork"

    def named(self, test: str) -> list[pytest.Item]:
        """The tests of a name as pytest takes it: one of a function or class is that of all of its tests."""
        if test in self._items:
            return [self._items[test]]
        return [item for name, item in self._items.items() if name.startswith((f"{test}[", f"{test}::"))]


def with_collected_tests(files: Sequence[str], limit: Limit, work: Callable[[], None]) -> None:
    """Do the work in a pytest that has collected these files of tests; `WarmFork`s can be made meanwhile.

    Args:
        files: from the root of the checkout.
        limit: of each test.

    Raises:
        SystemExit: the tests cannot be collected.
    """
    plugin = _Loop(limit, work)
    options = ["-p", "no:cacheprovider", "--assert=plain", "--capture=no", "-qq", *PROFILED, *files]
    status = pytest.main(options, plugins=[plugin])
    if plugin.error is not None:
        raise plugin.error
    if not plugin.done:
        raise SystemExit(f"the tests cannot be collected: pytest's status is {status}")


class _Loop:
    """Instead of pytest's own loop over the tests."""

    def __init__(self, limit: Limit, work: Callable[[], None]) -> None:
        self._limit = limit
        self._work = work
        self.done = False
        self.error: BaseException | None = None

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        global _collected
        _collected = _Collected(session, self._limit)
        try:
            self._work()
        except BaseException as error:  # pytest would make words of it
            self.error = error
        self.done = True
        return True


class WarmFork(Fork):
    """Tests that have been collected, in a fork that has the change."""

    all_there = False
    """Whether each test has to be there; else those that are there are run."""

    def _tests(self, folder: Path) -> int:
        assert _collected is not None
        if self.task.bug is not None:
            try:
                _collected.functions.change(self.task.bug, os.environ[VARIABLE])
            except PlantingError as error:
                print(error)
                return UNPLANTED
        found = [_collected.named(test) for test in self.task.tests]
        items = [item for each in found for item in each]
        if not items or (self.all_there and not all(found)):
            return NO_TESTS
        factory = items[0].config._tmp_path_factory  # type: ignore[attr-defined]
        factory._given_basetemp, factory._basetemp = folder / "t", None
        passed = _Passed()
        items[0].config.pluginmanager.register(passed)
        for item, following in zip(items, [*items[1:], None], strict=True):
            item.add_marker(pytest.mark.timeout(_collected.limit(item.nodeid)), append=False)
            print(f"\n{_TRYING}{item.nodeid}", flush=True)  # what ends the whole process has a name too
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            if _collected.session.testsfailed:
                print(f"\n{_NOTICED}{item.nodeid}")
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


def tests_tried(run: Run) -> list[str]:
    """The tests that a `WarmFork` has come to, in order."""
    return re.findall(rf"^{_TRYING}(.+)$", run.output, re.MULTILINE)


def noticed_by(run: Run) -> str | None:
    """The test that has failed, as either kind of fork says it, or else the one with which the process ended.

    None where it ended before any: what a change is in, say, cannot be imported.
    """
    for word in (_NOTICED, _TRYING):
        if named := re.findall(rf"^{word}(.+)$", run.output, re.MULTILINE):
            return str(named[-1])
    told = re.findall(r"^(?:FAILED|ERROR) (.+)$", run.output, re.MULTILINE)
    return max((test for test in run.task.tests for line in told if line.startswith(test)), key=len, default=None)
