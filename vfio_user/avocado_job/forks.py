"""Avocado's tests, each a fork of one process that has avocado and the harness loaded.

Avocado's own spawner starts Python for each test. With all imports that takes 0.8 s of processor time, a quarter of
what a short test takes, where a fork takes 0.05 to its end. That process only imports, so a test is as alone in its
fork as it is in a process of its own.

    python -m vfio_user.avocado_job.forks FD

is that process: it takes requests from the stream socket FD, a line of JSON each, and answers with a pidfd of a fork.
It ends when nobody can ask any more, and has those of its forks that are left end, as the job that would have is gone.
Where it is ended itself it leaves them: they report to the job on their own.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from multiprocessing.connection import wait
from typing import Any, BinaryIO, NoReturn

from avocado.core.exceptions import TestInterrupt
from avocado.core.nrunner.runnable import RUNNERS_REGISTRY_STANDALONE_EXECUTABLE, STANDALONE_EXECUTABLE_CONFIG_USED
from avocado.core.nrunner.runner import RUNNER_RUN_STATUS_INTERVAL
from avocado.core.utils.messages import FinishedMessage, RunningMessage
from avocado.plugins.runners.avocado_instrumented import AvocadoInstrumentedTestRunner, RunnerApp
from avocado.plugins.spawners.process import ProcessSpawner, ProcessSpawnerHandle

from userdev.leaving import leave
from userdev.process import die_with
from vfio_user.avocado_job.job import TEST_GONE

NAME = "vfio-user-fork"
"""Of the spawner, as avocado's setting `run.spawner` takes it."""

_MODULE = "vfio_user.avocado_job.forks"


# -- in the job -------------------------------------------------------------------------------------------------------


class ForkSpawner(ProcessSpawner):  # type: ignore[misc]  # avocado has no types
    """Has tests that are classes of avocado's run in forks; all others in processes of their own."""

    description = "Each test in a fork of a process that has the harness loaded"

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._template = _Template()

    def is_operational(self) -> bool:
        """Whether tests can be started; avocado, which asks before each job, is told what the runner of forks can do.

        It would start a Python with avocado in it to ask that of the runner's program, 0.6 s for each job.
        """
        runner = AvocadoInstrumentedTestRunner
        program = f"avocado-runner-{runner.name}"
        RUNNERS_REGISTRY_STANDALONE_EXECUTABLE.setdefault(runner.name, [program])
        STANDALONE_EXECUTABLE_CONFIG_USED.setdefault(program, runner.CONFIGURATION_USED)
        return bool(super().is_operational())

    async def spawn_task(self, runtime_task: Any) -> bool:
        """Begin a test."""
        task = runtime_task.task
        if task.runnable.kind != AvocadoInstrumentedTestRunner.name:
            return bool(await super().spawn_task(runtime_task))
        self.create_task_output_dir(runtime_task)
        pidfd = await asyncio.to_thread(self._template.fork, ["task-run", *task.get_command_args()])
        runtime_task.spawner_handle = ProcessSpawnerHandle(_Fork(pidfd))
        return True


class _Template:
    """The process that forks: started when it is first asked, and again where it has gone."""

    def __init__(self) -> None:
        self._connection: socket.socket | None = None
        self._asking = threading.Lock()

    def fork(self, arguments: list[str]) -> int:
        """Have a runner of avocado's do what these arguments say, in this environment; a pidfd of it.

        Raises:
            OSError: there is no process that forks, nor can one be started.
        """
        request = json.dumps({"arguments": arguments, "environment": dict(os.environ)}).encode() + b"\n"
        with self._asking:
            if self._connection is not None:
                with contextlib.suppress(OSError):
                    return self._asked(self._connection, request)
                self._connection.close()
            self._connection = self._started()
            return self._asked(self._connection, request)

    @staticmethod
    def _asked(connection: socket.socket, request: bytes) -> int:
        connection.sendall(request)
        _, descriptors, _, _ = socket.recv_fds(connection, 1, 1)
        if not descriptors:
            raise ConnectionResetError("the process that forks has gone")
        return descriptors[0]

    @staticmethod
    def _started() -> socket.socket:
        ours, theirs = socket.socketpair()
        with theirs:
            quiet = subprocess.DEVNULL  # as avocado has it for its runners
            argv = [sys.executable, "-P", "-m", _MODULE, str(theirs.fileno())]
            # A terminal's Ctrl-C is for the job, which ends its tests one by one: whose evidence is kept.
            subprocess.Popen(argv, stdin=quiet, stdout=quiet, stderr=quiet, pass_fds=[theirs.fileno()], process_group=0)
        return ours


