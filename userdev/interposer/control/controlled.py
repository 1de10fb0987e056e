"""What a controller may reach of an interposer, whatever its protocol is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

from userdev.interposer.session import BaseSession
from userdev.relay.loop import Loop

if TYPE_CHECKING:  # with it comes pydantic, which takes longer to load than all of the rest
    from userdev.interposer.faults.scenario import AnyScenario


class Controlled(Protocol):
    """An interposer, as the commands of its control socket see it."""

    @property
    def loop(self) -> Loop:
        """The loop that sessions and controllers are served in."""

    def current(self) -> BaseSession[Any, Any]:
        """The session under way; raises `PeerLost` where there is none."""

    def status(self) -> Mapping[str, Any]:
        """Sessions, server, trace and counters."""

    def signal_server(self, number: int) -> int:
        """Send the server a signal; returns its process id."""

    def parse_scenario(self, text: str, source: str) -> AnyScenario:
        """The scenario in a YAML text; `source` is its name in errors."""

    def set_faults(self, scenario: AnyScenario | None) -> None:
        """Let this happen from now on; None: nothing any more."""

    def note(self, event: str, **details: object) -> None:
        """Write an event into the trace, where there is one."""
