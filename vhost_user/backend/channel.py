"""The back-end's own channel: what a device tells its front-end by itself (SET_BACKEND_REQ_FD).

Nothing is asked for an answer: QEMU answers a change of configuration only after it has read that on the main
connection, which a back-end that waits does not serve.
"""

from __future__ import annotations

import logging
import socket

from userdev.errors import ProtocolError
from userdev.transport import Stream
from vhost_user.wire import BackEndRequest, encode_request

log = logging.getLogger("vhost_user.backend")


class BackEndChannel:
    """The socket that a front-end has given."""

    def __init__(self, fd: int) -> None:
        """Take over the descriptor.

        Raises:
            ProtocolError: it is no socket; then it stays the caller's.
        """
        try:
            self._stream = Stream(socket.socket(fileno=fd))
        except OSError as error:
            raise ProtocolError(f"the back-end's channel is no socket: {error.strerror}") from None

    def tell(self, request: BackEndRequest) -> None:
        """Send a request without a payload; a front-end that does not read loses it."""
        try:
            self._stream.try_send(encode_request(request).encode())
        except OSError as error:
            log.warning("%s could not be told: %s", request.name, error.strerror)

    def close(self) -> None:
        """Close it."""
        self._stream.close()
