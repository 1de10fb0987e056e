"""The program between a client and a server: listens, connects, and runs one session after the other.

A protocol's interposer makes the sessions, and says what happens in them; see `BaseInterposer`.
"""

from __future__ import annotations

import sys
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Protocol, Self, TypeVar

from userdev.errors import UserError
from userdev.interposer.control.answers import ByDirection, TraceStatus
from userdev.interposer.errors import PeerLost
from userdev.interposer.faults.use import RuleShown, untried
from userdev.interposer.session import BaseSession
from userdev.interposer.upstream import LINGER_SECONDS, Upstream
from userdev.printable import printable
from userdev.relay.direction import Direction
from userdev.relay.loop import Loop, Task
from userdev.trace import TraceWriter
from userdev.transport import Listener, Stream

if TYPE_CHECKING:  # with it comes pydantic, which takes longer to load than all of the rest
    from userdev.interposer.control.command import ControlCommand
    from userdev.interposer.faults.scenario import AnyScenario

START_SECONDS = 10.0
"""Seconds a server has to come up."""


@dataclass(kw_only=True)
class BaseSetup:
    """The options that every interposer has; the command line has one for each."""

    listen: str
    connect: str | None = None
    server_command: str | None = None
    server_pid: int | None = None
    """Of the server at `connect`, for signals: one that has inherited its socket cannot be told from who listened."""
    trace: str | None = None
    control: str | None = None
    faults: str | None = None
    """File with a scenario."""

    @property
    def target(self) -> str:
        """The server, for a sentence."""
        return self.connect if self.server_command is None else self.server_command  # type: ignore[return-value]


class Removable(Protocol):
    """A scenario at work in a session."""

    def remove(self) -> None:
        """Stop interfering; what waits is sent now."""


S = TypeVar("S", bound=BaseSession[Any, Any])


