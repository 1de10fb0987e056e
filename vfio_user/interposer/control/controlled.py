"""What a controller may reach of an interposer of vfio-user's."""

from __future__ import annotations

from typing import Protocol

from userdev.interposer.control import controlled
from vfio_user.interposer.session import ForwardedSession
from vfio_user.interposer.survival import Survival


class Controlled(controlled.Controlled, Protocol):
    """An interposer, as the commands of its control socket see it."""

    @property
    def survival(self) -> Survival | None:
        """The keeper of the session under way; None where sessions are not kept alive."""

    def current(self) -> ForwardedSession:
        """The session under way; raises `PeerLost` where there is none."""
