"""A device's own requests to its client: guest memory and interrupts by message.

Message DMA needs the client's answer, and QEMU cannot give one while a vCPU waits for a register's reply under the big
lock (hw/vfio-user/proxy.c: requests are served by a bottom half). So whoever waits for DMA on the session's thread goes
on serving commands, an outstanding register write is answered before its effect is complete, and a register read that
would have to wait is refused with EDEADLK.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import threading
from collections.abc import Callable
from time import monotonic

from userdev.errors import ProtocolError
from userdev.transport import close_all
from vfio_user.server.connection import ClientGone, ServerConnection
from vfio_user.server.negotiation import ANSWER_SECONDS, Agreement
from vfio_user.server.owed import Owed
from vfio_user.wire import COMMAND, NO_REPLY, Command, Dialect, Message
from vfio_user.wire.open_requests import OpenRequests, free_id

log = logging.getLogger("vfio_user.server")

MAX_DEPTH = 8
"""How deep handlers may wait for DMA within commands served while others wait for DMA."""


class _Waiting:
    """Who waits for an answer."""

    answer: Message | None = None


class ClientRequests:
    """The requests of one session. Called under the session's lock or on a thread that takes it here."""

    def __init__(
        self,
        dialect: Dialect,
        connection: ServerConnection,
        lock: threading.RLock,
        owed: Owed,
        serve: Callable[[], None],
        check: Callable[[int, int], object] = lambda iova, count: None,
    ) -> None:
        """`serve` handles what was received, and sends the replies; for the session's thread. `check` is asked before
        each DMA message whether its bytes are mapped, and raises ProtocolError (EFAULT) where they are not: the client
        may have unmapped them while the message before was under way.
        """
        self.agreement = Agreement()
        """From VERSION on: what the client takes, and its twin socket."""
        self.serving_thread: int | None = None
        """The session's: it has the lock while a handler runs."""
        self._dialect = dialect
        self._connection = connection
        self._lock = lock
        self._answered = threading.Condition(lock)
        self._owed = owed
        self._serve = serve
        self._check = check
        self._open = OpenRequests[_Waiting]()
        self._unasked = 0  # replies that nobody waited for
        self._last_id = 0
        self._depth = 0
        self._gone = False

    def dma_read(self, iova: int, count: int) -> bytes:
        """Read guest memory by message.

        Raises:
            ProtocolError: the client refused (its errno), has not answered within `ANSWER_SECONDS` (ETIMEDOUT), has
                unmapped it meanwhile (EFAULT), or a register read would wait for it (EDEADLK).
            ClientGone: the client went away.
        """
        chunk = self.agreement.data_per_answer
        pieces = [
            self._request(Command.DMA_READ, iova + at, min(chunk, count - at), b"") for at in range(0, count, chunk)
        ]
        return b"".join(pieces)

    def dma_write(self, iova: int, data: bytes | memoryview) -> None:
        """Write guest memory by message; raises as `dma_read`."""
        chunk = self.agreement.data_per_message
        for at in range(0, len(data), chunk):
            part = bytes(data[at : at + chunk])
            self._request(Command.DMA_WRITE, iova + at, len(part), part)

    def interrupt(self, index: int, vector: int) -> None:
        """Interrupt the client by message, where the dialect has one; the index is the enabled type's."""
        if Command.VM_INTERRUPT not in self._dialect:
            log.warning(
                "interrupt %d of index %d is lost: dialect %s has no message for it", vector, index, self._dialect
            )
            return
        shape = self._dialect.shapes[Command.VM_INTERRUPT]
        assert shape.request is not None
        with self._lock:
            if self._gone:
                return
            message = Message(self._new_id(), shape.number, COMMAND | NO_REPLY, 0, shape.request.pack(vector))
            self._connection.out += message.encode()
            if not self._is_serving_thread():
                self._connection.flush()

    def settle(self, message: Message) -> bool:
        """Take a reply. One that nobody waits for is dropped, since nothing answers a reply.

        libvfio-user's clients of 2021 answer VM_INTERRUPT, although it says No_reply.
        """
        if not message.is_reply:
            return False
        close_all(message.fds)
        if (waiting := self._open.replied(message.id)) is not None:
            waiting.answer = message
            self._answered.notify_all()
        else:
            log.log(
                logging.DEBUG if self._unasked else logging.WARNING,
                "dropped: a reply to id %d, command %d, which nobody asked; more of them are said at level DEBUG",
                message.id,
                message.command,
            )
            self._unasked += 1
        return True

    def client_gone(self) -> None:
        """Tell whoever waits for the client that it has gone; nothing can be asked of it any more."""
        self._gone = True
        self._answered.notify_all()

    def close(self) -> None:
        """Close the second socket, where there is one."""
        if self.agreement.twin is not None:
            self.agreement.twin.close()

    def _request(self, command: Command, address: int, count: int, data: bytes) -> bytes:
        shape = self._dialect.shapes[command]
        assert shape.request is not None
        with contextlib.nullcontext() if self._is_serving_thread() else self._lock:
            self._check(address, count)
            message = Message(self._new_id(), shape.number, payload=shape.request.pack(address, count, tail=data))
            answer = self._exchange(message)
        if answer.failed:
            raise ProtocolError(
                f"the client refused {command.value} of {count} bytes at {address:#x}", answer.errno or errno.EIO
            )
        if command is Command.DMA_WRITE:
            return b""
        assert shape.reply is not None
        found = shape.reply.unpack(answer.payload)
        # QEMU before 11.1 sends the 4 bytes that pad its C structure behind the data.
        body = answer.payload[shape.reply.size : shape.reply.size + count]
        # Whose address it is nobody but this request says: no text wants it echoed.
        if found.length != count or len(body) != count:
            raise ProtocolError(f"the reply to {command.value} at {address:#x} has {len(body)} of {count} bytes")
        return body

    def _exchange(self, message: Message) -> Message:
        """Send a request and wait for its reply, while commands go on being served. Holds the lock."""
        if self._gone:
            raise ClientGone("the client went away")
        if self.agreement.twin is not None:
            return self.agreement.twin.exchange(message)
        on_session_thread = self._is_serving_thread()
        if on_session_thread and self._owed.blocking:
            raise ProtocolError("a register read would have to wait for message DMA: defer the DMA", errno.EDEADLK)
        if self._depth >= MAX_DEPTH:
            raise ProtocolError(f"{MAX_DEPTH} handlers wait for message DMA already", errno.EDEADLK)
        waiting = _Waiting()
        self._open.sent(message.id, waiting)
        try:
            if on_session_thread:
                self._wait_serving(message, waiting)
            else:
                self._connection.out += message.encode()
                self._connection.flush()
                self._answered.wait_for(lambda: waiting.answer is not None or self._gone, ANSWER_SECONDS)
        finally:
            if waiting.answer is None:
                self._open.replied(message.id)  # what comes now is for nobody
        if waiting.answer is None and self._gone:
            raise ClientGone("the client went away")
        if waiting.answer is None:
            raise ProtocolError(f"the client has not answered within {ANSWER_SECONDS:g} s", errno.ETIMEDOUT)
        return waiting.answer

    def _wait_serving(self, message: Message, waiting: _Waiting) -> None:
        self._connection.out += self._owed.take()
        self._connection.out += message.encode()
        self._connection.flush()
        end = monotonic() + ANSWER_SECONDS
        self._depth += 1
        self._connection.limit_receives(ANSWER_SECONDS)
        try:
            self._serve()
            while waiting.answer is None and monotonic() < end:
                if not self._connection.receive():
                    raise ClientGone("the client went away")
                self._serve()
        except BlockingIOError:  # nothing came, which is no answer either
            return
        finally:
            self._depth -= 1
            if not self._depth:
                self._connection.limit_receives(0)

    def _is_serving_thread(self) -> bool:
        return threading.get_ident() == self.serving_thread

    def _new_id(self) -> int:
        id = free_id(self._last_id, self._open)
        assert id is not None, "each that waits has a thread, or a handler"
        self._last_id = id
        return id
