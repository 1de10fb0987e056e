"""Avocado's tests, each on one of the slots of a plan; those of a slot that dies are run once more, elsewhere.

Avocado's own remote spawner (113) does not do: it takes whatever host key it is shown, has one folder for all tests of
a host and leaves in it what they left, wants a connection from there to the job's status server, and a host that goes
is a test that was skipped. Here the runner is started over our SSH (`harness/hosts/relay.py`), which ends it with the
connection, and its messages come back the same way.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import signal
import subprocess
import tarfile
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from avocado.core.nrunner.task import TaskStatusService
from avocado.core.status.utils import json_loads
from avocado.core.utils.messages import FinishedMessage, StartedMessage
from avocado.plugins.spawners.process import ProcessSpawner, ProcessSpawnerHandle

from vfio_user.avocado_job.job import RUNNER_GONE, SLOT_GONE
from vfio_user.harness.hosts.relayed import CONNECTION_ENDED
from vfio_user.nightly.over_there import FOLDER_MESSAGE
from vfio_user.nightly.place import Ran

NAME = "vfio-user-slots"
"""Of the spawner, as avocado's setting `run.spawner` takes it."""

SETTING = "vfio_user.slots"
"""The key of the settings that has the slots: a JSON list of `SlotCommand`s."""

MOST_ATTEMPTS = 2

_RECORD = "slot.json"


@dataclass(frozen=True)
class SlotCommand:
    """How a test is run on a slot: `command` goes before the runner's arguments, `folder` is for files of tests."""

    name: str
    parallel: int
    command: Sequence[str]
    folder: str


def setting(slots: Sequence[SlotCommand]) -> str:
    """The value of `SETTING`."""
    return json.dumps([asdict(slot) for slot in slots])


def ran(logdir: Path) -> Ran:
    """Where the test of a folder ran; nowhere, if nothing is there."""
    try:
        return Ran(**json.loads((logdir / _RECORD).read_text()))
    except (OSError, ValueError, TypeError):
        return Ran("", 0)


class Pool:
    """Slots with room, for any thread. One that has died is not used again."""

    def __init__(self, slots: Sequence[SlotCommand]) -> None:
        self._free = {slot.name: slot.parallel for slot in slots}
        self._slots = {slot.name: slot for slot in slots}
        self._changed = threading.Condition()

    def take(self) -> SlotCommand | None:
        """One with the most room, when there is one; None when all have died."""
        with self._changed:
            while self._slots:
                name = max(self._slots, key=lambda name: self._free[name])
                if self._free[name] > 0:
                    self._free[name] -= 1
                    return self._slots[name]
                self._changed.wait()
            return None

    def give_back(self, slot: SlotCommand, *, died: bool) -> None:
        """End the use of one."""
        with self._changed:
            self._free[slot.name] += 1
            if died:
                self._slots.pop(slot.name, None)
            self._changed.notify_all()


class SlotSpawner(ProcessSpawner):  # type: ignore[misc]  # avocado has no types
    """Has tests run on the slots of a plan."""

    description = "Each test on one of the slots of a plan"

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        slots = json.loads(self.config.get(SETTING) or "[]")
        self._pool = Pool([SlotCommand(**slot) for slot in slots])

    async def spawn_task(self, runtime_task: Any) -> bool:
        """Begin a test when a slot has room."""
        self.create_task_output_dir(runtime_task)
        slot = await asyncio.to_thread(self._pool.take)
        runtime_task.spawner_handle = ProcessSpawnerHandle(_Attempts(runtime_task.task, self._pool, slot))
        return True

    @staticmethod
    async def check_task_requirements(runtime_task: Any) -> bool:
        """What the probe of the slots has found."""
        return True


