"""The back-end's own channel: what a device tells and asks its front-end by itself (SET_BACKEND_REQ_FD).

Nothing waits for an answer: QEMU answers a change of configuration or a missing translation only after it has said
more on the main connection, which a back-end that waits does not serve. What a question's answer is good for is done
when it comes.
"""

from __future__ import annotations

import logging
import socket
from collections import deque
from collections.abc import Callable
from typing import Any

from userdev.errors import ProtocolError
from userdev.transport import BadFrame, DescriptorsLost, Framer, Stream, close_all
from vhost_user.backend.watcher import Watcher
from vhost_user.wire import MAX_FDS, BackEndRequest, Message, Negotiated, decode_reply, encode_request

log = logging.getLogger("vhost_user.backend")

Answered = Callable[[int], None]
"""Is given the number of an answer: 0 for success."""

_DONTWAIT = int(socket.MSG_DONTWAIT)


class BackEndChannel:
    """The socket that a front-end has given. Once it has ended, what is said on it is lost, which is logged."""

    def __init__(self, fd: int, watcher: Watcher) -> None:
        """Take over the descriptor.

        Raises:
            ProtocolError: it is no socket; then it stays the caller's.
        """
        try:
            self._stream = Stream(socket.socket(fileno=fd))
        except OSError as error:
            raise ProtocolError(f"the back-end's channel is no socket: {error.strerror}") from None
        self._framer: Framer[Message] = Framer(Message, max_fds=MAX_FDS)
        self._asked: deque[tuple[BackEndRequest, Answered]] = deque()
        """Answers come in the order of questions: messages have no other identification."""
        self._watcher = watcher
        watcher.watch(fd, self._receive)

    def tell(self, request: BackEndRequest, value: Any = None) -> bool:
        """Send a request that wants no answer; False where it is lost, on a front-end that does not read."""
        return self._send(encode_request(request, value))

    def ask(self, request: BackEndRequest, value: Any, answered: Answered) -> bool:
        """Send a request that is to be answered (REPLY_ACK is negotiated), whenever that is; False where it is lost."""
        if not self._send(encode_request(request, value, need_reply=True)):
            return False
        self._asked.append((request, answered))
        return True

    def close(self) -> None:
        """Close it. Idempotent."""
        if self._stream.fileno() >= 0:
            self._watcher.unwatch(self._stream.fileno())
            self._framer.close()
            self._stream.close()
            self._asked.clear()

    def _send(self, message: Message) -> bool:
        if self._stream.fileno() < 0:
            return False
        data = message.encode()
        try:
            if self._stream.try_send(data) == len(data):
                return True
            self._end("it took half a message")
        except OSError as error:
            log.warning("%s could not be told: %s", BackEndRequest(message.request).name, error.strerror)
        return False

    def _receive(self) -> None:
        """Take answers. Anything else on it is a front-end's mistake, which costs it the channel."""
        try:
            count, fds = self._stream.receive(self._framer.room(), _DONTWAIT)
            self._framer.received(count, fds)
            if not count:
                self._end()
            while self._stream.fileno() >= 0 and (message := self._framer.next()) is not None:
                self._take(message)
        except BlockingIOError:
            return
        except (BadFrame, DescriptorsLost, ProtocolError, OSError) as error:
            self._end(str(error))

    def _take(self, message: Message) -> None:
        close_all(message.fds)
        if not self._asked:
            raise ProtocolError(f"{message}, where nothing was asked")
        request, answered = self._asked.popleft()
        answered(decode_reply(request, message, Negotiated()))

    def _end(self, why: str = "") -> None:
        if why:
            log.warning("the back-end's channel ends: %s", why)
        self.close()
