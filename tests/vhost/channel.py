"""The front-end's side of the back-end's own channel (SET_BACKEND_REQ_FD)."""

from __future__ import annotations

import socket
from contextlib import suppress
from typing import Any, Self

from tests.vhost_frontend import FrontEnd, R
from userdev.transport import Framer, Stream, close_all
from vhost_user.wire import MAX_FDS, BackEndRequest, Message, acknowledge, decode_request

PATIENCE = 4.0
"""Seconds that a back-end may take to say what it has to."""


class Channel:
    """Given to the back-end as it is made; `receive` takes what that says."""

    def __init__(self, front_end: FrontEnd) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            front_end.do(R.SET_BACKEND_REQ_FD, None, [theirs.fileno()])
        ours.settimeout(PATIENCE)
        self.stream = Stream(ours)
        self._framer: Framer[Message] = Framer(Message, max_fds=MAX_FDS)

    def receive(self) -> tuple[BackEndRequest, Any, Message]:
        """The next request, its payload, and its message. Raises TimeoutError where none comes, EOFError at the end."""
        while (message := self._framer.next()) is None:
            count, fds = self.stream.receive(self._framer.room())
            self._framer.received(count, fds)
            if not count:
                raise EOFError
        close_all(message.fds)
        request, value = decode_request(BackEndRequest, message)
        assert isinstance(request, BackEndRequest)
        return request, value, message

    def await_end(self) -> None:
        """Take what is said until the back-end closes its end."""
        with suppress(EOFError):
            while True:
                self.receive()

    def is_silent(self) -> bool:
        """Whether nothing has come."""
        self.stream.socket.setblocking(False)
        try:
            count, fds = self.stream.receive(self._framer.room())
            self._framer.received(count, fds)
        except BlockingIOError:
            return not self._framer.pending
        finally:
            self.stream.socket.settimeout(PATIENCE)
        return False

    def answer(self, request: int, error: int = 0) -> None:
        """Acknowledge a request."""
        self.stream.send(acknowledge(request, error).encode())

    def close(self) -> None:
        self._framer.close()
        self.stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
