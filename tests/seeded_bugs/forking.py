"""Runs pytest in forks of this process, where it and what tests use of others is imported already.

A pytest of its own for each bug would take four times as long. Nothing of this project may be imported here besides
this package: a fork plants its bug before it does.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

# Imported for the forks.
import hypothesis.strategies  # noqa: F401
import pydantic  # noqa: F401
import pytest
import rich.console  # noqa: F401
from hypothesis import Phase, settings

from tests.seeded_bugs.planting import ROOT, VARIABLE, Change, environment, plant

TEST_SECONDS = 20
"""A test that hangs with a bug in has noticed it, after this long."""
WORK_SECONDS = 1.0
"""What takes longer waits, as a rule: for what a bug keeps from coming. Another run may begin beside it."""
WAITING_RUNS = 16
"""Runs that wait, at most: some work after all."""
PROFILE = "failure-alone"
"""Of Hypothesis: that a test fails is enough here. The smallest example, and what else fails, are for people."""
PROFILED = (f"--hypothesis-profile={PROFILE}",)
RUN_SECONDS = 300
"""A run that does not end by itself is ended: `Run.overdue`."""
SKIPPED = 71
"""Exit status of a run all of whose tests were skipped: this user, or this machine, cannot run them."""
BROKEN = 70
"""Exit status of a run that went wrong otherwise than by a test."""
_PR_SET_PDEATHSIG = 1

settings.register_profile(
    PROFILE,
    deadline=None,
    derandomize=True,
    report_multiple_bugs=False,
    phases=[phase for phase in Phase if phase not in (Phase.shrink, Phase.explain)],
)


@dataclass(frozen=True)
class Task:
    """Tests to run with a bug in, or none; the first that fails ends it."""

    tests: Sequence[str]
    bug: Change | None = None


@dataclass(frozen=True)
class Run:
    """What came of it: pytest's exit status, or minus the signal that ended it."""

    task: Task
    status: int
    output: str
    seconds: float
    overdue: bool = False
    """Whether it was ended as it did not end by itself, which shows nothing."""


def run_all(
    tasks: Iterable[Task], jobs: int, *, work_seconds: float = WORK_SECONDS, kind: type[Fork] | None = None
) -> Iterator[Run]:
    """Run all, each as it ends; at most `jobs` at once, those aside that have taken longer than `work_seconds`.

    A task is asked for when it may begin. Closing the iterator ends those that still run.
    """
    start = kind or Fork
    tasks = iter(tasks)
    task = next(tasks, None)
    with contextlib.ExitStack() as stack:
        running: list[Fork] = []
        stack.callback(lambda: [fork.end() for fork in running])
        while task or running:
            now = time.monotonic()
            working = [fork for fork in running if now - fork.began < work_seconds]
            if task and len(working) < jobs and len(running) < jobs + WAITING_RUNS:
                running.append(start(task))
                task = next(tasks, None)
                continue
            events = [fork.deadline for fork in running] + [fork.began + work_seconds for fork in working]
            ended, _, _ = select.select(running, [], [], max(0.0, min(events) - now))
            for fork in ended or [fork for fork in running if fork.deadline <= time.monotonic()]:
                running.remove(fork)
                yield fork.end()


class _Said:
    """A plugin that keeps the exit status of pytest's session, and `SKIPPED` where no test was run to its end."""

    status: int | None = None
    passed = False

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.passed |= report.when == "call" and report.passed

    def pytest_sessionfinish(self, exitstatus: int) -> None:
        self.status = SKIPPED if exitstatus == 0 and not self.passed else int(exitstatus)


class Fork:
    """One pytest, and all the processes that it has started."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self._folder = Path(tempfile.mkdtemp(prefix="detect-"))
        self.began = time.monotonic()
        self.deadline = self.began + RUN_SECONDS
        sys.stdout.flush()
        sys.stderr.flush()
        parent = os.getpid()
        self._pid = os.fork()
        if not self._pid:
            self._run(parent)
        self._pidfd = os.pidfd_open(self._pid)

    def fileno(self) -> int:
        return self._pidfd

    def end(self) -> Run:
        """Wait no longer: end what still runs, and say how it went."""
        ended, _, _ = select.select([self], [], [], 0)
        if not ended:
            os.kill(self._pid, signal.SIGKILL)
        _, status = os.waitpid(self._pid, 0)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._pid, signal.SIGKILL)
        os.close(self._pidfd)
        output = (self._folder / "log").read_text(errors="replace")
        shutil.rmtree(self._folder, ignore_errors=True)
        seconds = time.monotonic() - self.began
        return Run(self.task, os.waitstatus_to_exitcode(status), output, seconds, overdue=not ended)

    def _run(self, parent: int) -> None:
        """In the fork; does not return."""
        status = BROKEN
        try:
            os.setsid()
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != parent:
                os._exit(status)
            log = os.open(self._folder / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(log, 1)
            os.dup2(log, 2)
            os.chdir(ROOT)
            bugged = environment(self.task.bug, self._folder)
            os.environ.clear()
            os.environ.update(bugged)
            status = self._tests(self._folder)
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    def _tests(self, folder: Path) -> int:
        """In the fork, with its environment: have the bug, run the tests, say how it went."""
        said = _Said()
        try:
            if self.task.bug is not None:
                plant(os.environ[VARIABLE])
            # pytest rewrites the assertions of a whole package that brings a plugin: it loads its modules itself then.
            options = ["-x", "--tb=short", "-p", "no:cacheprovider", "--assert=plain"]
            options += ["--timeout", str(TEST_SECONDS), "--basetemp", str(folder / "t"), *PROFILED]
            status = int(pytest.main([*options, *self.task.tests], plugins=[said]))
        except BaseException:
            # What a test that failed has left behind is complained of once pytest has said how it went.
            if said.status is None:
                raise
            traceback.print_exc()
        return status if said.status is None else said.status
