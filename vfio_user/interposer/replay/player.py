"""Plays a script against a server: sends and answers what the client did, and has compared what comes."""

from __future__ import annotations

import os
import select
import socket
import time
from collections import Counter
from collections.abc import Callable, Collection, Hashable
from dataclasses import replace
from pathlib import Path
from typing import Literal

from userdev.descriptors import FdInfo, FdKind, describe
from userdev.errors import ProtocolError, UserError
from userdev.eventfd import drain
from userdev.interposer.server_process import STDERR, ServerProcess
from userdev.relay.direction import Direction
from userdev.relay.loop import Loop
from userdev.transport import Framer, Stream, close_all, connect
from vfio_user.interposer.codec import MAX_FRAME
from vfio_user.interposer.replay.asked import Asked
from vfio_user.interposer.replay.comparing import Comparison
from vfio_user.interposer.replay.ignoring import Ignored
from vfio_user.interposer.replay.outcome import ReplayOutcome
from vfio_user.interposer.replay.playing import Played
from vfio_user.interposer.replay.remembered import RememberedMemory
from vfio_user.interposer.replay.script import Script, load_script
from vfio_user.interposer.replay.steps import (
    ScriptStep,
    count_of,
    is_doing,
    is_interrupt,
    is_servers_request,
    vector_of,
)
from vfio_user.interposer.trace import MessageRecord, Note, Raw
from vfio_user.interposer.trace.files import CHANNELS, TWIN
from vfio_user.interposer.trace.registers import RegisterMap, registers_of
from vfio_user.interposer.twin import place_of_twin
from vfio_user.wire import Command, Message
from vfio_user.wire import layouts as at
from vfio_user.wire.constants import IrqSetFlags

Timing = Literal["fast", "recorded"]
PATIENCE_SECONDS = 5.0
"""Seconds a server has for anything that was recorded."""
LEAST_PATIENCE = 0.05
"""Seconds that it has for what has not come several times: each time half as many as before."""
START_SECONDS = 30.0
FATE_SECONDS = 2.0
"""Seconds that a server has to end once it has hung up, for how it ended to be told."""
DYING_SECONDS = 0.1
"""Seconds between the end of a connection and that of the process, where it closed that itself before it ended."""
SILENT = 3
"""Requests without a reply, one after the other, after which there is nobody to talk to."""
_LIMIT_FD = 1 << 40
"""Bytes of a memfd that stands for recorded memory, at most; it is sparse."""


def replay(
    trace: str | Path | Script,
    server_command: str | None = None,
    *,
    connect_to: str | None = None,
    timing: Timing = "fast",
    ignore: Ignored | Collection[str] = (),
    registers: RegisterMap | None = None,
    patience: float = PATIENCE_SECONDS,
    beside: float | None = None,
    output: int = STDERR,
) -> ReplayOutcome:
    """Play a trace's client against a server that is started for it (`{socket}` or `{fd}`), or listens already.

    patience: seconds that the server has for anything that was recorded, once it has said its first word.
    beside: those for interrupts and DMA, once it has answered all that it was asked; as many if not given.
    timing: as fast as the server answers, or with the recorded pauses.
    ignore: what may differ, in the words of `ignoring.FORMS`.
    registers: names of registers, to ignore and to tell, instead of those that the trace brings along.
    output: a descriptor for what the server prints, or `subprocess.DEVNULL`.

    Raises:
        UserError: the trace cannot be read, the server not be reached, or there is nothing of a name.
    """
    script = trace if isinstance(trace, Script) else load_script(trace)
    registers = registers or registers_of(script.header)
    ignored = ignore if isinstance(ignore, Ignored) else Ignored.parse(ignore, registers)
    if server_command is None:
        if connect_to is None:
            raise UserError("no server to replay against", hint="give a command, or an address to connect to")
        stream = connect(connect_to, timeout=START_SECONDS)
        with Player(script, stream, ignored, registers, patience, beside=beside) as player:
            return player.play(timing)
    loop = Loop()
    process = ServerProcess(loop, server_command, output=output)
    try:
        stream = loop.finish(process.start(START_SECONDS))

        def fate(seconds: float) -> str:
            return process.fate if loop.finish(process.ended(seconds)) else ""

        player = Player(script, stream, ignored, registers, patience, beside=beside, start=START_SECONDS, fate=fate)
        with player:
            return player.play(timing)
    finally:
        process.close()
        loop.close()


