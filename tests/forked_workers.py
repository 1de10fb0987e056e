"""Runs tests in forks of the pytest that has collected them: `-p tests.forked_workers --forks N`.

pytest-xdist starts an interpreter for each worker, and each imports and collects all there is, which takes 8 s of
processor time. Here that is done once. What a worker is to a test is the same: a process with folders and a capture of
its own, which sends its reports to the process that shows them. (Not warnings: they are errors here.)
"""

from __future__ import annotations

import atexit
import mmap
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import pytest
from _pytest.runner import runtestprotocol

FORK = get_context("fork")
SECONDS = 10.0
"""That a worker has to end once the run is over."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--forks", type=int, metavar="N", help="run the tests in N forks of this process")


def pytest_configure(config: pytest.Config) -> None:
    if config.option.forks:
        config.pluginmanager.register(_Loop(config.option.forks))


class Shares:
    """Which worker does which of the tests, in memory that all of them share.

    Each has a run of neighbours, as these have fixtures in common. A worker that is done with its own takes the second
    half of the longest that is left.
    """

    def __init__(self, tests: int, workers: int) -> None:
        self._workers = workers
        size = 3 * 8 * workers
        self._lock = os.memfd_create("shares", os.MFD_CLOEXEC)
        os.ftruncate(self._lock, size)
        memory = memoryview(mmap.mmap(self._lock, size)).cast("q")
        self._first, self._end, self._current = (memory[at::3] for at in range(3))
        for worker in range(workers):
            self._first[worker] = tests * worker // workers
            self._end[worker] = tests * (worker + 1) // workers
            self._current[worker] = -1

    def take(self, worker: int) -> tuple[int, int | None] | None:
        """The worker's next test, and the one after it where that is certain; None: there is none left."""
        with self._alone():
            if self.left(worker) == 0 and not self._steal(worker):
                return None
            taken = self._current[worker] = self._first[worker]
            self._first[worker] += 1
            return taken, taken + 1 if self.left(worker) else None

    def clear(self) -> None:
        """Leave nothing to do."""
        with self._alone():
            for worker in range(self._workers):
                self._first[worker] = self._end[worker]

    def current(self, worker: int) -> int:
        """The test that it took last; -1: none."""
        return self._current[worker]

    def left(self, worker: int) -> int:
        """How many tests of its own it has not taken."""
        return self._end[worker] - self._first[worker]

    def close(self) -> None:
        """Give up the lock; forks keep theirs."""
        os.close(self._lock)

    def _steal(self, worker: int) -> bool:
        """Whether it has got something: one that is the last of its owner has been promised to it."""
        owner = max(range(self._workers), key=self.left)
        half = self.left(owner) // 2
        self._end[worker] = self._end[owner]
        self._end[owner] -= half
        self._first[worker] = self._end[owner]
        return half > 0

    @contextmanager
    def _alone(self) -> Iterator[None]:
        os.lockf(self._lock, os.F_LOCK, 0)  # which the kernel takes from a worker that dies
        try:
            yield
        finally:
            os.lockf(self._lock, os.F_ULOCK, 0)


class _Loop:
    """Instead of pytest's own loop over the tests."""

    def __init__(self, forks: int) -> None:
        self._forks = forks

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool | None:
        """Run the tests that were collected; None: it is for pytest to say why none is run."""
        if session.testsfailed or session.config.option.collectonly or not session.items:
            return None
        assert threading.active_count() == 1, "a thread does not survive a fork"
        shares = Shares(len(session.items), self._forks)
        workers = [_Worker(session, shares, number) for number in range(self._forks)]
        try:
            while workers:
                ready = wait([worker.connection for worker in workers])
                workers = [
                    heir for worker in workers for heir in (worker.listen() if worker.connection in ready else [worker])
                ]
                if session.shouldfail or session.shouldstop:
                    shares.clear()
        finally:
            for worker in workers:
                worker.interrupt()
            shares.close()
        if session.shouldfail:
            raise session.Failed(session.shouldfail)
        if session.shouldstop:
            raise session.Interrupted(session.shouldstop)
        return True


