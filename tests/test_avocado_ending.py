"""A job that is told to end comes to its end, whatever avocado's own workers have in their hands just then."""

from __future__ import annotations

import asyncio
import io
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest

from vfio_user.avocado_job import ending
from vfio_user.avocado_job.ending import EndedAtOnce, Ending, _is_at_rest
from vfio_user.avocado_job.job import TEST_GONE
from vfio_user.harness.interruption import handled, reentrant

NAMES = ("a", "b")
SPAWNED = "a test is spawned while another runs"
TOLD = "results are told"
RUNNING = "both tests run"


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    yield loop
    left = asyncio.all_tasks(loop)
    for task in left:
        task.cancel()
    loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
    asyncio.set_event_loop(None)
    loop.close()


class Process:
    """Of a test: how often it was told to end."""

    def __init__(self) -> None:
        self.told = 0
        self.returncode: int | None = None

    def terminate(self) -> None:
        self.told += 1


class Spawner:
    """Begins tests that run for ever."""

    def __init__(self, moment: str) -> None:
        self.moment = moment
        self.terminated: list[str] = []
        self.begun: list[Process] = []

    async def check_task_requirements(self, _: object) -> bool:
        return True

    async def spawn_task(self, test: Any) -> bool:
        if self.moment == SPAWNED and test.task.identifier == "b":
            signal.raise_signal(signal.SIGTERM)
            await asyncio.sleep(0.05)
        self.begun.append(Process())
        test.spawner_handle = SimpleNamespace(process=self.begun[-1])
        return True

    def is_task_alive(self, _: object) -> bool:
        return True

    async def wait_task(self, _: object) -> None:
        await asyncio.Event().wait()

    async def terminate_task(self, test: Any) -> bool:
        test.spawner_handle.process.terminate()
        assert [process.told for process in self.begun] == [1] * len(self.begun), (
            "all are told before one is waited for"
        )
        self.terminated.append(test.task.identifier)
        return True


def of_avocado(name: str) -> Any:
    task = SimpleNamespace(identifier=name, category="test", job_id="job")
    return SimpleNamespace(task=task, status=None, dependencies=[], execution_timeout=None, result=None)


@pytest.mark.parametrize("moment", [SPAWNED, TOLD, RUNNING])
def test_a_job_that_is_told_to_end_ends_each_test_and_tells_of_it(loop: asyncio.AbstractEventLoop, moment: str) -> None:
    """All at once, and each but once: a runner of avocado's that is told twice leaves its test to itself."""
    from avocado.core.status.repo import StatusRepo
    from avocado.core.task.statemachine import TaskStateMachine, Worker

    tests = TaskStateMachine(list(map(of_avocado, NAMES)), StatusRepo("job"))
    suite = SimpleNamespace(runner=SimpleNamespace(tsm=tests), enabled=True)
    job: Any = SimpleNamespace(result=SimpleNamespace(tests=[]), test_suites=[suite])
    ending, spawner = Ending(), Spawner(moment)

    async def tell() -> None:
        """As avocado tells of results."""
        while True:
            if moment == TOLD and len(tests.monitored) == 2 and not ending.came:
                signal.raise_signal(signal.SIGTERM)
            await asyncio.sleep(0)

    def both_run() -> None:
        if len(tests.monitored) == 2:
            signal.raise_signal(signal.SIGTERM)
        else:
            loop.call_soon(both_run)

    if moment == RUNNING:
        loop.call_soon(both_run)

    async def work() -> None:
        await asyncio.shield(asyncio.gather(*(Worker(tests, spawner, max_running=2).run() for _ in NAMES)))

    telling = loop.create_task(tell())
    with ending.noticed(job):
        with pytest.raises(KeyboardInterrupt):
            loop.run_until_complete(work())
        loop.run_until_complete(Worker(tests, spawner).terminate_tasks_interrupted())
    assert not suite.enabled
    assert not telling.done()
    assert sorted([*spawner.terminated, *(test.task.identifier for test in tests.finished)]) == [*NAMES]


