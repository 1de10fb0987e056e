"""The back-end's own channel, as its front-end has it: what a device says by itself (SET_BACKEND_REQ_FD)."""

from __future__ import annotations

import socket
from typing import Any, NamedTuple

from userdev.errors import ProtocolError
from userdev.transport import Stream, close_all
from vhost_user.frontend.connection import Connection
from vhost_user.frontend.errors import WrongAnswer
from vhost_user.wire import BackEndRequest, acknowledge, decode_request


class Said(NamedTuple):
    """One request of the back-end's. Its descriptors are closed."""

    request: BackEndRequest
    value: Any
    needs_reply: bool

    def __str__(self) -> str:
        """Its name, and its value where it has one."""
        return self.request.name if self.value is None else f"{self.request.name} {self.value}"


class Channel(Connection):
    """The front-end's end. What asks for an acknowledgement gets one, of success, unless it is only taken."""

    def __init__(self, *, timeout: float) -> None:
        """Make both ends; `theirs` is for the back-end, and closed by `given`."""
        ours, theirs = socket.socketpair()
        super().__init__(Stream(ours), timeout=timeout)
        self._theirs: socket.socket | None = theirs

    @property
    def theirs(self) -> int:
        """The descriptor of the back-end's end.

        Raises:
            ValueError: it was given away.
        """
        if self._theirs is None:
            raise ValueError("the back-end's end was given away")
        return self._theirs.fileno()

    def given(self) -> None:
        """Have no copy of the back-end's end any more, so that its closing is seen."""
        if self._theirs is not None:
            self._theirs.close()
            self._theirs = None

    def next(self) -> Said:
        """The next request, waited for, and acknowledged where it asks for that; raises as `take`."""
        said = self.take()
        if said.needs_reply:
            self.acknowledge(said)
        return said

    def take(self) -> Said:
        """The next request, waited for, which is to be acknowledged where it asks for that.

        Raises:
            NoAnswer: none comes before the timeout.
            Disconnected, WrongAnswer: the back-end has closed its end, or says what is no request.
        """
        message = self.receive("a request on its own channel")
        try:
            request, value = decode_request(BackEndRequest, message)
        except ProtocolError as error:
            raise WrongAnswer(f"a wrong request on the back-end's channel: {error}") from None
        finally:
            close_all(message.fds)
        assert isinstance(request, BackEndRequest)
        return Said(request, value, message.needs_reply)

    def acknowledge(self, said: Said) -> None:
        """Say that a request was done."""
        self.send_message(acknowledge(said.request))

    def close(self) -> None:
        """Close it; idempotent."""
        self.given()
        super().close()
