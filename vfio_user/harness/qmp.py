"""QMP for synchronous code: qemu.qmp runs in a thread of its own, and no asyncio shows.

Every message goes to a log file. Events are kept from the first moment of the connection until somebody asks for
them, so that none is lost between a command and the wait for what it causes.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import json
import logging
import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar
from weakref import WeakSet

from packaging.version import Version
from qemu.qmp import EventListener, ExecuteError, Message, QMPClient, QMPError, Runstate

from userdev.errors import UserError
from userdev.process import Deadline
from vfio_user.harness.log import LogFile

T = TypeVar("T")

ARRIVED = "arrived"
"""In each event beside what QEMU says: when it came, by time.monotonic(). QEMU's own `timestamp` is of a clock that may
be set, and another on another host.
"""

MOST = 1024
"""Events kept for whoever will wait for them."""

# The library logs every lost connection as an error; ours are raised, and logged to the machine's own file.
logging.getLogger("qemu.qmp").addHandler(logging.NullHandler())
logging.getLogger("qemu.qmp").propagate = False


class QmpError(UserError):
    """QEMU answered a command with an error. `kind` is QMP's error class, `description` its text."""

    def __init__(self, command: str, kind: str, description: str) -> None:
        super().__init__(f"QEMU refused {command}: {description}")
        self.command = command
        self.kind = kind
        self.description = description


class QmpLost(UserError):
    """The QMP connection ended: QEMU is gone."""


class QmpTimeout(UserError):
    """QEMU did not answer, or an event did not come, in time."""


def matches(pattern: object, value: object) -> bool:
    """Whether `value` has everything that `pattern` asks for, recursively.

    A mapping matches one with at least its keys; a list matches one of equal length, element by element; anything
    else has to be equal.
    """
    match pattern, value:
        case Mapping(), Mapping():
            return all(key in value and matches(wanted, value[key]) for key, wanted in pattern.items())
        case list(), list():
            return len(pattern) == len(value) and all(map(matches, pattern, value))
        case _:
            return pattern == value


class EventLog:
    """Events in the order of their arrival; a wait takes the first that matches and leaves the others.

    Of those that nobody takes the last `MOST` are kept: of more, the oldest of the most frequent name is forgotten, so
    that a guest that sets its clock all day costs nobody the one STOP.
    """

    def __init__(self) -> None:
        self._arrived = threading.Condition()
        self._waiting: list[dict[str, Any]] = []
        self._branches: WeakSet[EventLog] = WeakSet()
        self._listeners: list[Callable[[Mapping[str, Any]], None]] = []
        self._closed = ""
        self._wakes = 0

    def listen(self, listener: Callable[[Mapping[str, Any]], None]) -> None:
        """Call `listener` with every event from now on, in the thread that brings it: it must not wait."""
        self._listeners.append(listener)

    def branch(self) -> EventLog:
        """Another log of what comes from now on, for whoever looks on: what is taken here stays there."""
        with self._arrived:
            branch = EventLog()
            branch._closed = self._closed
            self._branches.add(branch)
        return branch

    def put(self, event: dict[str, Any]) -> None:
        """Add an event, wake those that wait, and tell branches and listeners; any thread may call it."""
        with self._arrived:
            if len(self._waiting) >= MOST:
                self._forget_one()
            self._waiting.append(event)
            self._arrived.notify_all()
            for branch in self._branches:
                branch.put(event)
        for listener in self._listeners:
            listener(event)

    def close(self, reason: str) -> None:
        """No more events will come: every waiter, now or later, is told why."""
        with self._arrived:
            self._closed = reason
            self._arrived.notify_all()
            for branch in self._branches:
                branch.close(reason)

    def await_end(self, seconds: float) -> bool:
        """Whether all events have come that ever will, within so many seconds."""
        with self._arrived:
            return self._arrived.wait_for(lambda: bool(self._closed), seconds)

    def take(
        self,
        name: str,
        pattern: Mapping[str, object],
        deadline: Deadline,
        *,
        unless: Callable[[], None] = lambda: None,
    ) -> dict[str, Any]:
        """The first event `name` whose data matches.

        `unless` is asked first, and at every `wake`: it raises what makes waiting vain.

        Raises:
            QmpTimeout: it did not come in time.
            QmpLost: none can come any more.
        """
        while True:
            wakes = self._wakes
            unless()
            with self._arrived:
                while wakes == self._wakes:
                    for event in self._waiting:
                        if event["event"] == name and matches(pattern, event.get("data", {})):
                            self._waiting.remove(event)
                            return event
                    if self._closed:
                        raise QmpLost(f"no {name} event: {self._closed}")
                    if not self._arrived.wait(deadline.remaining):
                        what = f"no {name} event{_clause(pattern)} in {deadline.seconds:g} s"
                        raise QmpTimeout(f"{what}; {self._others()}")

    def wake(self) -> None:
        """Have everybody who waits ask again whether that is vain."""
        with self._arrived:
            self._wakes += 1
            self._arrived.notify_all()

    def forget(self, name: str | None = None) -> None:
        """Drop the events that arrived so far, all or those of one name."""
        with self._arrived:
            self._waiting = [event for event in self._waiting if name is not None and event["event"] != name]

    def _forget_one(self) -> None:
        names = [event["event"] for event in self._waiting]
        ((commonest, _),) = Counter(names).most_common(1)
        del self._waiting[names.index(commonest)]

    def _others(self) -> str:
        names = [event["event"] for event in self._waiting]
        return f"what came instead: {', '.join(names[-8:])}" if names else "no event came"