def test_a_terminals_interrupt_does_not_come_to_what_tests_are_forked_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would end that as it loads, and avocado for want of it."""
    from vfio_user.avocado_job.forks import _Template

    begun: list[subprocess.Popen[bytes]] = []
    begin = subprocess.Popen

    def kept(*arguments: Any, **named: Any) -> subprocess.Popen[bytes]:
        begun.append(begin(*arguments, **named))
        return begun[0]

    monkeypatch.setattr(subprocess, "Popen", kept)
    with _Template._started():
        assert os.getpgid(begun[0].pid) != os.getpgrp()
    begun[0].wait(60)


def test_a_test_that_ends_without_a_word_is_told_of_and_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind all that it had said."""
    from vfio_user.avocado_job.forks import Runner

    queue: multiprocessing.SimpleQueue[dict[str, str]] = multiprocessing.SimpleQueue()
    queue.put({"type": "log"})
    sentinel, held = os.pipe()
    os.close(held)
    for still_known in ([SimpleNamespace(sentinel=sentinel)], []):
        monkeypatch.setattr(multiprocessing, "active_children", lambda known=still_known: known)
        queue.put({"type": "log"})
        *said, last = Runner._monitor(queue)
        assert {message["type"] for message in said} == {"log"}
        assert (last["status"], last["result"]) == ("finished", "interrupted")
        assert TEST_GONE in last["fail_reason"]
    os.close(sentinel)
    queue.close()


def test_a_test_that_is_told_to_end_as_it_is_forked_hears_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is raised in a fork's own calls is told nobody."""
    from vfio_user.avocado_job.forks import Runner

    class Forked:
        heard = 0

        def __init__(self, **_: object) -> None:
            pass

        def start(self) -> None:
            with suppress(Exception):
                signal.raise_signal(signal.SIGTERM)

        def terminate(self) -> None:
            Forked.heard += 1

    monkeypatch.setattr(multiprocessing, "Process", Forked)
    monkeypatch.setattr(multiprocessing, "active_children", list)
    before = signal.getsignal(signal.SIGTERM)
    try:
        *_, last = Runner().run(SimpleNamespace())
    finally:
        signal.signal(signal.SIGTERM, before)
    assert Forked.heard == 1
    assert last["status"] == "finished"


def test_what_is_begun_and_in_no_queue_that_is_looked_through_is_waited_for() -> None:
    queues = ("requested", "triaging", "ready", "started", "monitored", "finished")
    for queue in queues:
        tests = SimpleNamespace(task_size=1, **{name: ["a"] if name == queue else [] for name in queues})
        job = SimpleNamespace(test_suites=[SimpleNamespace(runner=SimpleNamespace(tsm=tests))])
        assert _is_at_rest(job) is (queue != "started"), queue


class Interrupting(io.RawIOBase):
    """A terminal: while it takes a line, signals come."""

    def __init__(self, *signals: signal.Signals) -> None:
        self._signals = list(signals)
        self.lines: list[str] = []

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.lines.append(bytes(data).decode())
        while self._signals:
            signal.raise_signal(self._signals.pop())
        return len(data)


def test_a_job_may_be_told_to_end_at_once_while_a_line_is_being_written(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Interrupting(signal.SIGTERM)
    monkeypatch.setattr("sys.stderr", io.TextIOWrapper(io.BufferedWriter(terminal), line_buffering=True))
    monkeypatch.setattr(ending, "end_children", lambda _seconds: None)
    job: Any = SimpleNamespace(result=SimpleNamespace(tests=[]), test_suites=[])
    with Ending().noticed(job):
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        with pytest.raises(EndedAtOnce):
            print("(1/4) PASS", file=sys.stderr)


def test_a_line_that_a_handler_says_while_another_is_being_written_is_said_all_the_same(
    capfd: pytest.CaptureFixture[str],
) -> None:
    terminal = Interrupting(signal.SIGUSR1)
    stream = io.TextIOWrapper(io.BufferedWriter(terminal), line_buffering=True)
    say = reentrant(partial(print, file=stream))
    with handled([signal.SIGUSR1], lambda *_: say("second")):
        say("first")
    assert [*terminal.lines, capfd.readouterr().err] == ["first\n", "second\n"]
