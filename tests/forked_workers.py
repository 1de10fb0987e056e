"""Runs tests in forks of the process that has collected them: `pytest --forks N`.

Each worker of pytest-xdist imports and collects all tests by itself, and thousands of them take longer to import than
most do to run. A fork has them. The modules wait in a pipe: whoever is free takes the next one, so that what a module's
tests share is made once. What a test came to goes through a pipe to the process that collected it, which reports it as
if it had run it.
"""

from __future__ import annotations

import atexit
import itertools
import os
import signal
import sys
import traceback
from collections.abc import Iterable, Sequence
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from typing import Any, NoReturn

import pytest

LONGEST = ("test_nightly_night.py", "test_avocado_job.py")
"""Modules that wait for others most of their time: what is begun last holds up the end."""
NUMBER = 2
"""Bytes of a module's number in the queue."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the number of forks."""
    parser.addoption("--forks", metavar="N", type=int, default=0, help="run the tests in N forks of this process")


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> bool | None:
    """Run all tests in the forks that are wanted; None: there are none to run, or no forks.

    Raises:
        Failed: as many tests failed as were to be borne (-x).
        ChildProcessError: a fork ended where no test had begun.
    """
    forks = session.config.getoption("forks")
    if not forks or session.testsfailed or session.config.option.collectonly:
        return None
    workers = _Workers(session)
    try:
        for _ in range(forks):
            workers.start()
        while workers.running:
            for pipe in wait(workers.running):
                workers.hear(pipe)
                if session.shouldfail:
                    raise session.Failed(session.shouldfail)
    finally:
        workers.end()
    return True


class _Workers:
    """The forks as the process sees them that has made them: `running` has each one's number, by its pipe."""

    def __init__(self, session: pytest.Session) -> None:
        self.running: dict[Any, int] = {}
        self._session = session
        self._factory: Any = session.config._tmp_path_factory  # type: ignore[attr-defined]
        self._folder = Path(self._factory.getbasetemp())
        self._folders = itertools.count()
        self._at: dict[int, int] = {}
        """Which test each is running, by its number."""
        self._modules = sorted(_modules(session.items), key=lambda at: session.items[at[0]].path.name not in LONGEST)
        self._queue, queued = os.pipe()
        os.write(queued, b"".join(number.to_bytes(NUMBER, "little") for number in range(len(self._modules))))
        os.close(queued)

    def start(self, first: Sequence[int] = ()) -> None:
        """Fork one that runs these tests, and then what waits."""
        heard, told = Pipe(duplex=False)
        folder = self._folder / f"fork{next(self._folders)}"
        folder.mkdir(mode=0o700)
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if not pid:
            self._factory._basetemp = folder
            _Worker(self._session, told).run(first, self._modules, self._queue)
        told.close()
        self.running[heard] = pid

    def hear(self, pipe: Any) -> None:
        """Report what one says; where it has ended in the middle of a test, have another do what it left."""
        pid = self.running[pipe]
        try:
            told, begun = pipe.recv()
        except EOFError:
            self._ended(pipe)
            return
        if (done := self._at.pop(pid, None)) is not None:
            config = self._session.config
            reports = [config.hook.pytest_report_from_serializable(config=config, data=data) for data in told]
            self._report(self._session.items[done], reports)
        if begun is not None:
            self._at[pid] = begun

    def _report(self, item: pytest.Item, reports: Iterable[pytest.TestReport]) -> None:
        item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        for report in reports:
            item.ihook.pytest_runtest_logreport(report=report)
        item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)

    def _ended(self, pipe: Any) -> None:
        pid = self.running.pop(pipe)
        pipe.close()
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        at = self._at.pop(pid, None)
        if at is not None:
            item = self._session.items[at]
            end = f"the process that ran this test ended in it with status {status}"
            self._report(item, [pytest.TestReport(item.nodeid, item.location, {}, "failed", end, "call")])
            (module,) = (numbers for numbers in self._modules if at in numbers)
            self.start(range(at + 1, module.stop))
        elif status:
            raise ChildProcessError(f"a process that runs tests ended between two of them, with status {status}")

    def end(self) -> None:
        """End those that still run, as Ctrl-C does, and wait for them."""
        for pid in self.running.values():
            os.kill(pid, signal.SIGINT)
        while self.running:
            pipe, pid = self.running.popitem()
            pipe.close()
            os.waitpid(pid, 0)
        os.close(self._queue)


def _modules(items: Sequence[pytest.Item]) -> list[range]:
    """The tests of each module, by their numbers."""
    firsts = [at for at, item in enumerate(items) if not at or item.path != items[at - 1].path]
    return list(itertools.starmap(range, itertools.pairwise([*firsts, len(items)])))


class _Worker:
    """A fork: this plugin hears what its tests come to, in place of the terminal."""

    def __init__(self, session: pytest.Session, told: Connection) -> None:
        self._session = session
        self._told = told
        self._reports: list[dict[str, Any]] = []
        atexit._clear()  # that is the business of the process that was forked
        plugins = session.config.pluginmanager
        plugins.unregister(name="terminalreporter")
        plugins.register(self)
        capture = plugins.getplugin("capturemanager")
        if capture.is_globally_capturing():
            capture.stop_global_capturing()  # it goes to files that all forks have
            capture.start_global_capturing()
            capture.suspend_global_capture()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keep what a test came to, and what was wrong before or after it."""
        if report.when == "call" or not report.passed:
            config = self._session.config
            self._reports.append(config.hook.pytest_report_to_serializable(config=config, report=report))

    def run(self, first: Sequence[int], modules: Sequence[range], queue: int) -> NoReturn:
        """Run these tests and each module that is taken from the queue, and end."""
        status = 1
        try:
            self._run(first)
            while number := os.read(queue, NUMBER):
                self._run(modules[int.from_bytes(number, "little")])
            status = 0
        except (KeyboardInterrupt, BrokenPipeError):
            pass  # whoever forked this is ending
        except BaseException:
            traceback.print_exc()
        finally:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # once is enough
            self._session._setupstate.teardown_exact(None)
            atexit._run_exitfuncs()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    def _run(self, numbers: Sequence[int]) -> None:
        items = [self._session.items[number] for number in numbers]
        for number, item, after in zip(numbers, items, [*items[1:], None], strict=False):
            self._tell(number)
            item.ihook.pytest_runtest_protocol(item=item, nextitem=after)
        self._tell(None)

    def _tell(self, begun: int | None) -> None:
        reports, self._reports = self._reports, []
        self._told.send((reports, begun))
