"""The commands that every interposer has: a model each, whose docstring documents it and whose `run` does it."""

from __future__ import annotations

import signal
import socket
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from userdev.control import ControlResult
from userdev.errors import UserError
from userdev.interposer.control import answers
from userdev.interposer.control.command import ControlCommand
from userdev.interposer.control.controlled import Controlled

if TYPE_CHECKING:
    from userdev.interposer.faults.scenario import AnyScenario

MAX_SCENARIO = 64 << 10
"""Bytes of a scenario: it is read (about 100 KB/s) while nobody else is served."""


class GetStatus(ControlCommand[Controlled]):
    """What is going on: session, server, trace, counters."""

    async def run(self, interposer: Controlled, fds: list[int]) -> ControlResult:
        """Return what the interposer counts; it needs no session."""
        return interposer.status()


class HoldRequests(ControlCommand[Controlled]):
    """Keep the client's requests back until `resume`. Holds count."""

    async def run(self, interposer: Controlled, fds: list[int]) -> answers.Done:
        """Take a hold of the session's requests.

        Raises:
            PeerLost: without a session.
        """
        interposer.current().holding.hold()
        return {}


class Resume(ControlCommand[Controlled]):
    """Let the client's requests go on; `released` says how many had been waiting."""

    async def run(self, interposer: Controlled, fds: list[int]) -> answers.Released:
        """Give one hold back; returns how many requests went on, none while another hold is left."""
        holding = interposer.current().holding
        waiting = len(holding)
        holding.resume()
        return {"released": waiting - len(holding)}


class Cut(ControlCommand[Controlled]):
    """Cut the connection of the client or of the server: the other side's goes as if that peer had died."""

    side: Literal["client", "server", "both"] = "both"

    async def run(self, interposer: Controlled, fds: list[int]) -> answers.Done:
        """Shut a connection of the session's down.

        Raises:
            PeerLost: without a session.
        """
        session = interposer.current()
        interposer.note("cut", side=self.side)
        for side in ("client", "server") if self.side == "both" else (self.side,):
            session.close_side(side, socket.SHUT_RDWR)
        return {}


class Mark(ControlCommand[Controlled]):
    """Write `text` into the trace, to find the place again."""

    text: Annotated[str, Field(max_length=4096)]

    async def run(self, interposer: Controlled, fds: list[int]) -> answers.Done:
        """Write a note `mark` into the trace; nothing where there is none."""
        interposer.note("mark", text=self.text)
        return {}


class SetFaults(ControlCommand[Controlled]):
    """Let a fault scenario happen from now on: its text, or a file; neither ends it."""

    scenario: Annotated[str, Field(max_length=MAX_SCENARIO)] | None = None
    file: str | None = None

    async def run(self, interposer: Controlled, fds: list[int]) -> answers.Rules:
        """Replace the scenario, or end it; returns how many rules the new one has.

        Raises:
            UserError: a bad scenario.
        """
        scenario = None
        if self.file is not None:
            scenario = _scenario_in(interposer, self.file)
        elif self.scenario is not None:
            scenario = interposer.parse_scenario(self.scenario, "scenario")
        interposer.set_faults(scenario)
        return {"rules": len(scenario.rules) if scenario is not None else 0}


def _scenario_in(interposer: Controlled, file: str) -> AnyScenario:
    """The scenario in a file. What is wrong in it is not told: a controller may not be one who may read it."""
    from userdev.documents import read_regular_file

    try:
        return interposer.parse_scenario(read_regular_file(file, MAX_SCENARIO).decode(), file)
    except OSError as error:
        raise UserError(f"cannot read the scenario {file}: {error.strerror}") from None
    except (UserError, UnicodeDecodeError):
        raise UserError(
            f"{file} is no scenario", hint="`interpose --faults FILE` says what is wrong in it, and where"
        ) from None


class SendSignal(ControlCommand[Controlled]):
    """Send a signal to the server: SIGSTOP, SIGCONT, SIGKILL, SIGTERM."""

    signal: Literal["SIGSTOP", "SIGCONT", "SIGKILL", "SIGTERM"]

    async def run(self, interposer: Controlled, fds: list[int]) -> answers.Signalled:
        """Send the signal and return the server's process id.

        Raises:
            UserError: that process is not known, or has ended.
        """
        return {"pid": interposer.signal_server(signal.Signals[self.signal])}


class Stop(ControlCommand[Controlled]):
    """End the interposer."""

    async def run(self, interposer: Controlled, fds: list[int]) -> answers.Done:
        """Stop the loop after this answer has been queued; sessions are closed then."""
        interposer.loop.after(0, interposer.loop.stop)
        return {}


COMMANDS: Mapping[str, type[ControlCommand[Any]]] = MappingProxyType(
    {
        "status": GetStatus,
        "hold": HoldRequests,
        "resume": Resume,
        "cut": Cut,
        "mark": Mark,
        "faults": SetFaults,
        "signal": SendSignal,
        "stop": Stop,
    }
)
