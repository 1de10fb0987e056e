"""Runs the named test with each bug in, and says which bugs were noticed.

A bug counts as caught when its test passes without it and fails with it. A test that cannot even be collected with the
bug in, or a run that ends otherwise, catches nothing: such a bug shows no more than that Python imports.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from tests.seeded_bugs.catalogue import ROOT, Bug, CatalogueError
from tests.seeded_bugs.forking import Run, Task, run_all
from tests.seeded_bugs.planting import environment

PASSED, FAILED = 0, 1
"""Exit statuses of pytest and of `vfio-user test-e2e`; any other says that the run itself went wrong."""


class Verdict(StrEnum):
    """What a bug's run has shown."""

    CAUGHT = "caught"
    MISSED = "MISSED"
    """The test passes with the bug in."""
    FAILS_ANYWAY = "FAILS ANYWAY"
    """The test fails without the bug too."""
    BROKEN = "BROKEN"
    """The entry does not fit the code, or the test could not be run."""


@dataclass(frozen=True)
class Finding:
    bug: Bug
    verdict: Verdict
    seconds: float = 0.0
    evidence: str = ""
    """The output of a run that went otherwise than it must."""


def detect(bugs: Iterable[Bug], *, jobs: int) -> Iterator[Finding]:
    """Findings as they come, at most `jobs` tests at once; those with guests after the others, one at a time."""
    usable: list[Bug] = []
    for bug in bugs:
        try:
            _ = bug.planted
        except (CatalogueError, OSError) as error:
            yield Finding(bug, Verdict.BROKEN, evidence=str(error))
        else:
            usable.append(bug)
    yield from _without_guests([bug for bug in usable if not bug.guest], jobs)
    for bug in usable:
        if bug.guest:
            healthy = _run_guest(Task([bug.test]))
            yield _judge(healthy, _run_guest(Task([bug.test], bug)) if healthy.status == PASSED else None, bug)


def _without_guests(bugs: list[Bug], jobs: int) -> Iterator[Finding]:
    """All tests together without a bug, each alone only where that fails; then each bug."""
    tests = sorted({bug.test for bug in bugs})
    together = list(run_all([Task(tests[job::jobs]) for job in range(jobs) if tests[job::jobs]], jobs))
    suspects = [Task([test]) for run in together if run.status != PASSED for test in run.task.tests]
    anyway = {run.task.tests[0]: run for run in run_all(suspects, jobs) if run.status != PASSED}
    for bug in bugs:
        if bug.test in anyway:
            yield _judge(anyway[bug.test], None, bug)
    for run in run_all([Task([bug.test], bug) for bug in bugs if bug.test not in anyway], jobs):
        assert run.task.bug is not None
        yield _judge(None, run, run.task.bug)


def _judge(healthy: Run | None, bugged: Run | None, bug: Bug) -> Finding:
    """From the run without the bug, where it is not known to have passed, and the one with it."""
    if bugged is None:
        assert healthy is not None
        return Finding(bug, Verdict.FAILS_ANYWAY, healthy.seconds, healthy.output)
    verdict = {PASSED: Verdict.MISSED, FAILED: Verdict.CAUGHT}.get(bugged.status, Verdict.BROKEN)
    return Finding(bug, verdict, bugged.seconds, "" if verdict is Verdict.CAUGHT else bugged.output)


def _run_guest(task: Task) -> Run:
    """Run a guest-driven test by avocado; its evidence is thrown away, for the bug is known."""
    with tempfile.TemporaryDirectory(prefix="detect-") as folder:
        began = time.monotonic()
        done = subprocess.run(
            [str(Path(sys.executable).parent / "vfio-user"), "test-e2e", *task.tests],
            cwd=ROOT,
            env={**environment(task.bug), "VFIO_USER_RESULTS": os.path.join(folder, "results")},  # noqa: PTH118
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        return Run(task, done.returncode, done.stdout, time.monotonic() - began)
