"""Plays a script against a server: sends what the client sent, answers what the client answered, compares the rest."""

from __future__ import annotations

import errno
import os
import select
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Literal

from userdev.descriptors import FdInfo, FdKind
from userdev.errors import ProtocolError, UserError
from userdev.interposer.server_process import ServerProcess
from userdev.relay.direction import Direction
from userdev.relay.loop import Loop
from userdev.transport import Framer, Stream, close_all, connect
from vfio_user.interposer.codec import MAX_FRAME
from vfio_user.interposer.replay.memory import SparseMemory
from vfio_user.interposer.replay.outcome import Difference, ReplayOutcome, What
from vfio_user.interposer.replay.script import Script, is_doing, load_script
from vfio_user.interposer.trace import MessageRecord, Note, Raw
from vfio_user.interposer.trace.decode import describe
from vfio_user.wire import MAX_DATA, Command, Message
from vfio_user.wire import layouts as at
from vfio_user.wire.constants import IrqSetFlags
from vfio_user.wire.open_requests import OpenRequests

Timing = Literal["fast", "recorded"]
RegisterAddress = tuple[int, int]
"""(region, offset) of a register whose value is not compared."""
PATIENCE_SECONDS = 5.0
"""Seconds a server has for anything that was recorded."""
START_SECONDS = 30.0
_LIMIT_FD = 1 << 40
"""Bytes of a memfd that stands for recorded memory, at most; it is sparse."""


def replay(
    trace: str | Path | Script,
    server_command: str | None = None,
    *,
    connect_to: str | None = None,
    timing: Timing = "fast",
    ignore: Collection[RegisterAddress] = (),
    patience: float = PATIENCE_SECONDS,
    tolerate: Collection[What] = (),
) -> ReplayOutcome:
    """Play a trace's client against a server that is started for it (`{socket}` or `{fd}`), or listens already.

    patience: seconds that the server has for anything that was recorded, once it has said its first word.

    timing: as fast as the server answers, or with the recorded pauses.
    ignore: registers that may read differently: clocks, counters.
    tolerate: kinds of difference that do not end the replay.

    Raises:
        UserError: the trace cannot be read, or the server not be reached.
    """
    script = trace if isinstance(trace, Script) else load_script(trace)
    if server_command is None:
        if connect_to is None:
            raise UserError("no server to replay against", hint="give a command, or an address to connect to")
        with Player(script, connect(connect_to, timeout=START_SECONDS), ignore, patience, tolerate) as player:
            return player.play(timing)
    loop = Loop()
    process = ServerProcess(loop, server_command)
    try:
        stream = loop.finish(process.start(START_SECONDS))
        with Player(script, stream, ignore, patience, tolerate, start=START_SECONDS) as player:
            return player.play(timing)
    finally:
        process.close()
        loop.close()


class Stopped(Exception):
    """The first difference: nothing after it would mean much."""


