"""The connecting side for a server: of a socket where its client listens, as QEMU's character device with server=on."""

from __future__ import annotations

import threading
from time import monotonic

from userdev.errors import UserError
from userdev.transport.address import Address, connect
from userdev.transport.stream import Stream

RETRY_SECONDS = 0.1
"""Between two tries, and at least between two connections: a client may hang up on each."""

_CONNECT_SECONDS = 1.0
"""Of one try, which nothing can cut short: a client that listens and does not accept has a queue that is full."""


class Dialer:
    """Connects to one address, each time that it is asked to, until it is shut down."""

    def __init__(self, address: Address | str, seconds: float) -> None:
        """`seconds` is how long a client may take until it listens, each time.

        Raises:
            UserError: the address is no place to connect to.
        """
        self.address = Address.parse(address) if isinstance(address, str) else address
        if isinstance(self.address.where, int):
            raise UserError(
                f"nobody can be connected to at {self.address}, a socket that is open",
                hint="give the path where the client listens: unix:PATH",
            )
        self._seconds = seconds
        self._ended = threading.Event()
        self._not_before = 0.0

    def dial(self) -> Stream | None:
        """Connect, as soon as the client listens; None once it is shut down.

        Raises:
            UserError: nobody has listened there in time.
        """
        end = monotonic() + self._seconds
        while not self._ended.wait(max(0.0, self._not_before - monotonic())):
            self._not_before = monotonic() + RETRY_SECONDS
            try:
                return connect(self.address, timeout=_CONNECT_SECONDS)
            except UserError as error:
                if monotonic() < end:
                    continue
                hint = f"nobody has listened there for {self._seconds:g} s"
                raise UserError(str(error), hint=hint) from None
        return None

    def shutdown(self) -> None:
        """Have `dial` return, from any thread."""
        self._ended.set()

    def close(self) -> None:
        """Connect no more."""
        self._ended.set()