def _clause(pattern: Mapping[str, object]) -> str:
    return f" with {json.dumps(pattern)}" if pattern else ""


class Qmp:
    """A connection to one QEMU. `command` and `wait_event` block; both have deadlines.

    `address` is a connected socket or the path of a UNIX socket.

    Raises:
        QmpLost: there is no QEMU at it.
    """

    def __init__(self, address: socket.socket | Path, *, log: Path, name: str = "qemu", limit: float = 30.0) -> None:
        self.events = EventLog()
        self._name = name
        self.log = LogFile(log)
        self._log_lock = threading.Lock()
        self._closed = False
        self._client = QMPClient()  # with a name it had a logger of its own, and the process would keep it for ever
        self._client.events.event_filter = lambda _event: False  # ours keeps them; the default would grow for ever
        self._client.register_listener(_Listener(self._on_event))
        try:
            _run(self._connect(address), Deadline(limit))
        except (QMPError, OSError, TimeoutError) as error:
            self.log.close()
            raise QmpLost(f"no QMP greeting from {name}: {error or 'it did not come in time'}") from error
        self._watcher = asyncio.run_coroutine_threadsafe(self._watch(), _loop())

    @property
    def greeting(self) -> Mapping[str, Any]:
        """QEMU's greeting: `version` and `capabilities`."""
        greeting = self._client.greeting
        if greeting is None:
            return {}
        return {"version": greeting.QMP.version, "capabilities": greeting.QMP.capabilities}

    @property
    def version(self) -> Version:
        """QEMU's own."""
        numbers = self.greeting["version"]["qemu"]
        return Version(f"{numbers['major']}.{numbers['minor']}.{numbers['micro']}")

    def command(self, name: str, limit: float | Deadline = 30.0, /, **arguments: object) -> Any:
        """Run a QMP command and return what it returns; underscores in argument names become dashes.

        Raises:
            QmpError: QEMU refuses.
            QmpTimeout: it does not answer in time.
            QmpLost: it is gone.
        """
        return self.execute(name, {key.replace("_", "-"): value for key, value in arguments.items()}, limit)

    def execute(
        self,
        name: str,
        arguments: Mapping[str, object],
        limit: float | Deadline = 30.0,
        *,
        out_of_band: bool = False,
        unless: Callable[[], None] | None = None,
    ) -> Any:
        """`command` for arguments whose names are not Python's.

        `out_of_band`: answered also by a QEMU whose main loop is stuck; few commands can be (docs/interop/qmp-spec).
        `unless` is called now and then while it does not answer, and raises when it never will.
        """
        deadline = Deadline.of(limit)
        self._record("->", {"execute": name, "arguments": dict(arguments)})
        try:
            answer = _run(self._client.execute(name, dict(arguments) or None, oob=out_of_band), deadline, unless)
        except ExecuteError as error:
            self._record("<-", {"error": {"class": error.error_class, "desc": str(error)}})
            raise QmpError(name, error.error_class, str(error)) from None
        except TimeoutError:
            self._record("!!", {"timeout": name, "seconds": deadline.seconds})
            raise QmpTimeout(f"{self._name} did not answer {name} in {deadline.seconds:g} s") from None
        except (QMPError, OSError):
            raise QmpLost(f"{self._name} was gone before it answered {name}") from None
        self._record("<-", {"return": answer})
        return answer

    def human(self, line: str, limit: float | Deadline = 30.0) -> str:
        """Run a command of the human monitor (HMP) and return its text."""
        return str(self.command("human-monitor-command", limit, command_line=line))

    def wait_event(
        self, name: str, deadline: float | Deadline = 30.0, match: Mapping[str, object] | None = None
    ) -> dict[str, Any]:
        """Take the first event `name`, come or to come, whose data matches the subset `match`."""
        return self.events.take(name, match or {}, Deadline.of(deadline))

    def close(self) -> None:
        """End the connection; a second call does nothing."""
        if self._closed:
            return
        self._closed = True
        with contextlib.suppress(TimeoutError):
            _run(self._disconnect(), Deadline(5))
        self._watcher.cancel()
        self.events.close("the QMP connection was closed")
        with self._log_lock:
            self.log.close()

    def _on_event(self, event: Message) -> None:
        arrived, body = time.monotonic(), dict[str, Any](event)
        self._record("<-", body)
        self.events.put({**body, ARRIVED: arrived})

    def _record(self, direction: str, body: Mapping[str, object]) -> None:
        moment = datetime.now().astimezone().isoformat(timespec="microseconds")
        with self._log_lock:
            self.log.write(f"{moment} {direction} {json.dumps(body)}\n".encode())

    async def _connect(self, address: socket.socket | Path) -> None:
        await self._client.connect(address if isinstance(address, socket.socket) else str(address))

    async def _watch(self) -> None:
        """Await the end of the connection, so that the library's tasks are awaited by somebody."""
        while await self._client.runstate_changed() is Runstate.RUNNING:
            pass
        await self._disconnect()
        self.events.close(f"{self._name} is gone")

    async def _disconnect(self) -> None:
        with contextlib.suppress(Exception):  # says again how the connection was lost
            await self._client.disconnect()