class Player:
    """One replay over one connection."""

    def __init__(
        self,
        script: Script,
        stream: Stream,
        ignore: Collection[RegisterAddress] = (),
        patience: float = PATIENCE_SECONDS,
        tolerate: Collection[What] = (),
        *,
        start: float = 0.0,
    ) -> None:
        """`start`: seconds that the server has for its first word, where that is more: its socket is there before."""
        self.outcome = ReplayOutcome(memory_was_mapped=script.memory_was_mapped)
        self._script = script
        self._dialect = script.dialect
        self._stream = stream
        self._framer = Framer(Message, max_message=MAX_FRAME, max_fds=1024)
        self._ignore = frozenset(ignore)
        self._patience = max(patience, start)
        self._once_it_speaks = patience
        self._tolerate = frozenset(tolerate)
        self._poll = select.poll()
        self._poll.register(stream.fileno(), select.POLLIN)
        self._closed = ""
        self._files: dict[int, int] = {}
        """Recorded inode: the memfd that stands for it."""
        self._eventfds: dict[tuple[int, int], int] = {}
        self._open = OpenRequests[MessageRecord]()
        """Message ID: the requests that the server has not answered, oldest first."""
        self._recorded: list[MessageRecord] = [
            step
            for step in script.steps
            if isinstance(step, MessageRecord) and step.direction is Direction.TO_CLIENT and not step.message.is_reply
        ]
        """Requests of the server's that have not come yet."""
        self._answers = {
            step.pair: step.message
            for step in script.steps
            if isinstance(step, MessageRecord) and step.direction is Direction.TO_SERVER and step.message.is_reply
        }
        """By the record of the server's request: how it was answered."""
        self._arrived: set[int] = set()
        """Records of requests of the server's that have come."""
        self._fired: list[tuple[int, int]] = []
        self._expected = {step.pair: step for step in script.steps if isinstance(step, MessageRecord) and step.pair}
        self._memory = SparseMemory()
        self._remember_reads()

    def __enter__(self) -> Player:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()
        self._framer.close()
        close_all([*self._files.values(), *self._eventfds.values()])

    def play(self, timing: Timing = "fast") -> ReplayOutcome:
        """Play from the first message to the last, or to the first difference."""
        began = time.monotonic()
        first = self._script.steps[0].time if self._script.steps else 0
        try:
            for step in self._script.steps:
                if timing == "recorded":
                    self._pause(began + (step.time - first) / 1e9)
                self._step(step)
            self._wait(lambda: not self._open, lambda: self._no_reply())
            self._receive(0)
            if self._knows_interrupts:
                for index, vector in self._fired:
                    self._differs(What.INTERRUPT_UNEXPECTED, 0, found=f"index {index} vector {vector}")
        except Stopped:
            pass
        self.outcome.seconds = time.monotonic() - began
        return self.outcome

    @property
    def _knows_interrupts(self) -> bool:
        return any(isinstance(step, Note) for step in self._script.steps)

    def _step(self, step: MessageRecord | Raw | Note) -> None:
        if is_doing(step):
            self._do(step)
        elif isinstance(step, Note):
            self._await_interrupt(step)
        elif step.direction is Direction.TO_CLIENT and isinstance(step, MessageRecord):
            if step.message.is_reply:
                self._await_reply(step)
            else:
                self._await_request(step)

    # the client's part

    def _do(self, step: MessageRecord | Raw | Note) -> None:
        self._receive(0)
        self.outcome.sent += 1
        if isinstance(step, Raw):
            self._send(step.data, [])
            return
        assert isinstance(step, MessageRecord)
        message = step.message
        fds, own = self._descriptors(step)
        if message.wants_reply:
            self._open.sent(message.id, step)
        self._send(message.encode(), fds)
        close_all(own)

    def _send(self, data: bytes, fds: list[int]) -> None:
        try:
            self._stream.send(data, fds)
        except OSError as error:
            self._closed = error.strerror or str(error)
            self._receive(0)

    def _descriptors(self, record: MessageRecord) -> tuple[list[int], list[int]]:
        """Stand-ins for the recorded ones, and those among them that are only for this message."""
        if record.message.command == self._dialect.number(Command.SET_IRQS):
            try:
                asked = at.IRQ_SET.unpack(record.message.payload)
            except ProtocolError:
                asked = None
            if asked is not None and asked.flags & IrqSetFlags.TRIGGER:
                return [self._eventfd(asked.irq, asked.start + place) for place in range(len(record.fds))], []
        own: list[int] = []
        fds = [self._stand_in(fd, own) for fd in record.fds]
        return fds, own

    def _stand_in(self, fd: FdInfo, own: list[int]) -> int:
        if fd.kind in (FdKind.MEMFD, FdKind.FILE):
            if fd.inode not in self._files:
                self._files[fd.inode] = os.memfd_create("replay")
                os.ftruncate(self._files[fd.inode], min(fd.size, _LIMIT_FD))
            return self._files[fd.inode]
        own.append(os.eventfd(0) if fd.kind is FdKind.EVENTFD else os.memfd_create("replay"))
        return own[-1]

    def _eventfd(self, index: int, vector: int) -> int:
        if (index, vector) not in self._eventfds:
            fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            self._eventfds[index, vector] = fd
            self._poll.register(fd, select.POLLIN)
        return self._eventfds[index, vector]

    # the server's part

    def _await_reply(self, step: MessageRecord) -> None:
        if step.pair in self._expected:
            self._wait(lambda: step.pair in self.outcome.replies, lambda: self._no_reply(step.pair))

    def _await_request(self, step: MessageRecord) -> None:
        if What.DMA_MISSING in self._tolerate:
            return
        self._wait(
            lambda: step.number in self._arrived,
            lambda: self._differs(What.DMA_MISSING, step.number, self._text(step.message)),
        )

    def _await_interrupt(self, step: Note) -> None:
        if What.INTERRUPT_MISSING in self._tolerate:
            return
        wanted = int(step.details["index"]), int(step.details["vector"])
        where = f"index {wanted[0]} vector {wanted[1]}"
        self._wait(
            lambda: wanted in self._fired, lambda: self._differs(What.INTERRUPT_MISSING, step.number, expected=where)
        )
        if wanted in self._fired:
            self._fired.remove(wanted)
            self.outcome.compared += 1

    def _wait(self, there: Callable[[], bool], missing: Callable[[], None]) -> None:
        deadline = time.monotonic() + self._patience
        while not there():
            if self._closed:
                self._differs(What.CLOSED, self._oldest(), found=self._closed, evidence="closed")
            left = deadline - time.monotonic()
            if left <= 0:
                missing()
                return
            self._receive(max(0.0, left))

    def _pause(self, until: float) -> None:
        while (left := until - time.monotonic()) > 0:
            self._receive(left)
            if self._closed:
                time.sleep(max(0.0, until - time.monotonic()))

    def _receive(self, seconds: float) -> None:
        """Deal with what the server does, waiting for the first thing at most so long."""
        for fd, _ in self._poll.poll(seconds * 1000):
            if fd == self._stream.fileno():
                self._receive_messages()
            else:
                place = next(place for place, eventfd in self._eventfds.items() if eventfd == fd)
                os.eventfd_read(fd)
                self._fired.append(place)
                self.outcome.interrupts.append(place)

    def _receive_messages(self) -> None:
        try:
            count, fds = self._stream.receive(self._framer.room())
        except OSError as error:
            count, fds = 0, []
            self._closed = error.strerror or str(error)
        if not count:
            self._closed = self._closed or "end of stream"
            self._poll.unregister(self._stream.fileno())
            return
        self._patience = self._once_it_speaks
        self._framer.received(count, fds)
        try:
            for message in self._framer.messages():
                close_all(message.fds)
                if message.is_reply:
                    self._compare_reply(message)
                else:
                    self._serve(message)
        except ProtocolError as error:
            self._differs(What.UNEXPECTED, 0, found=str(error), evidence="garbage")

    def _compare_reply(self, reply: Message) -> None:
        request = self._open.replied(reply.id)
        if request is None:
            self._differs(What.UNEXPECTED, 0, found=self._text(reply), evidence=reply.payload)
            return
        self.outcome.replies[request.number] = reply
        expected = self._expected.get(request.number)
        if expected is None or self._equal(request.message, expected.message, reply):
            self.outcome.compared += 1
            return
        self._differs(
            What.REPLY,
            request.number,
            self._text(expected.message, request.message),
            self._text(reply, request.message),
            (reply.flags, reply.errno, reply.payload),
        )

    def _equal(self, request: Message, expected: Message, found: Message) -> bool:
        if expected.failed != found.failed:
            return False
        if request.command == self._dialect.number(Command.VERSION):
            return True  # what a server offers may change; that it agrees may not
        if request.command == self._dialect.number(Command.REGION_READ) and not expected.failed:
            access = at.REGION_ACCESS.unpack(request.payload)
            if (access.region, access.offset) in self._ignore:
                return True
        return (expected.errno, expected.payload) == (found.errno, found.payload)

    def _serve(self, request: Message) -> None:
        """A request of the server's: the recorded one that it is, and the recorded answer."""
        if request.command == self._dialect.number(Command.DMA_WRITE):
            self.outcome.dma_writes.append(request.payload)
        record = self._recorded_as(request)
        if record is None:
            self._differs(What.DMA_UNEXPECTED, 0, found=self._text(request), evidence=request.payload)
            self._answer_from_memory(request)
            return
        self._recorded.remove(record)
        self._arrived.add(record.number)
        if record.message.payload != request.payload:
            self._differs(
                What.DMA_WRITE,
                record.number,
                self._text(record.message),
                self._text(request),
                request.payload,
            )
        self.outcome.compared += 1
        answer = self._answers.get(record.number)
        if answer is not None and request.wants_reply:
            self._send(Message(request.id, request.command, answer.flags, answer.errno, answer.payload).encode(), [])

    def _answer_from_memory(self, request: Message) -> None:
        """For a request that was not recorded: memory as far as it is known."""
        command = self._dialect.command(request.command)
        if command not in (Command.DMA_READ, Command.DMA_WRITE):
            self._send(request.error(errno.ENOSYS).encode(), [])
            return
        shape = self._dialect.shapes[command]
        assert shape.request is not None
        access = shape.request.unpack(request.payload)
        data = b""
        if command is Command.DMA_READ:
            data = self._memory.read(access.address, min(access.length, MAX_DATA))
        else:
            self._memory.write(access.address, request.payload[shape.request.size :])
        payload = shape.reply.pack(access.address, access.length, tail=data) if shape.reply is not None else b""
        self._send(request.reply(payload).encode(), [])

    def _remember_reads(self) -> None:
        """What the recorded device read is what stood in memory; later reads of a place do not undo earlier ones."""
        shape = self._dialect.shapes[Command.DMA_READ]
        assert shape.reply is not None
        for record in reversed(self._recorded):
            answer = self._answers.get(record.number)
            if record.message.command == shape.number and answer is not None and not answer.failed:
                access = shape.reply.unpack(answer.payload)
                self._memory.write(access.address, answer.payload[shape.reply.size :])

    def _recorded_as(self, request: Message) -> MessageRecord | None:
        """The first recorded request that this one can be: the very same, or one to the same place."""
        same = [record for record in self._recorded if record.message.command == request.command]
        exact = (record for record in same if record.message.payload == request.payload)
        shape = self._dialect.shapes[command] if (command := self._dialect.command(request.command)) else None
        size = shape.request.size if shape is not None and shape.request is not None else 0
        near = (record for record in same if record.message.payload[:size] == request.payload[:size])
        return next(exact, None) or next(near, None)

    # the end

    def _oldest(self) -> int:
        return min((request.number for request in self._open), default=0)

    def _no_reply(self, record: int = 0) -> None:
        number = record or self._oldest()
        expected = self._expected.get(number)
        text = self._text(expected.message) if expected is not None else ""
        self._differs(What.NO_REPLY, number, text, f"nothing within {self._patience:g} s", "silence")

    def _differs(self, what: What, record: int, expected: str = "", found: str = "", evidence: object = None) -> None:
        """The first difference ends the replay, unless it is of a kind that is borne."""
        if what in self._tolerate:
            return
        self.outcome.difference = Difference(what, record, expected, found, evidence)
        raise Stopped

    def _text(self, message: Message, request: Message | None = None) -> str:
        asked = describe(self._dialect, request) if request is not None else None
        return describe(self._dialect, message, None, asked).text()
