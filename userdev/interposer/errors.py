"""What becomes of those who want something of a session that is not there."""

from __future__ import annotations

from userdev.errors import UserError


class PeerLost(UserError):
    """The connection went away before the reply came, or there is none."""