class _Fork:
    """What avocado needs of asyncio's processes, of one that is not our child."""

    def __init__(self, pidfd: int) -> None:
        self._pidfd = pidfd
        self._ended = asyncio.Event()
        self.returncode: int | None = None
        """None while it runs; nobody asks how it ended, which it has reported itself."""
        asyncio.get_running_loop().add_reader(pidfd, self._end)

    def _end(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        os.close(self._pidfd)
        self.returncode = 0
        self._ended.set()

    async def wait(self) -> int:
        """Wait until it has ended."""
        await self._ended.wait()
        return 0

    def terminate(self) -> None:
        """Send SIGTERM.

        Raises:
            ProcessLookupError: it has ended.
        """
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL.

        Raises:
            ProcessLookupError: it has ended.
        """
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        if self.returncode is not None:
            raise ProcessLookupError
        signal.pidfd_send_signal(self._pidfd, number)


# -- in the process that forks ----------------------------------------------------------------------------------------


class Runner(AvocadoInstrumentedTestRunner):  # type: ignore[misc]
    """Passes on what a test says when it says it, where avocado's looks and reports a hundred times a second.

    It says so where the test's process ended without a word, for which avocado's would wait for ever: a crash, or a
    SIGTERM that came before the test could hear it.

    A test ends with it: one that was killed, or ended between the lines, left its test with a guest to itself.
    """

    def run(self, runnable: Any) -> Iterator[Mapping[str, Any]]:
        """Run a test; a SIGTERM waits until the test's process is there.

        It is an exception, and what Python calls as it forks lets none through: the test would go on to its end.
        """
        messages = super().run(runnable)
        yield next(messages)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        yield from messages

    @staticmethod
    def signal_handler(_number: int, _frame: object) -> NoReturn:
        """End the test, and not for a time that it took, as avocado's says of every SIGTERM."""
        raise TestInterrupt("Test interrupted: told to end")

    @staticmethod
    def _run_avocado(runnable: Any, queue: Any) -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        runner = multiprocessing.parent_process()
        assert runner is not None
        die_with(runner.ident or 0)
        AvocadoInstrumentedTestRunner._run_avocado(runnable, queue)

    @staticmethod
    def _monitor(queue: Any) -> Iterator[Mapping[str, Any]]:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        while True:
            tests = multiprocessing.active_children()
            ready = wait([queue._reader, *(test.sentinel for test in tests)], RUNNER_RUN_STATUS_INTERVAL)
            if queue.empty():
                if tests and not ready:
                    yield RunningMessage.get()
                    continue
                yield FinishedMessage.get("interrupted", f"Test interrupted: {TEST_GONE}")
                return
            message = queue.get()
            if message.get("type") != "early_state":
                yield message
            if message.get("status") == "finished":
                return


def have_our_runner(runnable: Any) -> None:
    """Have a test of avocado's run by `Runner`, in the process that is its runner."""
    AvocadoInstrumentedTestRunner.signal_handler = Runner.signal_handler  # which it calls by this name
    runnable.pick_runner_class = lambda: Runner


class _App(RunnerApp):  # type: ignore[misc]
    """Avocado's program for one test, with our runner."""

    def command_task_run(self, args: dict[str, Any]) -> None:
        """Runs a task from arguments"""
        from avocado.core.nrunner.runnable import Runnable
        from avocado.core.nrunner.task import Task

        runnable = Runnable.from_args(args)
        have_our_runner(runnable)
        task = Task(runnable, args["identifier"], args["status_uri"], category=args["category"], job_id=args["job_id"])
        for _ in task.run():
            pass


def main(connection: socket.socket) -> None:
    """Fork for each request; in a fork it is done, and this returns there."""
    import vfio_user.avocado_test  # noqa: F401  # with all that tests import of ours

    gc.collect()
    gc.freeze()  # a fork that looked at all that for garbage would copy it
    with connection, connection.makefile("rb") as requests:
        request = _request_of_fork(connection, requests)
    if request:
        run(**json.loads(request))


def _request_of_fork(connection: socket.socket, requests: BinaryIO) -> bytes:
    """Return in each fork what it is to do; nothing in this process, when nobody asks any more."""
    children: set[int] = set()
    while request := requests.readline():
        pid = os.fork()
        if pid == 0:
            return request
        pidfd = os.pidfd_open(pid)
        socket.send_fds(connection, [b"."], [pidfd])
        os.close(pidfd)
        children = {child for child in {*children, pid} if os.waitpid(child, os.WNOHANG)[0] == 0}
    for child in children:
        os.kill(child, signal.SIGTERM)  # one that has ended is a zombie still
    return b""


def run(arguments: list[str], environment: dict[str, str]) -> NoReturn:
    """Be avocado's runner, in a fork, to its end."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the shell of a job in the background has it ignored
    multiprocessing.set_start_method("fork")  # another one would import all again
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["avocado-runner-avocado-instrumented", *arguments]
    _App().run()
    leave()


if __name__ == "__main__":
    main(socket.socket(fileno=int(sys.argv[1])))
