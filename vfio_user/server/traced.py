"""A session's connection whose messages are recorded (`serve --trace`), as an interposer would record them.

Without another process in between, and while the client wakes up: what has come in a turn is recorded once something
was sent, or at the turn's end, with the time at which it came. By bytes, so that registers keep their path. The file
has all of it before the next wait: a server that is killed takes its last turn with it, which an interposer would have.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from time import monotonic_ns
from typing import TYPE_CHECKING

from userdev.relay.direction import Direction
from userdev.transport import Stream
from vfio_user.server.connection import ServerConnection
from vfio_user.wire import NO_REPLY, REPLY, Message, split_messages
from vfio_user.wire.header import TYPE_MASK

if TYPE_CHECKING:
    from userdev.busy_wait import BusyWait
    from userdev.trace import TraceWriter

_BOTH = 3
"""View: it came, or went, and nothing was changed in between (`userdev.trace.View`)."""


class TracedConnection(ServerConnection):
    """As any; its trace is the server's, and outlives it."""

    def __init__(self, stream: Stream, max_data: int, busy_wait: BusyWait, trace: TraceWriter) -> None:
        super().__init__(stream, max_data, busy_wait)
        self._trace = trace
        self._lock = threading.Lock()
        """The device's own threads send, while the session's receives."""
        self._asked: tuple[dict[int, int], dict[int, int]] = ({}, {})
        """{id: record} of what is not answered, by the direction of the request."""
        self._recorded = 0
        """Bytes that have come and are recorded, or are no message."""
        self._came = 0
        """When the messages came that are in the framer's buffer and not recorded yet; 0: there are none."""
        self._first = 0
        """Where in the buffer they begin."""
        trace.note("connected")

    def receive(self, end: float | None = None) -> bool:
        """Write what is recorded, then as `ServerConnection.receive`."""
        with self._lock:
            self._record_came()
            self._trace.flush()
        more = super().receive(end)
        if not self.framer.has_fds:
            self._has_come()
        return more

    def next(self) -> Message | None:
        """As `ServerConnection.next`; a message that came with or behind descriptors is recorded here, with its own."""
        message = super().next()
        if message is None or self.framer.taken <= self._recorded:
            return message
        with self._lock:
            self._record_came()
            if self.framer.taken > self._recorded:
                self._recorded = self.framer.taken
                asked, answered = self._asked
                pair = answered.pop(message.id, 0) if message.is_reply else 0
                number = self._trace.message(Direction.TO_SERVER, _BOTH, message, pair)
                if message.wants_reply:
                    asked[message.id] = number
        if not self._came and not self.framer.has_fds:
            self._has_come()
        return message

    def close(self) -> None:
        """As `ServerConnection.close`, which is recorded."""
        with self._lock:
            self._record_came()
        super().close()
        with self._lock:
            self._trace.note("disconnected")
            self._trace.flush()

    def _has_come(self) -> None:
        """Have what is in the buffer be recorded. It stays there until the next receive."""
        framer = self.framer
        self._recorded = max(self._recorded, framer.taken)  # less is what was no message
        self._first = framer.end - (framer.taken + framer.pending - self._recorded)
        self._came = monotonic_ns()

    def _record_came(self) -> None:
        """Record what has come. Under the lock, and from any thread."""
        if self._came:
            framer, first = self.framer, self._first
            stop = self._record(Direction.TO_SERVER, memoryview(framer.buffer), first, framer.end, self._came)
            self._recorded += stop - first
            self._came = 0

    def _send(self, data: bytes | bytearray, fds: Sequence[int] = ()) -> None:
        super()._send(data, fds)
        with self._lock:
            self._record_came()
            if fds:
                message = Message.decode(data, 0, bytes(data[Message.header_size :]), list(fds))
                pair = self._asked[Direction.TO_SERVER].pop(message.id, 0) if message.is_reply else 0
                self._trace.message(Direction.TO_CLIENT, _BOTH, message, pair)
            else:
                self._record(Direction.TO_CLIENT, memoryview(data), 0, len(data), monotonic_ns())

    def _record(self, direction: Direction, view: memoryview, at: int, end: int, time: int) -> int:
        """Record the messages between two places; the end of the last that is whole."""
        messages, stop = split_messages(view, at, end)
        passed, asked, answered = self._trace.passed, self._asked[direction], self._asked[direction.opposite]
        for (id, _, _, flags, _), data in messages:
            if flags & TYPE_MASK == REPLY:
                passed(direction, data, answered.pop(id, 0), time)
            elif flags & NO_REPLY:
                passed(direction, data, 0, time)
            else:
                asked[id] = passed(direction, data, 0, time)
        return stop
