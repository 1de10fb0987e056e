"""Avocado's job of guest-driven tests: what may be set for it, how long it may take, what becomes of what it leaves.

Avocado 113 leaves a job waiting for ever where a test never reports: its runner was ended, say. `watched` has the job
go on without such a test, from outside of avocado's own waits.
"""

from __future__ import annotations

import difflib
import functools
import importlib.util
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from types import FrameType
from typing import Any

from userdev.errors import UserError
from vfio_user.avocado_job.ending import ENDING_SECONDS, Ending, end_children
from vfio_user.avocado_job.naming import missing_test
from vfio_user.extras import installing
from vfio_user.harness.interruption import reentrant
from vfio_user.harness.timeouts import patience
from vfio_user.harness.verdicts import TEST_SECONDS

MARGIN_SECONDS = 120.0
"""Seconds that a test which was too slow has to keep its evidence, with the same patience."""

LOST_SECONDS = 10.0
"""Seconds that what a runner has said, before it went, has to arrive."""

_TICK_SECONDS = 1.0
RUNNER_GONE = "its runner has gone"
_NO_REPORT = "it has not reported in"
SLOT_GONE = "its slot has gone"
TEST_GONE = "its process has gone"
GONE_ON_WITHOUT = (RUNNER_GONE, _NO_REPORT, SLOT_GONE, TEST_GONE)
"""What the reason of a test says that was gone on without: nobody knows what became of it."""

_NO_TESTS = "could not be created"


class JobHangs(SystemExit):
    """A job from which nothing comes any more. Not an Exception, which avocado's event loop would keep to itself."""


def avocado() -> tuple[type[Any], type[Exception]]:
    """Its `Job`, and what it raises when it will not make one.

    Raises:
        UserError: it is not installed.
    """
    try:
        from avocado.core.job import Job
        from avocado.core.suite import TestSuiteError
    except ImportError as error:
        raise UserError("avocado is not installed", hint=installing("test")) from error
    return Job, TestSuiteError


def make_job(config: dict[str, Any]) -> Any:
    """The job of a configuration.

    Raises:
        UserError: avocado makes none; the reason is its own.
    """
    Job, TestSuiteError = avocado()
    try:
        return Job.from_config(config)
    except TestSuiteError as error:
        if _NO_TESTS in str(error):
            hint = "`vfio-user test-e2e --list` names all that there are"
            raise UserError("no test is to be run", hint=hint) from error
        if (missing := missing_test(config.get("resolver.references", ()))) is not None:
            raise missing from error
        raise UserError(f"avocado refuses this: {error}") from error


def usual_settings(results: Path, parallel: int) -> dict[str, Any]:
    """The settings that every job of guest-driven tests has; its folder is made in `results`."""
    return {
        "run.max_parallel_tasks": parallel,
        "run.results_dir": str(results),
        "run.status_server_auto": True,
        "run.spawner": spawner(),
        "core.show": ["app"],
        "job.run.result.html.enabled": True,
        "sysinfo.collect.enabled": False,
    }


def chosen_tests(job: Any) -> Sequence[str]:
    """FILE:CLASS.METHOD of all that a job is to run, once for each variant, the file as it is found from here."""
    return [runnable.uri for suite in job.test_suites for runnable in suite.tests]


@functools.cache
def spawner() -> str:
    """How tests are started, for avocado's `run.spawner`: as forks, where this installation has told of that.

    All that is installed is read for it, so once in a process.
    """
    from vfio_user.avocado_job.forks import NAME

    return NAME if NAME in entry_points(group="avocado.plugins.spawner").names else "process"


def check_settings(keys: Iterable[str]) -> None:
    """Raise `UserError` for a setting that neither avocado nor one of its plugins has."""
    avocado()
    known = _known_settings()
    if unknown := sorted(set(keys) - known):
        near = [near for key in unknown for near in difflib.get_close_matches(key, known, n=1)]
        meant = f"do you mean {', '.join(near)}? " if near else ""
        hint = f"{meant}`avocado config reference` has all"
        raise UserError(f"avocado has no setting {', '.join(unknown)}", hint=hint)


@functools.cache
def _known_settings() -> frozenset[str]:
    """Once in a process: avocado refuses to have a setting declared twice."""
    from avocado.core.dispatcher import CLICmdDispatcher, CLIDispatcher
    from avocado.core.parser import Parser
    from avocado.core.settings import settings

    parser, arguments = Parser(), sys.argv
    sys.argv = arguments[:1]  # it looks there for options of its own
    try:
        parser.start()
    finally:
        sys.argv = arguments
    for plugins in (CLIDispatcher(), CLICmdDispatcher()):  # most settings exist once their options do
        plugins.map_method("configure", parser)
    return frozenset(settings.as_dict())


# -- bounds -----------------------------------------------------------------------------------------------------------


def margin() -> float:
    """Seconds that a test has beyond its time, for its evidence."""
    return MARGIN_SECONDS * patience("kvm")


def longest_timeout(references: Iterable[str]) -> float:
    """The longest time in seconds that a test may take by its class, of FILE:CLASS.METHOD as avocado names them."""
    default = TEST_SECONDS * patience("kvm")
    modules: dict[str, Any] = {}
    longest = 0.0
    for reference in references:
        path, _, name = reference.rpartition(":")
        if path not in modules:
            modules[path] = _module(Path(path))
        timeout = getattr(getattr(modules[path], name.partition(".")[0], None), "timeout", None)
        longest = max(longest, timeout or default)
    return longest or default


