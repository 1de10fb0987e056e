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
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import psutil

from vfio_user.errors import UserError
from vfio_user.harness.deadline import patience

TEST_TIMEOUT = 300.0
"""Seconds for a test that says nothing else, with the patience of deadlines."""
MARGIN = 120.0
"""Seconds that a test which was too slow has to keep its evidence, with the same patience."""

_ENDINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_TICK = 1.0
_NO_TESTS = "could not be created"


class JobHangs(SystemExit):
    """A job from which nothing comes any more. Not an Exception, which avocado's event loop would keep to itself."""


def avocado() -> tuple[type[Any], type[Exception]]:
    """Its `Job`, and what it raises when it will not make one. Raises `UserError` when it is not installed."""
    try:
        from avocado.core.job import Job
        from avocado.core.suite import TestSuiteError
    except ImportError as error:
        raise UserError("avocado is not installed", hint="pip install 'vfio-user[test]'") from error
    return Job, TestSuiteError


def make_job(config: dict[str, Any]) -> Any:
    """The job of a configuration. Raises `UserError`, with avocado's reason."""
    Job, TestSuiteError = avocado()
    try:
        return Job.from_config(config)
    except TestSuiteError as error:
        if _NO_TESTS in str(error):
            hint = "`vfio-user test-e2e --list` names all that there are"
            raise UserError("no test is to be run", hint=hint) from error
        raise UserError(f"avocado refuses this: {error}") from error


def check_settings(keys: Iterable[str]) -> None:
    """Raise `UserError` for a setting that neither avocado nor one of its plugins has."""
    avocado()
    known = _known_settings()
    if unknown := sorted(set(keys) - known):
        near = [near for key in unknown for near in difflib.get_close_matches(key, known, n=1)]
        hint = f"do you mean {', '.join(near)}? " * bool(near) + "`avocado config reference` has all"
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
    return MARGIN * patience("kvm")


def longest_timeout(references: Iterable[str]) -> float:
    """The longest time in seconds that a test may take by its class, of FILE:CLASS.METHOD as avocado names them."""
    default = TEST_TIMEOUT * patience("kvm")
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


@contextmanager
def watched(job: Any, silence: float, say: Callable[[str], None], *, grace: float = 30.0) -> Iterator[None]:
    """Run a job in the block, for the main thread: it is not waited for longer than this while no test of it ends.

    A test that has begun and not ended in `silence` seconds is reported for it, as INTERRUPTED, and the job goes on.
    When even so nothing comes within `grace` seconds more, all that it started is ended, and the block is left.

    Raises:
        JobHangs: nothing came.
    """
    seen, since, told = -1, time.monotonic(), False

    def look(_number: int, _frame: FrameType | None) -> None:
        nonlocal seen, since, told
        if (ended := len(job.result.tests)) != seen:
            seen, since, told = ended, time.monotonic(), False
        quiet = time.monotonic() - since
        if quiet > silence + grace:
            _end_children()
            raise JobHangs(f"avocado's job has not ended {quiet:.0f} s after its last test")
        if quiet > silence and not told:
            told = True
            for name in _report_the_silent(job, silence):
                say(f"{name} has not reported in {silence:.0f} s: the job goes on without it")

    before = signal.signal(signal.SIGALRM, look)
    left, interval = signal.setitimer(signal.ITIMER_REAL, _TICK, _TICK)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        signal.setitimer(signal.ITIMER_REAL, left, interval)


class Ending:
    """Whether somebody ended a job, and which tests that was in: it says nothing of these."""

    def __init__(self) -> None:
        self._reported: int | None = None
        """Tests that had reported when the job was told to end."""

    @property
    def came(self) -> bool:
        return self._reported is not None

    def tests(self, job: Any) -> list[Mapping[str, Any]]:
        """Those that were interrupted by it, under whatever name avocado has for that."""
        if self._reported is None:
            return []
        behind: list[Mapping[str, Any]] = job.result.tests[self._reported :]
        return [test for test in behind if test["status"] not in ("PASS", "WARN", "CANCEL", "SKIP")]

    @contextmanager
    def noticed(self, job: Any) -> Iterator[None]:
        """Raise KeyboardInterrupt in the block, which avocado knows, when the process is told to end."""

        def interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
            self._reported = len(job.result.tests)
            raise KeyboardInterrupt

        before = {number: signal.signal(number, interrupt) for number in _ENDINGS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _report_the_silent(job: Any, seconds: float) -> Iterator[str]:
    """Tell avocado that the tests which have begun and not ended are interrupted; their names."""
    from avocado.core.utils.messages import FinishedMessage

    for suite in job.test_suites:
        repository, machine = (getattr(suite.runner, name, None) for name in ("status_repo", "tsm"))
        if repository is None or machine is None:
            continue
        for identity, running in machine.tasks_by_id.items():
            if repository.get_task_status(str(identity)) not in (None, "finished"):
                reason = f"Test interrupted: it has not reported in {seconds:.0f} s"
                message = FinishedMessage.get("interrupted", reason, id=str(identity), job_id=running.job_id)
                repository.process_message(message)
                yield str(running.identifier.name)


def _end_children() -> None:
    """End what this process has started, tests and what they started: these let go of their guests at SIGTERM."""
    children = psutil.Process().children(recursive=True)
    for child in children:
        with suppress(psutil.NoSuchProcess):
            child.terminate()
    for child in psutil.wait_procs(children, timeout=5)[1]:
        with suppress(psutil.NoSuchProcess):
            child.kill()


# -- what it leaves ---------------------------------------------------------------------------------------------------


def complete_junit(path: Path, tests: Iterable[Mapping[str, Any]]) -> None:
    """Have the reasons of tests that were cancelled in avocado's results.xml, which leaves them out."""
    from junitparser import JUnitXml, Skipped  # slow to import

    if not path.exists():
        return
    report = JUnitXml.fromfile(str(path))
    cases = (case for suite in report for case in suite)
    for case, test in zip(cases, tests, strict=False):  # in their order
        if test["status"] in ("CANCEL", "SKIP") and test.get("fail_reason"):
            case.result = [Skipped(str(test["fail_reason"]))]
    report.write(str(path), pretty=False)