class Ended(Exception):
    """There is nobody any more to play to."""


class _Twin:
    """A second socket that the server asks on."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.framer = Framer(Message, max_message=MAX_FRAME)

    def close(self) -> None:
        """Let go of it, and of what has come and was not taken."""
        self.framer.close()
        self.stream.close()


class Player:
    """One replay over one connection."""

    def __init__(
        self,
        script: Script,
        stream: Stream,
        ignored: Ignored = Ignored(),  # noqa: B008  # it is frozen
        registers: RegisterMap | None = None,
        patience: float = PATIENCE_SECONDS,
        *,
        beside: float | None = None,
        start: float = 0.0,
        fate: Callable[[float], str] = lambda seconds: "",
    ) -> None:
        """Nothing is sent yet.

        beside: seconds for what no reply says, see `replay`.
        start: seconds that the server has for its first word, where that is more: its socket is there before.
        fate: how the server's process has ended, or does so within these seconds; "" where it runs, or nobody knows.
        """
        self._played = Played(script)
        self.outcome = ReplayOutcome(script, memory_was_mapped=script.memory_was_mapped)
        self._comparison = Comparison(script, ignored, registers, self.outcome)
        self._script = script
        self._dialect = script.dialect
        self._stream = stream
        self._framer = Framer(Message, max_message=MAX_FRAME, max_fds=1024)
        self._version = script.dialect.number(Command.VERSION)
        self._twins: dict[int, _Twin] = {}
        """By descriptor: second sockets that the server asks on."""
        self._fate = fate
        self._patience = max(patience, start)
        self._once_it_speaks = patience
        self._beside = patience if beside is None else beside
        self._missed = Counter[Hashable]()
        """How often the same was waited for in vain since it last came."""
        self._poll = select.poll()
        self._poll.register(stream.fileno(), select.POLLIN)
        self._closed = ""
        self._files: dict[tuple[FdKind, int], int] = {}
        """Recorded kind and inode: the memfd that stands for it. On which device it was no trace says; memfds have one
        of their own."""
        self._eventfds: dict[tuple[int, int], int] = {}
        self._open = Asked()
        self._unanswered: list[int] = []
        """The client's doings since the last that the server has answered: of these one may have ended it."""
        self._given_up: set[int] = set()
        self._silences = 0
        self._arrived: set[int] = set()
        """Records of requests of the server's that have come."""
        self._fired = Counter[tuple[int, int]]()
        """(index, vector): how often it has come, beyond what was waited for."""
        self._ahead: dict[tuple[int, int], int] = {}
        """(index, vector): the client's last record when it first came beyond that, of those that have since."""
        self._memory = RememberedMemory(script, self._comparison.replies)

    def __enter__(self) -> Player:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()
        self._framer.close()
        for twin in self._twins.values():
            twin.close()
        close_all([*self._files.values(), *self._eventfds.values()])

    def play(self, timing: Timing = "fast") -> ReplayOutcome:
        """Play from the first message to the last, or until the server is gone."""
        began = time.monotonic()
        first = self._script.steps[0].time if self._script.steps else 0
        try:
            for step in self._script.steps:
                if timing == "recorded":
                    self._pause(began + (step.time - first) / 1e9)
                self._step(step)
            for request in list(self._open):
                self._await_reply(request)
            self._receive(0)
            self._see_that_it_lives()
        except Ended:
            self.outcome.unplayed = len(self._script.requests) - self.outcome.sent
        for where, after in sorted(self._ahead.items(), key=lambda ahead: ahead[1]):
            if count := self._fired[where]:
                self._comparison.interrupt_unexpected(where, count, after)
        self.outcome.played = self._played.script()
        self.outcome.seconds = time.monotonic() - began
        return self.outcome

    def _step(self, step: ScriptStep) -> None:
        if is_doing(step):
            self._do(step)
        elif is_interrupt(step):
            self._await_interrupt(step)
        elif is_servers_request(step):
            self._await_request(step)
        elif isinstance(step, MessageRecord) and step.direction is Direction.TO_CLIENT:
            for request in [each for each in self._open if each.number == step.pair]:
                self._await_reply(request)

    # the client's part

    def _do(self, step: MessageRecord | Raw) -> None:
        self._receive(0)
        if self._closed:
            self._hung_up()
        self._ahead = {where: after for where, after in self._ahead.items() if self._fired[where]}
        self.outcome.sent += 1
        self._comparison.after = step.number
        self._unanswered.append(step.number)
        self._played.happened(step)
        if isinstance(step, Raw):
            self._send(step.data, [])
            return
        message = step.message
        fds, own = self._descriptors(step)
        self._open.sent(step)
        self._send(message.encode(), fds)
        close_all(own)
        if message.wants_reply and step.number not in self._comparison.replies:
            self._await_reply(step)  # nobody knows what comes, but the client goes on from there

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
            key = fd.kind, fd.inode
            if key not in self._files:
                self._files[key] = os.memfd_create("replay")
                os.ftruncate(self._files[key], min(fd.size, _LIMIT_FD))
            return self._files[key]
        own.append(os.eventfd(0) if fd.kind is FdKind.EVENTFD else os.memfd_create("replay"))
        return own[-1]

    def _eventfd(self, index: int, vector: int) -> int:
        if (index, vector) not in self._eventfds:
            fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            self._eventfds[index, vector] = fd
            self._poll.register(fd, select.POLLIN)
        return self._eventfds[index, vector]

    # the server's part

    def _await_reply(self, request: MessageRecord) -> None:
        number = request.number
        if self._wait("reply", lambda: number in self.outcome.replies or number in self._given_up):
            self._silences = 0
            return
        self._given_up.add(number)
        self._comparison.no_reply(request, self._once_it_speaks)
        self._silences += 1
        if self._silences == SILENT or not self.outcome.replies:
            raise Ended

    def _await_request(self, step: MessageRecord) -> None:
        if not self._wait_beside(step.message.command, lambda: step.number in self._arrived):
            self._comparison.request_missing(step)

    def _await_interrupt(self, step: Note) -> None:
        where, count = vector_of(step), count_of(step)
        there = self._wait_beside(where, lambda: self._fired[where] >= count)
        came = min(count, self._fired[where])
        self._fired[where] -= came
        if there:
            self._comparison.interrupt_came(step)
        else:
            self._comparison.interrupt_missing(step, came)

    def _wait_beside(self, what: Hashable, there: Callable[[], bool]) -> bool:
        """Whether it comes in time, of what no reply says: a server that has not come so far is slow, and no more.

        Raises:
            Ended: the server has hung up.
        """

        def come_so_far() -> bool:
            return there() or all(request.number in self._given_up for request in self._open)

        self._wait("reply", come_so_far)
        return self._wait(what, there, self._beside)

    def _wait(self, what: Hashable, there: Callable[[], bool], seconds: float | None = None) -> bool:
        """Whether it comes in time, which is the shorter the more often the same did not.

        Raises:
            Ended: the server has hung up.
        """
        began, whole = time.monotonic(), self._patience if seconds is None else seconds
        patience = max(whole / 2 ** self._missed[what], min(whole, LEAST_PATIENCE))
        while not there():
            if self._closed:
                self._hung_up()
            left = began + patience - time.monotonic()
            self._receive(max(0.0, left))  # where it is we who were kept waiting, it may be there
            if left <= 0 and not (there() or self._closed):
                self._missed[what] += 1
                return False
        self._missed[what] = 0
        if len(self.outcome.replies) > 1:  # before the first it starts
            self.outcome.slowest = max(self.outcome.slowest, time.monotonic() - began)
        return True

    def _see_that_it_lives(self) -> None:
        """Of what needs no answer nobody knows whether the server has survived it, before it has seen the end."""
        if not self._unanswered:
            return
        if not self._closed:
            self._stream.socket.shutdown(socket.SHUT_WR)
            self._wait("end", lambda: bool(self._closed))
            if self._fate(DYING_SECONDS) in ("", "exited with status 0"):
                return
        self._hung_up()

    def _hung_up(self) -> None:
        oldest = min(self._open, key=lambda request: request.number, default=None)
        self.outcome.fate = self._fate(FATE_SECONDS)
        self._comparison.closed(oldest, self._closed, frozenset(self._unanswered))
        raise Ended

    def _pause(self, until: float) -> None:
        while (left := until - time.monotonic()) > 0:
            self._receive(left)
            if self._closed:
                time.sleep(max(0.0, until - time.monotonic()))

    def _receive(self, seconds: float) -> None:
        """Deal with what the server does, waiting for the first thing at most so long.

        Raises:
            Ended: it has sent what is no message.
        """
        try:
            for fd, _ in self._poll.poll(seconds * 1000):
                self._receive_from(fd)
        except ProtocolError as error:
            self._comparison.garbage(str(error))
            raise Ended from None

    def _receive_from(self, fd: int) -> None:
        if fd == self._stream.fileno():
            self._receive_messages()
        elif fd in self._twins:
            self._receive_asked(self._twins[fd])
        else:
            where = next(place for place, eventfd in self._eventfds.items() if eventfd == fd)
            if not (count := drain(fd)):  # the server has taken it back
                return
            self._fired[where] += count
            self._ahead.setdefault(where, self._comparison.after)
            self._comparison.interrupt(where, count)
            self.outcome.interrupts.append(where)
            self._played.interrupt(where, count)

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
        for message in self._framer.messages():
            if message.is_reply and message.command == self._version:
                self._take_twin(message)
            described = tuple(map(describe, message.fds)) if message.is_reply else ()
            close_all(message.fds)
            if message.is_reply:
                self._replied(message, described)
            else:
                self._serve(message)

    def _take_twin(self, reply: Message) -> None:
        """Serve the second socket of a server that was offered one, as who recorded the trace did."""
        place = place_of_twin(reply.payload)
        if place is None or place >= len(reply.fds):
            return
        try:
            stream = Stream(socket.socket(fileno=reply.fds[place]))
        except OSError:
            return  # it is no socket: whoever uses it will notice
        del reply.fds[place]
        self._twins[stream.fileno()] = _Twin(stream)
        self._poll.register(stream.fileno(), select.POLLIN)

    def _receive_asked(self, twin: _Twin) -> None:
        """What the server asks on its second socket; that it is gone the first will say."""
        try:
            count, fds = twin.stream.receive(twin.framer.room())
            twin.framer.received(count, fds)
            for message in twin.framer.messages():
                close_all(message.fds)
                self._serve(message, twin.stream)
        except OSError:
            count = 0
        if not count:
            self._poll.unregister(twin.stream.fileno())
            del self._twins[twin.stream.fileno()]
            twin.close()

    def _replied(self, reply: Message, fds: tuple[FdInfo, ...]) -> None:
        request = self._open.replied(reply)
        if request is None:
            self._comparison.unasked(reply)
            return
        number = request.number
        if reply.id != request.message.id:
            self._comparison.misaddressed(request, reply, self._open.owner(reply.id))
        self.outcome.replies[number] = reply
        self._unanswered = [each for each in self._unanswered if each > number]
        self._played.replied(reply, fds, self._comparison.replies.get(number), number)
        if number not in self._given_up:
            self._comparison.reply(request, reply, fds)

    def _serve(self, request: Message, twin: Stream | None = None) -> None:
        """A request of the server's: the recorded one that it is, and the recorded answer, where it was asked."""
        if request.command == self._dialect.number(Command.DMA_WRITE):
            self.outcome.dma_writes.append(request.payload)
        record = self._comparison.request(request)
        channel = CHANNELS[TWIN] if twin is not None else ""
        number = self._played.asked(request, record, channel)
        if record is not None:
            self._arrived.add(record.number)
        if not request.wants_reply:
            return
        recorded = self._comparison.replies.get(record.number) if record is not None else None
        answer = self._memory.answer(request)
        if recorded is not None:
            answer = replace(recorded.message, id=request.id, command=request.command, fds=[])
        if twin is None:
            self._send(answer.encode(), [])
        else:
            twin.send(answer.encode())
        self._played.answered(answer, number, channel)