class _Listener(EventListener):
    """Hands each event on where qemu.qmp would queue it for a coroutine."""

    def __init__(self, hand_on: Callable[[Message], None]) -> None:
        super().__init__()
        self._hand_on = hand_on

    async def put(self, event: Message) -> None:
        self._hand_on(event)


def _run(work: Coroutine[Any, Any, T], deadline: Deadline, unless: Callable[[], None] | None = None) -> T:
    future = asyncio.run_coroutine_threadsafe(asyncio.wait_for(work, deadline.remaining), _loop())
    while unless is not None:
        ended, _ = concurrent.futures.wait([future], _LOOK_SECONDS)
        if ended:
            break
        try:
            unless()
        except BaseException:
            future.cancel()
            raise
    return future.result()


_LOOK_SECONDS = 0.1  # between two looks at why there may be no answer
_shared: list[asyncio.AbstractEventLoop] = []
_starting = threading.Lock()
os.register_at_fork(after_in_child=_shared.clear)  # a fork has no threads but its own


def _loop() -> asyncio.AbstractEventLoop:
    """The event loop of the process's one QMP thread."""
    with _starting:
        if not _shared:
            loop = asyncio.new_event_loop()
            threading.Thread(target=loop.run_forever, name="qmp", daemon=True).start()
            _shared.append(loop)
        return _shared[0]
