"""The interposer of vfio-user: `userdev.interposer`'s, with sessions that are captured, broken and kept alive."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from userdev.interposer.interposer import BaseInterposer, BaseSetup, by_direction
from userdev.relay.loop import Loop
from userdev.trace import TraceWriter
from userdev.transport import Stream
from vfio_user.interposer.capture import CaptureDma, CaptureInterrupts
from vfio_user.interposer.control.answers import InterposerStatus, SessionStatus
from vfio_user.interposer.session import ForwardedSession
from vfio_user.interposer.survival import Policy, Survival
from vfio_user.interposer.trace.files import NAME
from vfio_user.interposer.trace.registers import HEADER_KEY, RegisterMap
from vfio_user.wire import CURRENT, Dialect

if TYPE_CHECKING:  # with them comes pydantic, which takes longer to load than all of the rest
    from userdev.interposer.control.command import ControlCommand
    from userdev.interposer.faults.scenario import AnyScenario
    from vfio_user.interposer.faults.scenario import Scenario
    from vfio_user.interposer.faults.stage import Faults


@dataclass(kw_only=True)
class Setup(BaseSetup):
    """The options of an interposer; the command line has one for each."""

    dialect: Dialect = CURRENT
    capture_dma: bool = False
    """Let the server do DMA by message, so that the trace has it."""
    capture_interrupts: bool = False
    """Pass interrupts on, so that the trace has them."""
    registers: RegisterMap | None = None
    """Names that the trace is to bring along."""
    survive: Policy | None = None
    """Keep clients connected when the server goes."""


class Interposer(BaseInterposer[ForwardedSession]):
    """Listens as soon as it exists. `run` returns when it has been stopped; `close` leaves nothing behind."""

    program = NAME

    def __init__(self, setup: Setup, loop: Loop | None = None) -> None:
        """Start to listen, and start the server where that is up to us.

        Raises:
            UserError: an address cannot be listened on, the trace not be written, or the server not be started.
        """
        self.setup = setup
        self.survival: Survival | None = None
        """What keeps the session under way alive."""
        super().__init__(setup, loop)

    def new_session(self, client: Stream, server: Stream) -> ForwardedSession:
        """The session of these two; survival and capture take part in it."""
        setup, trace = self.setup, self.trace
        session = ForwardedSession(self.loop, client, server, setup.dialect, trace=trace, on_end=self.session_ended)
        if setup.survive is not None:
            self.survival = Survival(session, self.upstream, setup.survive, self.warn)
        if setup.capture_dma:
            CaptureDma(session, self.warn)
        if setup.capture_interrupts:
            CaptureInterrupts(session)
        return session

    def session_over(self) -> None:
        """Let go of what kept the session alive."""
        self.survival = None

    def new_trace(self, path: str, about: dict[str, Any]) -> TraceWriter:
        """The trace of all sessions, whose header has the dialect and the names of registers."""
        names = self.setup.registers
        named = {HEADER_KEY: names.plain} if names is not None else {}
        about = {**about, "dialect": self.setup.dialect.name, **named}
        return TraceWriter(path, NAME, about, warn=self.warn)

    def parse_scenario(self, text: str, source: str) -> Scenario:
        """The scenario in a YAML text; `source` is its name in errors.

        Raises:
            UserError: it is wrong.
        """
        from vfio_user.interposer.faults.scenario import parse_scenario

        return parse_scenario(text, source)

    def begin_faults(self, session: ForwardedSession, scenario: AnyScenario) -> Faults:
        """Let a scenario happen to a session."""
        from vfio_user.interposer.faults.scenario import Scenario
        from vfio_user.interposer.faults.stage import Faults

        assert isinstance(scenario, Scenario)
        return Faults(session, scenario, self.signal_server)

    def commands(self) -> Mapping[str, type[ControlCommand[Any]]]:
        """The commands of the control socket, by name."""
        from vfio_user.interposer.control.commands import COMMANDS

        return COMMANDS

    def status(self) -> InterposerStatus:
        """Sessions, server, trace and counters, for the control socket."""
        session = self.session
        return {
            "sessions": self.sessions,
            "server_pid": self.upstream.pid,
            "dialect": self.setup.dialect.name,
            "trace": self.trace_status(),
            "rules": self.rules_status(),
            "survival": self.survival.status() if self.survival is not None else None,
            "session": _session_status(session) if session is not None else None,
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
            "messages": by_direction(counters.messages),
            "bytes": by_direction(counters.bytes),
            "unframed": counters.unframed,
            "unframed_by_client": counters.unframed_by_client,
            "own_requests": counters.own_requests,
            "held": counters.held,
            "faults": counters.faults,
        },
        "waiting": by_direction([len(pending) for pending in session.pending]),
    }
