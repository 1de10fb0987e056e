"""What becomes of requests of the interposer's own that get no good reply."""

from __future__ import annotations

from userdev.errors import UserError, errno_in_words


class RequestRefused(UserError):
    """The peer answered with an error, or cannot be asked that; `errno` is its."""

    def __init__(self, what: str, errno: int) -> None:
        super().__init__(f"{what}: {errno_in_words(errno)}")
        self.errno = errno


class IncompatibleServer(UserError):
    """The new server is not the device that the old one was: the client would notice."""
