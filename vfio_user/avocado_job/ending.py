"""The end that somebody gives a job of avocado's: between two of its steps, to all its tests at once."""

from __future__ import annotations

import asyncio
import signal
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType
from typing import Any

import psutil

from vfio_user.harness.interruption import handled

ENDING_SECONDS = 15
"""Seconds that a test which was told to end has for its guests and its evidence; then it is killed, with its guests."""

_ENDINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_SETTLE_SECONDS = 0.01
_INTERRUPTED = 130  # exit status
_TOLD = "told to end"  # which avocado prints, and has in TAP for what was not run
_AT_ONCE_SECONDS = 1.0


class EndedAtOnce(SystemExit):
    """A job that was told to end twice: nothing of it runs any more.

    Not an Exception, which avocado's event loop would keep to itself.
    """


class Ending:
    """The end that somebody gave a job, and which tests that was in: it says nothing of these."""

    def __init__(self) -> None:
        self._reported: int | None = None
        """Tests that had reported when the job was told to end."""

    @property
    def came(self) -> bool:
        """Whether it was told to end."""
        return self._reported is not None

    def tests(self, job: Any) -> list[Mapping[str, Any]]:
        """Those that were interrupted by it, under whatever name avocado has for that."""
        if self._reported is None:
            return []
        behind: list[Mapping[str, Any]] = job.result.tests[self._reported :]
        return [test for test in behind if test["status"] not in ("PASS", "WARN", "CANCEL", "SKIP")]

    @contextmanager
    def noticed(self, job: Any) -> Iterator[None]:
        """Raise KeyboardInterrupt in the block, which avocado knows, when the process is told to end.

        It is raised between two steps of avocado's: version 113 was seen not to end else, or to forget a verdict. Told
        once more, it ends at once: `EndedAtOnce`, and nothing that it started is left.
        """

        def interrupt(_number: int, _frame: FrameType | None) -> None:
            if self.came:
                end_children(_AT_ONCE_SECONDS)
                raise EndedAtOnce(_INTERRUPTED)
            self._reported = len(job.result.tests)
            for suite in job.test_suites:
                suite.enabled = False  # avocado would go on with the next
            if (loop := _running_loop()) is None:
                warnings.filterwarnings("ignore", "coroutine 'Worker.run' was never awaited")  # its loop was to come
                raise KeyboardInterrupt(_TOLD)
            loop.call_soon_threadsafe(_interrupt_at_rest, job, loop)  # it may be waiting for its selector

        try:
            with handled(_ENDINGS, interrupt):
                yield
        except EndedAtOnce:  # said here, as the handler may have interrupted who was saying something
            print("ended at once", file=sys.stderr)
            raise


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _interrupt_at_rest(job: Any, loop: asyncio.AbstractEventLoop) -> None:
    """Raise KeyboardInterrupt out of avocado's loop once no worker has a test in its hands, nor ever takes one again.

    Version 113 was seen not to end, and to forget a verdict, where it was raised elsewhere.
    """
    if not _is_at_rest(job):
        loop.call_later(_SETTLE_SECONDS, _interrupt_at_rest, job, loop)
        return
    for task in asyncio.all_tasks(loop):
        if getattr(task.get_coro(), "__qualname__", "") == "Worker.run":
            task.cancel()
    _tell_tests(job)
    raise KeyboardInterrupt(_TOLD)


def _tell_tests(job: Any) -> None:
    """Tell each test that runs to end: avocado would tell one when the one before has ended."""
    for suite in job.test_suites:
        tasks = getattr(suite.runner, "tsm", None)
        for running in tasks.monitored if tasks is not None else ():
            told = _Told(running.spawner_handle.process)
            running.spawner_handle.process = told
            with suppress(ProcessLookupError):
                told.process.terminate()


@dataclass(frozen=True)
class _Told:
    """The process of a test that was told to end, for avocado, which tells it again: its runner would not survive that.

    It would leave its test to itself.
    """

    process: Any
    """As asyncio has them."""

    @property
    def returncode(self) -> int | None:
        code: int | None = self.process.returncode
        return code

    def terminate(self) -> None:
        """Nothing more."""

    def kill(self) -> None:
        self.process.kill()

    async def wait(self) -> Any:
        return await self.process.wait()


def _is_at_rest(job: Any) -> bool:
    """Whether avocado has each test in a queue that it looks through at its end (avocado.core.task.statemachine)."""
    for suite in job.test_suites:
        tasks = getattr(suite.runner, "tsm", None)
        if tasks is not None:
            queues = (tasks.requested, tasks.triaging, tasks.ready, tasks.monitored, tasks.finished)
            if sum(map(len, queues)) < tasks.task_size:
                return False
    return True


def end_children(seconds: float = 5.0) -> None:
    """End what this process has started, tests and what they started: these let go of their guests at SIGTERM."""
    children = psutil.Process().children(recursive=True)
    for child in children:
        with suppress(psutil.NoSuchProcess):
            child.terminate()
    for child in psutil.wait_procs(children, timeout=seconds)[1]:
        with suppress(psutil.NoSuchProcess):
            child.kill()
