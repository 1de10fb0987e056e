"""The interposer of vhost-user: `userdev.interposer`'s, one back-end connection for each of a front-end's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from userdev.interposer.interposer import BaseInterposer, BaseSetup, by_direction
from userdev.interposer.session import BaseSession
from userdev.relay import Direction
from userdev.trace import TraceWriter
from userdev.transport import Stream
from vhost_user.interposer.control.answers import CountersStatus, InterposerStatus, SessionStatus
from vhost_user.interposer.conversation import FrontEndSession
from vhost_user.interposer.traces import NAME

if TYPE_CHECKING:  # with them comes pydantic, which takes longer to load than all of the rest
    from userdev.interposer.control.command import ControlCommand
    from userdev.interposer.faults.scenario import AnyScenario
    from vhost_user.interposer.faults.scenario import Scenario
    from vhost_user.interposer.faults.stage import SessionFaults

Setup = BaseSetup


class Interposer(BaseInterposer[FrontEndSession]):
    """Listens as soon as it exists. `run` returns when it has been stopped; `close` leaves nothing behind."""

    program = NAME

    def new_session(self, client: Stream, server: Stream) -> FrontEndSession:
        """The session of these two."""
        return FrontEndSession(self.loop, client, server, trace=self.trace, on_end=self.session_ended)

    def new_trace(self, path: str, about: dict[str, Any]) -> TraceWriter:
        """The trace of all sessions."""
        return TraceWriter(path, NAME, about, warn=self.warn)

    def parse_scenario(self, text: str, source: str) -> Scenario:
        """The scenario in a YAML text; `source` is its name in errors.

        Raises:
            UserError: it is wrong.
        """
        from vhost_user.interposer.faults.scenario import parse_scenario

        return parse_scenario(text, source)

    def begin_faults(self, session: FrontEndSession, scenario: AnyScenario) -> SessionFaults:
        """Let a scenario happen to a session."""
        from vhost_user.interposer.faults.scenario import Scenario
        from vhost_user.interposer.faults.stage import SessionFaults

        assert isinstance(scenario, Scenario)
        return SessionFaults(session, scenario, self.signal_server)

    def commands(self) -> Mapping[str, type[ControlCommand[Any]]]:
        """The commands of the control socket, by name."""
        from vhost_user.interposer.control.commands import COMMANDS

        return COMMANDS

    def status(self) -> InterposerStatus:
        """Sessions, server, trace and counters, for the control socket."""
        return {
            "sessions": self.sessions,
            "server_pid": self.upstream.pid,
            "trace": self.trace_status(),
            "rules": self.rules_status(),
            "session": _session_status(self.session) if self.session is not None else None,
        }


def _session_status(session: FrontEndSession) -> SessionStatus:
    waiting = {Direction.TO_SERVER: len(session.waiting), Direction.TO_CLIENT: 0}
    channel = session.channels[-1] if session.channels else None
    if channel is not None:
        waiting[Direction.TO_CLIENT] = len(channel.waiting)
    return {
        "state": session.state,
        "holding": session.holding.active,
        "held": len(session.holding),
        "counters": _counters(session),
        "back_end_channel": _counters(channel) if channel is not None else None,
        "waiting": by_direction([waiting[direction] for direction in Direction]),
    }


def _counters(conversation: BaseSession[Any, Any]) -> CountersStatus:
    counters = conversation.counters
    return {
        "messages": by_direction(counters.messages),
        "bytes": by_direction(counters.bytes),
        "unframed": counters.unframed,
        "held": counters.held,
        "faults": counters.faults,
    }