class _Worker:
    """A fork, as it is seen by the process that shows what becomes of the tests."""

    def __init__(self, session: pytest.Session, shares: Shares, number: int) -> None:
        self._session = session
        self._shares = shares
        self._number = number
        self._before = shares.current(number)
        folder = session.config._tmp_path_factory.getbasetemp() / f"w{number}"  # type: ignore[attr-defined]
        self.connection, its = FORK.Pipe(duplex=False)
        self._process = FORK.Process(target=_work, args=(session, shares, number, folder, its))
        self._process.start()
        its.close()

    def listen(self) -> Sequence[_Worker]:
        """Show what has become of a test of its; who does the rest of its share, which is another when it has died.

        Raises:
            RuntimeError: it has died before it took a test, as the next one would.
        """
        said = self._received()
        if said is None:  # not where that was caught: a fork would have it in all that it catches
            return self._succeed()
        index, reports = said
        read = partial(self._session.config.hook.pytest_report_from_serializable, config=self._session.config)
        self._tell(index, [read(data=report) for report in reports])
        return [self]

    def interrupt(self) -> None:
        """End it before all is done."""
        if self._process.pid is not None and self._process.is_alive():
            os.kill(self._process.pid, signal.SIGINT)
        self._process.join(SECONDS)
        self._process.kill()
        self._process.join()

    def _received(self) -> tuple[int, list[dict[str, Any]]] | None:
        """The number of a test and its reports; None: it has ended, perhaps in the middle of saying that."""
        try:
            index, reports = self.connection.recv()
        except (EOFError, OSError):
            return None
        return index, reports

    def _succeed(self) -> Sequence[_Worker]:
        self.connection.close()
        self._process.join()
        code = self._process.exitcode or 0
        if not code:
            return []
        how = signal.Signals(-code).name if code < 0 else f"status {code}"
        index = self._shares.current(self._number)
        if index == self._before:
            raise RuntimeError(f"a worker ended with {how} before its first test")
        item = self._session.items[index]
        said = f"the process that ran this test ended with {how}"
        self._tell(index, [pytest.TestReport(item.nodeid, item.location, {}, "failed", said, "call")])
        return [_Worker(self._session, self._shares, self._number)] if self._shares.left(self._number) else []

    def _tell(self, index: int, reports: Sequence[pytest.TestReport]) -> None:
        item = self._session.items[index]
        for report in reports:
            item.ihook.pytest_runtest_logreport(report=report)
        item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)


def _work(session: pytest.Session, shares: Shares, number: int, folder: Path, connection: Connection) -> None:
    """Be the worker of that number, to the end of pytest."""
    atexit._clear()  # what is registered is for the process that has collected
    config = session.config
    factory = config._tmp_path_factory  # type: ignore[attr-defined]
    factory._given_basetemp, factory._basetemp = folder, None
    capture = config.pluginmanager.getplugin("capturemanager")
    capture.stop_global_capturing()  # into files that all forks share
    capture.start_global_capturing()
    capture.suspend_global_capture()
    config.pluginmanager.register(_Sender(connection, {item: at for at, item in enumerate(session.items)}))
    following = None
    try:
        while (taken := shares.take(number)) is not None:
            index, after = taken
            following = session.items[after] if after is not None else None
            config.hook.pytest_runtest_protocol(item=session.items[index], nextitem=following)
    except KeyboardInterrupt:
        session._setupstate.teardown_exact(None)
        sys.exit(128 + signal.SIGINT)
    if following is not None:  # the run is given up
        session._setupstate.teardown_exact(None)
    config._ensure_unconfigure()
    atexit._run_exitfuncs()


class _Sender:
    """Sends what becomes of a test, in the place of what shows it."""

    def __init__(self, connection: Connection, numbers: dict[pytest.Item, int]) -> None:
        self._connection = connection
        self._numbers = numbers

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item, nextitem: pytest.Item | None) -> bool:
        """Run one test."""
        told = item.config.hook.pytest_report_to_serializable
        reports = runtestprotocol(item, log=False, nextitem=nextitem)
        self._connection.send((self._numbers[item], [told(config=item.config, report=report) for report in reports]))
        return True