def _module(path: Path) -> Any:
    """A file of tests; None where it cannot be imported: its tests will say so."""
    specification = importlib.util.spec_from_file_location(f"_timeouts_of_{path.stem}", path)
    if specification is None or specification.loader is None:
        return None
    module = importlib.util.module_from_spec(specification)
    try:
        specification.loader.exec_module(module)
    except Exception:
        return None
    return module


def run_bounded(
    job: Any,
    ending: Ending,
    say: Callable[[str], None],
    *,
    explicit: bool = False,
    tick: Callable[[], None] = lambda: None,
) -> int:
    """Run a job within the bounds of its tests' classes; its exit status by avocado.

    `explicit`: it was said how long a test may take at all. `ending` has the end that somebody gave it, and `tick` is
    called every second, in the main thread.

    Raises:
        JobHangs: nothing comes from it any more.
        EndedAtOnce: it was told to end twice.
    """
    longest = longest_timeout(chosen_tests(job))
    if not explicit:
        for suite in job.test_suites:
            suite.config["task.timeout.running"] = longest + margin()
    for suite in job.test_suites:
        suite.config["runner.task.interval.from_soft_to_hard_termination"] = ENDING_SECONDS
    say = reentrant(say)
    with ending.noticed(job), watched(job, longest + 2 * margin(), say, tick=tick):
        status: int = job.run()
    return status


@contextmanager
def watched(
    job: Any,
    silence: float,
    say: Callable[[str], None],
    *,
    grace: float = 30.0,
    lost: float = LOST_SECONDS,
    tick: Callable[[], None] = lambda: None,
) -> Iterator[None]:
    """Run a job in the block, for the main thread: it is not waited for longer than this while no test begins or ends.

    A test whose runner has gone for `lost` seconds, or that has begun and not ended in `silence` seconds, is reported
    for it, as INTERRUPTED, and the job goes on. When even so nothing comes within `grace` seconds more, all that it
    started is ended, and the block is left.

    Raises:
        JobHangs: nothing came.
    """
    seen, since = (0, 0), time.monotonic()
    gone: dict[str, float] = {}  # tests whose runner was seen to have gone: since when
    told: set[str] = set()

    def look(_number: int, _frame: FrameType | None) -> None:
        nonlocal seen, since
        tick()
        now = time.monotonic()
        if (moved := (len(job.result.tests), _begun(job))) != seen:
            seen, since = moved, now
        if now - since > silence + grace:
            end_children()
            raise JobHangs(f"avocado's job has not ended {now - since:.0f} s after its last test")
        for test in _unreported(job):
            if test.has_gone and now - gone.setdefault(test.identity, now) > lost:
                why = RUNNER_GONE
            elif now - since > silence:
                why = f"{_NO_REPORT} {silence:.0f} s"
            else:
                continue
            if test.identity not in told:
                told.add(test.identity)
                test.report(why)
                say(f"{test.name} is gone on without: {why}")

    before = signal.signal(signal.SIGALRM, look)
    left, interval = signal.setitimer(signal.ITIMER_REAL, _TICK_SECONDS, _TICK_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        signal.setitimer(signal.ITIMER_REAL, left, interval)


@dataclass(frozen=True)
class _Unreported:
    """A test that avocado knows to have begun, and not to have ended."""

    running: Any
    """avocado.core.task.runtime.RuntimeTask"""
    repository: Any
    """avocado.core.status.repo.StatusRepo"""

    @property
    def identity(self) -> str:
        return str(self.running.task.identifier)

    @property
    def name(self) -> str:
        return str(self.running.task.identifier.name)

    @property
    def has_gone(self) -> bool:
        process = getattr(self.running.spawner_handle, "process", None)
        return process is not None and process.returncode is not None

    def report(self, why: str) -> None:
        """Say in its place that it was interrupted."""
        from avocado.core.utils.messages import FinishedMessage

        task = self.running.task
        reason = f"Test interrupted: {why}"
        message = FinishedMessage.get("interrupted", reason, id=str(task.identifier), job_id=task.job_id)
        self.repository.process_message(message)


def _begun(job: Any) -> int:
    """How many tests have begun: a busy machine is slow to start one."""
    return sum(
        suite.runner.status_repo.get_task_status(str(running.task.identifier)) is not None
        for suite in job.test_suites
        for running in getattr(suite.runner, "runtime_tasks", ())
    )


def _unreported(job: Any) -> Iterator[_Unreported]:
    for suite in job.test_suites:
        for running in getattr(suite.runner, "runtime_tasks", ()):
            test = _Unreported(running, suite.runner.status_repo)
            if test.repository.get_task_status(test.identity) not in (None, "finished"):
                yield test


# -- what it leaves ---------------------------------------------------------------------------------------------------


def complete_junit(path: Path, tests: Iterable[Mapping[str, Any]]) -> None:
    """Have the reasons of tests that were cancelled in avocado's results.xml, which leaves them out.

    What is no whole file, as on a full disk, stays as it is: that the disk is full others say.
    """
    from junitparser import JUnitXml, Skipped  # slow to import

    try:
        report = JUnitXml.fromfile(str(path))
    except (OSError, SyntaxError):  # ElementTree's ParseError is one
        return
    cases = (case for suite in report for case in suite)
    for case, test in zip(cases, tests, strict=False):  # in their order
        if test["status"] in ("CANCEL", "SKIP") and test.get("fail_reason"):
            case.result = [Skipped(str(test["fail_reason"]))]
    beside = path.with_suffix(".new")
    try:
        report.write(str(beside), pretty=False)
        beside.replace(path)
    except OSError:
        with suppress(OSError):
            beside.unlink()
