"""The program between a client and a server: listens, connects, and runs one session after the other."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from userdev.errors import UserError
from userdev.printable import printable
from userdev.relay.direction import Direction
from userdev.relay.loop import Loop, Task
from userdev.transport import Listener, Stream
from vfio_user.interposer.capture import CaptureDma, CaptureInterrupts
from vfio_user.interposer.control.answers import ByDirection, InterposerStatus, SessionStatus
from vfio_user.interposer.errors import PeerLost
from vfio_user.interposer.session import ForwardedSession
from vfio_user.interposer.survival import Policy, Survival
from vfio_user.interposer.trace import VfioTraceWriter
from vfio_user.interposer.upstream import Upstream
from vfio_user.wire import CURRENT, Dialect

if TYPE_CHECKING:
    from vfio_user.interposer.faults.scenario import Scenario
    from vfio_user.interposer.faults.stage import Faults

START_SECONDS = 10.0
"""Seconds a server has to come up."""


@dataclass
class Setup:
    """The options of an interposer; the command line has one for each."""

    listen: str
    connect: str | None = None
    server_command: str | None = None
    server_pid: int | None = None
    """Of the server at `connect`, for signals: one that has inherited its socket cannot be told from who listened."""
    dialect: Dialect = CURRENT
    trace: str | None = None
    control: str | None = None
    faults: str | None = None
    """File with a scenario."""
    capture_dma: bool = False
    """Let the server do DMA by message, so that the trace has it."""
    capture_interrupts: bool = False
    """Pass interrupts on, so that the trace has them."""
    survive: Policy | None = None
    """Keep clients connected when the server goes."""

    @property
    def target(self) -> str:
        """The server, for a sentence."""
        return self.connect if self.server_command is None else self.server_command  # type: ignore[return-value]


class Interposer:
    """Listens as soon as it exists. `run` returns when it has been stopped; `close` leaves nothing behind."""

    def __init__(self, setup: Setup, loop: Loop | None = None) -> None:
        """Start to listen, and start the server where that is up to us.

        Raises:
            UserError: an address cannot be listened on, the trace not be written, or the server not be started.
        """
        self.setup = setup
        self.loop = loop or Loop()
        self.session: ForwardedSession | None = None
        self.sessions = 0
        self.trace: VfioTraceWriter | None = None
        self.scenario: Scenario | None = None
        """What happens to the sessions to come."""
        self.faults: Faults | None = None
        """What happens to the session under way."""
        self.survival: Survival | None = None
        """What keeps it alive."""
        self.on_session: list[Callable[[ForwardedSession], None]] = []
        """Called with each session before its first message."""
        self.loop.on_error = self._end_session
        self._closers: list[Callable[[], None]] = [self.loop.close]
        self._closing = False
        self._beginning: Task[None] | None = None
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        setup = self.setup
        self.upstream = Upstream(self.loop, setup.connect, setup.server_command, setup.server_pid)
        self._closers.append(self.upstream.close)
        self._listener = Listener(setup.listen)
        self._closers.append(self._listener.close)
        self._only_client = self._listener.is_connected
        if setup.trace is not None:
            self.trace = VfioTraceWriter(setup.trace, self._about())
            self._closers.append(self.trace.close)
            self.loop.at_end_of_turn(self.trace.flush)
        if setup.faults is not None:
            from vfio_user.interposer.faults.scenario import load_scenario

            self.scenario = load_scenario(setup.faults)
        if setup.control is not None:
            from vfio_user.interposer.control.server import ControlServer

            self._closers.append(ControlServer(self, setup.control).close)
        self.loop.finish(self.upstream.start(START_SECONDS))

    def run(self) -> None:
        """Serve clients until the loop is stopped."""
        self.begin()
        self.loop.run()

    def begin(self) -> None:
        """Take clients as they come; for those who run the loop themselves."""
        if self._only_client:
            self._take(Stream(self._listener.socket))
        else:
            self._listen()

    def close(self) -> None:
        """End the session under way, the server if it is ours, listening and the trace; a second call does nothing."""
        self._closing = True
        if self._beginning is not None:
            self._beginning.cancel()
        if self.session is not None:
            self.session.close()
        while self._closers:
            self._closers.pop()()

    def __enter__(self) -> Interposer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def current(self) -> ForwardedSession:
        """The session under way.

        Raises:
            PeerLost: there is none.
        """
        if self.session is None:
            raise PeerLost("no client is connected")
        return self.session

    def signal_server(self, number: int) -> int:
        """Send the server a signal; returns its process id."""
        pid = self.upstream.signal(number)
        self.note("signal", signal=int(number), pid=pid)
        return pid

    def set_faults(self, scenario: Scenario | None) -> None:
        """Let this happen from now on, to the session under way and to those to come; None: nothing any more.

        A scenario counts, and draws, from its beginning in each session.
        """
        from vfio_user.interposer.faults.stage import Faults

        self.scenario = scenario
        if self.faults is not None:
            self.faults.remove()
            self.faults = None
        if scenario is not None and self.session is not None:
            self.faults = Faults(self.session, scenario, self.signal_server)

    def note(self, event: str, **details: object) -> None:
        """Write an event into the trace, where there is one."""
        if self.trace is not None:
            self.trace.note(event, **details)

    def status(self) -> InterposerStatus:
        """Sessions, server, trace and counters, for the control socket."""
        trace, session = self.trace, self.session
        return {
            "sessions": self.sessions,
            "server_pid": self.upstream.pid,
            "dialect": self.setup.dialect.name,
            "trace": {
                "file": str(trace.path),
                "records": trace.records,
                "bytes": trace.size,
                "stopped": trace.stopped,
            }
            if trace is not None
            else None,
            "survival": self.survival.status() if self.survival is not None else None,
            "session": _session_status(session) if session is not None else None,
        }

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
            warn(str(error))
            self.note("no-server", why=str(error))
            client.close()
            self._session_ended()
            return
        self.sessions += 1
        session = ForwardedSession(
            self.loop, client, server, self.setup.dialect, trace=self.trace, on_end=self._session_ended
        )
        self.session = session
        if self.setup.survive is not None:
            self.survival = Survival(session, self.upstream, self.setup.survive, warn)
        if self.setup.capture_dma:
            CaptureDma(session)
        if self.setup.capture_interrupts:
            CaptureInterrupts(session)
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
        warn(f"the session ends: {told}")
        if not isinstance(error, OSError):
            traceback.print_exception(error)
        self.note("session-failed", why=told)
        session.close()
        return True

    def _session_ended(self) -> None:
        self.session = self.faults = self.survival = None
        if self._only_client:
            self.loop.stop()
        elif not self._closing:
            self._listen()

    def _about(self) -> dict[str, Any]:
        from importlib.metadata import version  # slow to import, and for traces alone

        return {
            "program": f"vfio-user {version('vfio-user')}",
            "dialect": self.setup.dialect.name,
            "listen": self.setup.listen,
            "connect": self.setup.target,
        }


def _session_status(session: ForwardedSession) -> SessionStatus:
    counters = session.counters
    return {
        "state": session.model.state,
        "migration_state": session.model.migration_state.name,
        "client_migrates": session.model.client_migrates,
        "holding": session.holding.active,
        "held": len(session.holding),
        "counters": {
            "messages": _by_direction(counters.messages),
            "bytes": _by_direction(counters.bytes),
            "unframed": counters.unframed,
            "unframed_by_client": counters.unframed_by_client,
            "own_requests": counters.own_requests,
            "held": counters.held,
            "faults": counters.faults,
        },
        "waiting": _by_direction([len(pending) for pending in session.pending]),
    }


def _by_direction(counts: list[int]) -> ByDirection:
    return {"to-server": counts[Direction.TO_SERVER], "to-client": counts[Direction.TO_CLIENT]}


def warn(text: str) -> None:
    """Tell whoever runs the interposer something."""
    print(f"vfio-user interpose: {printable(text)}", file=sys.stderr, flush=True)