class BaseInterposer(ABC, Generic[S]):
    """Listens as soon as it exists. `run` returns when it has been stopped; `close` leaves nothing behind."""

    program: str
    """The command's name, for what it says."""

    def __init__(self, setup: BaseSetup, loop: Loop | None = None) -> None:
        """Start to listen, and start the server where that is up to us.

        Raises:
            UserError: an address cannot be listened on, the trace not be written, or the server not be started.
        """
        self._setup = setup
        self.loop = loop or Loop()
        self.session: S | None = None
        self.sessions = 0
        self.trace: TraceWriter | None = None
        self.scenario: AnyScenario | None = None
        """What happens to the sessions to come."""
        self.faults: Removable | None = None
        """What happens to the session under way."""
        self.on_session: list[Callable[[S], None]] = []
        """Called with each session before its first message."""
        self.loop.on_error = self._end_session
        self._closers: list[Callable[[], None]] = [self.loop.close]
        self._closing = False
        self._beginning: Task[None] | None = None
        self._watching: Task[None] | None = None
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    # what a protocol says

    @abstractmethod
    def new_session(self, client: Stream, server: Stream) -> S:
        """The session of these two, which has not begun; whatever takes part in it does so already."""

    @abstractmethod
    def new_trace(self, path: str, about: dict[str, Any]) -> TraceWriter:
        """The trace of all sessions."""

    @abstractmethod
    def parse_scenario(self, text: str, source: str) -> AnyScenario:
        """The scenario in a YAML text; `source` is its name in errors.

        Raises:
            UserError: it is wrong.
        """

    @abstractmethod
    def begin_faults(self, session: S, scenario: AnyScenario) -> Removable:
        """Let a scenario of this protocol's happen to a session."""

    @abstractmethod
    def commands(self) -> Mapping[str, type[ControlCommand[Any]]]:
        """The commands of the control socket, by name."""

    @abstractmethod
    def status(self) -> Mapping[str, Any]:
        """Sessions, server, trace and counters, for the control socket."""

    def session_over(self) -> None:
        """Let go of what was there for a session that has ended."""

    def _open(self) -> None:
        setup = self._setup
        self.upstream = Upstream(self.loop, setup.connect, setup.server_command, setup.server_pid)
        self._closers.append(self.upstream.close)
        self._listener = Listener(setup.listen)
        self._closers.append(self._listener.close)
        self._only_client = self._listener.is_connected
        if setup.faults is not None:
            from userdev.documents import read_text

            self.scenario = self.parse_scenario(read_text(setup.faults, "scenario"), setup.faults)
        if setup.trace is not None:
            self.trace = self.new_trace(setup.trace, self._about())
            self._closers.append(self.trace.close)
            self.loop.at_end_of_turn(self.trace.flush)
        if setup.control is not None:
            from userdev.interposer.control.server import ControlServer

            self._closers.append(ControlServer(self, self.commands, setup.control).close)
        self.loop.finish(self.upstream.start(START_SECONDS))
        self._watch_server(START_SECONDS)

    def run(self) -> None:
        """Serve clients until the loop is stopped; then say what did not happen to them."""
        self.begin()
        self.loop.run()
        self.tell_untried()

    def begin(self) -> None:
        """Take clients as they come; for those who run the loop themselves."""
        if self._only_client:
            self._take(Stream(self._listener.socket))
        else:
            self._listen()

    def close(self) -> None:
        """End the session under way, the server if it is ours, listening and the trace; a second call does nothing."""
        self._closing = True
        for task in filter(None, (self._beginning, self._watching)):
            task.cancel()
        if self.session is not None:
            self.session.close()
        while self._closers:
            self._closers.pop()()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def current(self) -> S:
        """The session under way.

        Raises:
            PeerLost: there is none.
        """
        if self.session is None:
            raise PeerLost("no client is connected")
        return self.session

    def signal_server(self, number: int) -> int:
        """Send the server a signal; returns its process id.

        Raises:
            UserError: it is not known which process it is, or that has ended.
        """
        pid = self.upstream.signal(number)
        self.note("signal", signal=int(number), pid=pid)
        return pid

    def set_faults(self, scenario: AnyScenario | None) -> None:
        """Let this happen from now on, to the session under way and to those to come; None: nothing any more.

        A scenario counts, and draws, from its beginning in each session.
        """
        self.scenario = scenario
        if self.faults is not None:
            self.faults.remove()
            self.faults = None
        if scenario is not None and self.session is not None:
            self.faults = self.begin_faults(self.session, scenario)

    def note(self, event: str, **details: object) -> None:
        """Write an event into the trace, where there is one: whoever asked for it may look at once."""
        if self.trace is not None:
            self.trace.note(event, **details)
            self.trace.flush()

    def trace_status(self) -> TraceStatus | None:
        """The trace that is being written, for `status`."""
        trace = self.trace
        if trace is None:
            return None
        return {"file": str(trace.path), "records": trace.records, "bytes": trace.size, "stopped": trace.stopped}

    def rules_status(self) -> list[RuleShown]:
        """How often the rules of the scenario that happens have acted, for `status`."""
        return self.scenario.shown() if self.scenario is not None else []

    def tell_untried(self) -> None:
        """Warn of rules that have never acted, once all sessions are over: a mistake in one looks like survival."""
        for why in untried(self.rules_status() if self.sessions else []):
            self.warn(f"the rule {why}")

    def warn(self, text: str) -> None:
        """Tell whoever runs the interposer something."""
        print(f"{self.program} interpose: {printable(text)}", file=sys.stderr, flush=True)

    def _listen(self) -> None:
        self.loop.watch(self._listener.socket.fileno(), lambda _: self._accept())

    def _accept(self) -> None:
        """Take the next client; the one after it waits in the backlog until this one is gone."""
        client = self._listener.take()
        if client is not None:
            self.loop.forget(self._listener.socket.fileno())
            self._take(client)

    def _take(self, client: Stream) -> None:
        self._beginning = self.loop.spawn(self._begin(client))

    async def _begin(self, client: Stream) -> None:
        try:
            server = await self.upstream.connect(START_SECONDS)
        except (UserError, OSError) as error:
            self.warn(str(error))
            self.note("no-server", why=str(error))
            client.close()
            self.session_ended()
            return
        self.sessions += 1
        self.session = session = self.new_session(client, server)
        if self.scenario is not None:
            self.set_faults(self.scenario)
        for prepare in self.on_session:
            prepare(session)
        session.start()

    def _end_session(self, error: Exception) -> bool:
        """What nobody foresaw costs the session under way; those to come, and controllers, are served on."""
        session = self.session
        if session is None or session.closed or self._closing:
            return False
        told = str(error) if isinstance(error, OSError) else f"internal: {type(error).__name__}: {error}"
        self.warn(f"the session ends: {told}")
        if not isinstance(error, OSError):
            traceback.print_exception(error)
        self.note("session-failed", why=told)
        session.close()
        return True

    def session_ended(self) -> None:
        """The session under way has ended: take the next client, or stop where there will be none."""
        self.session = self.faults = None
        self.session_over()
        if self._only_client:
            self.loop.stop()
        elif not self._closing:
            self._watch_server(LINGER_SECONDS)
            self._listen()

    def _watch_server(self, seconds: float) -> None:
        if self._watching is not None:
            self._watching.cancel()
        self._watching = self.loop.spawn(self._tell_of_server(seconds))

    async def _tell_of_server(self, timeout: float) -> None:
        """Say that a server of ours ends badly within so many seconds: the client hears of a closed connection only.

        What becomes of one in a session is up to that.
        """
        process = self.upstream.process
        if process is None or not await process.ended(timeout) or self.session is not None or self._closing:
            return
        if why := await process.failure(0.0):
            self.warn(why)
            self.note("server-failed", why=why)

    def _about(self) -> dict[str, Any]:
        from importlib.metadata import version  # slow to import, and for traces alone

        return {
            "program": f"{self.program} {version('vfio-user')}",
            "listen": self._setup.listen,
            "connect": self._setup.target,
        }


def by_direction(counts: list[int]) -> ByDirection:
    """Counts, as answers of the control socket have them."""
    return {"to-server": counts[Direction.TO_SERVER], "to-client": counts[Direction.TO_CLIENT]}