class _Attempts:
    """A test from its beginning to its end, as avocado has asyncio's processes."""

    def __init__(self, task: Any, pool: Pool, slot: SlotCommand | None) -> None:
        self.returncode: int | None = None
        self._task = task
        self._pool = pool
        self._logdir = Path(task.runnable.output_dir)
        self._posts = [TaskStatusService(service.uri) for service in task.status_services]
        self._relay: subprocess.Popen[bytes] | None = None
        self._ended = False
        """By avocado: not to be begun again."""
        self._began = self._first = time.monotonic()
        self._finished = asyncio.Event()
        loop = asyncio.get_running_loop()
        threading.Thread(target=self._run, args=(slot, loop), daemon=True).start()

    async def wait(self) -> int:
        """Wait until it has ended."""
        await self._finished.wait()
        return 0

    def terminate(self) -> None:
        """Have the runner there told to end."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """Have it killed there."""
        self._end(signal.SIGUSR1)

    def _end(self, number: signal.Signals) -> None:
        self._ended = True
        if self.returncode is not None:
            raise ProcessLookupError
        if self._relay is not None:
            self._relay.send_signal(number)

    def _run(self, slot: SlotCommand | None, loop: asyncio.AbstractEventLoop) -> None:
        try:
            self._attempt_all(slot)
        finally:
            for post in self._posts:
                with contextlib.suppress(OSError):
                    post.close()
            with contextlib.suppress(RuntimeError):  # the job has ended
                loop.call_soon_threadsafe(self._end_of_all)

    def _end_of_all(self) -> None:
        self.returncode = 0
        self._finished.set()

    def _attempt_all(self, slot: SlotCommand | None) -> None:
        attempts = 0
        why = SLOT_GONE
        while slot is not None:
            began = finished = died = False
            why = RUNNER_GONE
            try:
                began, finished, died = self._attempt(slot, attempts)
            except Exception as error:  # no space, say, for what it left: the test has to end all the same
                why = f"{RUNNER_GONE}: {error}"
            finally:
                self._pool.give_back(slot, died=died)
            attempts += began
            if finished or self._ended:
                return
            if died:
                why = f"{SLOT_GONE}: {slot.name}"
            slot = self._another() if died and attempts < MOST_ATTEMPTS else None
        if attempts == 0:
            self._post(StartedMessage.get())
        self._post(FinishedMessage.get("interrupted", f"Test interrupted: {why}"))

    def _another(self) -> SlotCommand | None:
        """Another slot, once one has room; None when all have died, or the test was ended meanwhile."""
        slot = self._pool.take()
        if slot is None or not self._ended:
            return slot
        self._pool.give_back(slot, died=False)
        return None

    def _attempt(self, slot: SlotCommand, before: int) -> tuple[bool, bool, bool]:
        """Run it on a slot: whether it began there, whether it finished, and whether the slot has died."""
        self._began = time.monotonic()
        folder = f"{slot.folder}/{self._task.job_id}-{self._logdir.name}"
        arguments = _without_addresses(self._task.get_command_args())
        argv = [*slot.command, "run", folder, *arguments]
        relay = self._relay = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        assert relay.stdout is not None
        if self._ended:  # before there was a relay to tell
            relay.terminate()
        try:
            with relay.stdout as lines:
                began, finished = self._pass_on(lines, Ran(slot.name, before + 1))
        except BaseException:
            relay.kill()
            raise
        finally:
            status = relay.wait()
        return began, finished, status == CONNECTION_ENDED and not finished and not self._ended

    def _pass_on(self, lines: Iterable[bytes], attempt: Ran) -> tuple[bool, bool]:
        """Say to the job what the runner says; whether it began, and whether it finished."""
        began = finished = False
        for line in lines:
            if not line.startswith(b"{"):
                continue  # the relay's own
            message = json_loads(line.decode())
            if message.get("type") == FOLDER_MESSAGE:
                _unpack(message["archive"], self._logdir)
                continue
            if message["status"] == "started":
                began = True
                (self._logdir / _RECORD).write_text(json.dumps(asdict(attempt)))
                if attempt.attempts > 1:
                    continue
            finished = message["status"] == "finished"
            self._post(message)
        return began, finished

    def _post(self, message: Mapping[str, Any]) -> None:
        """Say it to the job, with this machine's folder, and a clock on which only the last attempt takes time."""
        told = {**message, "id": str(self._task.identifier), "job_id": self._task.job_id}
        if message["status"] == "started":
            told["output_dir"] = str(self._logdir)
            self._first = self._began
        told["time"] = self._first + time.monotonic() - self._began
        for post in self._posts:
            post.post(told)


def _without_addresses(arguments: Sequence[str]) -> list[str]:
    """The arguments of a task, but for where its job listens."""
    kept: list[str] = []
    given = iter(arguments)
    for argument in given:
        if argument == "-s":
            next(given)
        else:
            kept.append(argument)
    return kept


def _unpack(archive: bytes, folder: Path) -> None:
    with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as members:
        members.extractall(folder, filter="data")
