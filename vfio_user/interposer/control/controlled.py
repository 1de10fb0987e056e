"""What a controller may reach of an interposer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from userdev.relay.loop import Loop
from vfio_user.interposer.control.answers import InterposerStatus
from vfio_user.interposer.session import ForwardedSession
from vfio_user.interposer.survival import Survival

if TYPE_CHECKING:  # with it comes pydantic, which takes longer to load than all of the rest
    from vfio_user.interposer.faults.scenario import Scenario


class Controlled(Protocol):
    """An interposer, as the commands of its control socket see it."""

    @property
    def loop(self) -> Loop:
        """The loop that sessions and controllers are served in."""

    @property
    def survival(self) -> Survival | None:
        """The keeper of the session under way; None where sessions are not kept alive."""

    def current(self) -> ForwardedSession:
        """The session under way; raises `PeerLost` where there is none."""

    def status(self) -> InterposerStatus:
        """Sessions, server, trace and counters."""

    def signal_server(self, number: int) -> int:
        """Send the server a signal; returns its process id."""

    def set_faults(self, scenario: Scenario | None) -> None:
        """Let this happen from now on; None: nothing any more."""
