"""Runs the named test with each bug in, and says which bugs were noticed.

Nearly all are in bodies of functions, and are put into forks of one process that has collected all tests (`warm`); the
others, and what was missed so, are in a process that imports the module with the bug.

A bug counts as caught when its test passes without it and fails with it. A test that cannot even be collected with the
bug in, or a run that ends otherwise, catches nothing: such a bug shows no more than that Python imports.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from tests.seeded_bugs.catalogue import Bug, CatalogueError
from tests.seeded_bugs.forking import SKIPPED, TEST_SECONDS, Run, Task, run_all
from tests.seeded_bugs.grafting import in_functions
from tests.seeded_bugs.planting import ROOT, environment
from tests.seeded_bugs.warm import ColdFork, WarmFork, with_collected_tests

PASSED, FAILED = 0, 1
"""Exit statuses of pytest and of `vfio-user test-e2e`; any other says that the run itself went wrong."""


Runner = Callable[[Sequence[Task], int], Iterator[Run]]
"""Runs tasks, at most so many at once; each as it ends."""


class Verdict(StrEnum):
    """What a bug's run has shown."""

    CAUGHT = "caught"
    MISSED = "MISSED"
    """The test passes with the bug in."""
    FAILS_ANYWAY = "FAILS ANYWAY"
    """The test fails without the bug too."""
    BROKEN = "BROKEN"
    """The entry does not fit the code, or the test could not be run."""
    UNTOLD = "not told"
    """The test is skipped here, for the reason that it gives: another user, or another machine, can tell."""


_VERDICTS = {PASSED: Verdict.MISSED, FAILED: Verdict.CAUGHT, SKIPPED: Verdict.UNTOLD}
"""What the exit status with the bug in says."""


@dataclass(frozen=True)
class Finding:
    bug: Bug
    verdict: Verdict
    seconds: float = 0.0
    evidence: str = ""
    """The output of a run that went otherwise than it must."""


def detect(bugs: Iterable[Bug], tell: Callable[[Finding], object], *, jobs: int) -> None:
    """Tell of each finding as it comes, at most `jobs` tests at once; those with guests last, one at a time.

    This process has imported the tests and what they test then.
    """
    usable: list[Bug] = []
    for bug in bugs:
        try:
            _ = bug.planted
        except (CatalogueError, OSError) as error:
            tell(Finding(bug, Verdict.BROKEN, evidence=str(error)))
        else:
            usable.append(bug)
    quick = [bug for bug in usable if not bug.guest]
    warm = [bug for bug in quick if in_functions(bug)]

    def examine(chosen: list[Bug], run: Runner, jobs: int) -> None:
        for finding in _examine(chosen, run, jobs):
            tell(finding)

    examine([bug for bug in quick if bug not in warm], run_all, jobs)  # while nothing of ours is imported here
    if warm:
        files = sorted({bug.test.partition("::")[0] for bug in warm})
        with_collected_tests(files, lambda _: TEST_SECONDS, lambda: examine(warm, _run_warm, jobs))
    examine([bug for bug in usable if bug.guest], _run_guests, 1)


def _examine(bugs: list[Bug], run: Runner, jobs: int) -> Iterator[Finding]:
    """All tests together without a bug, each alone only where that fails; then each bug."""
    tests = sorted({bug.test for bug in bugs})
    together = list(run([Task(tests[job::jobs]) for job in range(jobs) if tests[job::jobs]], jobs))
    suspects = [Task([test]) for done in together if done.status != PASSED for test in done.task.tests]
    anyway = {done.task.tests[0]: done for done in run(suspects, jobs) if done.status not in (PASSED, SKIPPED)}
    for bug in bugs:
        if bug.test in anyway:
            yield _judge(anyway[bug.test], None, bug)
    for done in run([Task([bug.test], bug) for bug in bugs if bug.test not in anyway], jobs):
        assert isinstance(done.task.bug, Bug)
        yield _judge(None, done, done.task.bug)


def _judge(healthy: Run | None, bugged: Run | None, bug: Bug) -> Finding:
    """From the run without the bug, where it is not known to have passed, and the one with it."""
    if bugged is None:
        assert healthy is not None
        return Finding(bug, Verdict.FAILS_ANYWAY, healthy.seconds, healthy.output)
    verdict = _VERDICTS.get(bugged.status, Verdict.BROKEN)
    return Finding(bug, verdict, bugged.seconds, "" if verdict is Verdict.CAUGHT else bugged.output)


class _Named(WarmFork):
    all_there = True


def _run_warm(tasks: Sequence[Task], jobs: int) -> Iterator[Run]:
    """Run tests with bugs in what is imported; what was missed so once more, with the bug from the beginning."""
    missed = []
    for run in run_all(tasks, jobs, kind=_Named):
        if run.task.bug is None or run.status in (FAILED, SKIPPED):
            yield run
        else:
            missed.append(run.task)
    yield from run_all(missed, jobs, kind=ColdFork)


def _run_guests(tasks: Sequence[Task], jobs: int) -> Iterator[Run]:
    """Run guest-driven tests by avocado, one task at a time; their evidence is thrown away, for the bug is known."""
    for task in tasks:
        with tempfile.TemporaryDirectory(prefix="detect-") as folder:
            began = time.monotonic()
            done = subprocess.run(
                [str(Path(sys.executable).parent / "vfio-user"), "test-e2e", *task.tests],
                cwd=ROOT,
                env={**environment(task.bug, Path(folder)), "VFIO_USER_RESULTS": str(Path(folder) / "results")},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
            )
            yield Run(task, done.returncode, done.stdout, time.monotonic() - began)
