"""The bytes of a session: receiving into the framer, and replies gathered until they are flushed."""

from __future__ import annotations

import logging
import select
from collections.abc import Sequence
from functools import partial
from time import monotonic, perf_counter_ns

from userdev.busy_wait import BusyWait
from userdev.transport import BadFrame, DescriptorsLost, Framer, Stream
from vfio_user.wire import MAX_DATA, MAX_MESSAGE, Message

log = logging.getLogger("vfio_user.server")

_OVERHEAD = MAX_MESSAGE - MAX_DATA

FLUSH = 1 << 20
"""Bytes of replies that are held back at most."""


SEND_SECONDS = 60.0
"""How long a client may read nothing of what it is sent, before it is given up."""


class ClientGone(ConnectionError):
    """The client went away, or sent what no stream can recover from."""


class ServerConnection:
    """A stream, cut into messages. Replies gather in `out` and leave together."""

    def __init__(self, stream: Stream, max_data: int, busy_wait: BusyWait) -> None:
        self.framer = Framer(Message, max_message=max_data + _OVERHEAD)
        self.out = bytearray()
        self._stream = stream
        stream.limit_sends(SEND_SECONDS)
        self._busy_wait = busy_wait
        poll = select.poll()
        poll.register(stream.fileno(), select.POLLIN)
        self._look = partial(poll.poll, 0)

    def fileno(self) -> int:
        """The socket's descriptor, for poll(2)."""
        return self._stream.fileno()

    def limit_receives(self, seconds: float) -> None:
        """Have `receive` raise BlockingIOError where nothing comes for so many seconds; 0: it waits."""
        self._stream.limit_receives(seconds)

    @property
    def is_hung_up(self) -> bool:
        """Whether the client has closed its end, as the kernel knows it now."""
        return self._stream.is_hung_up

    @property
    def carries_fds(self) -> bool:
        """Whether descriptors can travel: a UNIX socket, not TCP."""
        return self._stream.carries_fds

    @property
    def is_cut_off(self) -> bool:
        """Whether the beginning of a message waits for the rest of it."""
        return self.framer.end > self.framer.start

    def receive(self, end: float | None = None) -> bool:
        """Take in what comes next; False at the end of the stream.

        With an `end`, a time of the monotonic clock, it raises TimeoutError then. Only before a session begins, since
        it costs system calls.

        A client that asks again soon is looked for a moment before this thread sleeps, see `userdev.busy_wait`.
        """
        room = self.framer.room()
        if end is not None:
            self._stream.socket.settimeout(max(end - monotonic(), 0.001))
        try:
            if self._busy_wait.is_worth_while and self._busy_wait.until(self._look) is not None:
                received = self._stream.receive(room)
            else:
                begin = perf_counter_ns()
                received = self._stream.receive(room)
                self._busy_wait.slept(perf_counter_ns() - begin)
        except DescriptorsLost as lost:
            self.framer.lost(lost.count)
            return True
        finally:
            if end is not None:
                self._stream.socket.settimeout(None)
        count, fds = received
        self.framer.received(count, fds)
        return count > 0

    def next(self) -> Message | None:
        """The next whole message; a header that cannot be right is answered here.

        Raises:
            ClientGone: after such a header nothing can be read.
        """
        while True:
            try:
                return self.framer.next()
            except BadFrame as error:
                log.warning("%s", error)
                if error.message is not None and error.message.wants_reply:
                    self.out += error.message.error(error.errno).encode()
                if error.fatal:
                    self.flush()
                    raise ClientGone(str(error)) from None

    def send(self, message: Message) -> None:
        """Queue a message; one with descriptors leaves at once, behind what is queued."""
        if not message.fds:
            self.out += message.encode()
            if len(self.out) > FLUSH:  # 2,000 reads of 1 MiB each fit one receive; their replies must not pile up
                self.flush()
            return
        self.flush()
        self._send(message.encode(), message.fds)

    def flush(self) -> None:
        """Send the replies that have gathered.

        Raises:
            ClientGone: the client went away, or does not read.
        """
        if self.out:
            out, self.out = self.out, bytearray()
            self._send(out)

    def _send(self, data: bytes | bytearray, fds: Sequence[int] = ()) -> None:
        """Send all of it; nothing can follow a message that was sent in part.

        Raises:
            ClientGone: the client went away, or does not read.
        """
        try:
            self._stream.send(data, fds)
        except BlockingIOError:
            log.warning("the client has read nothing for %g s: it is given up", SEND_SECONDS)
            self._stream.shutdown()
            raise ClientGone("the client does not read") from None
        except OSError as error:
            self._stream.shutdown()
            raise ClientGone(str(error)) from None

    def shutdown(self) -> None:
        """End both directions; whoever waits in `receive` returns. Any thread may call it."""
        self._stream.shutdown()

    def close(self) -> None:
        """Close the socket, and the descriptors of messages that were not handled."""
        self.framer.close()
        self._stream.close()
