"""What a replay compares: the books of what was recorded, and how what comes is different from it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from userdev.counted import times
from userdev.descriptors import FdInfo, FdKind
from vfio_user.interposer.replay.ignoring import Ignored
from vfio_user.interposer.replay.outcome import Difference, ReplayOutcome, What
from vfio_user.interposer.replay.script import Script
from vfio_user.interposer.replay.steps import count_of, is_servers_request, vector_of
from vfio_user.interposer.trace import MessageRecord, Note
from vfio_user.interposer.trace.decode import DecodedMessage, describe, name_of
from vfio_user.interposer.trace.registers import RegisterMap
from vfio_user.wire import Command, Message
from vfio_user.wire.constants import IrqIndex

_Reply = tuple[Message, tuple[str, ...]]
"""A message, and what its descriptors are."""
_FILES = frozenset({FdKind.FILE, FdKind.MEMFD, FdKind.HUGETLB})


class Comparison:
    """Of one replay: it is told what the server does, and writes what differs into the outcome."""

    def __init__(self, script: Script, ignored: Ignored, registers: RegisterMap | None, outcome: ReplayOutcome) -> None:
        self._dialect = script.dialect
        self._ignored = ignored
        self._registers = registers
        self._outcome = outcome
        self._compared = script.compared
        self._knows_interrupts = script.knows_interrupts
        self._unknown_behind = script.unknown_behind
        self._interrupts_behind = Counter[tuple[int, int]]()
        self.after = 0
        """Record of the client's last message."""
        self.replies = {
            step.pair: step for step in script.steps if isinstance(step, MessageRecord) and step.message.is_reply
        }
        """Recorded, by the record of what they answer; both sides'."""
        self._requests = [step for step in script.steps if is_servers_request(step)]
        """Of the server's, those that have not come yet."""

    def reply(self, request: MessageRecord, reply: Message, fds: Sequence[FdInfo] = ()) -> None:
        """The server has answered, with such descriptors."""
        recorded = self.replies.get(request.number)
        if recorded is None:
            self._outcome.compared += self._compared is None
            return
        expected = recorded.message
        if request.message.command == self._dialect.number(Command.VERSION):
            # what a server offers may change; that it agrees may not
            self._judge(request, (expected, ()), (reply, ()), same=expected.failed == reply.failed)
            return
        was, now = (expected, _kinds(recorded.fds)), (reply, _kinds(fds))
        self._judge(request, was, now, same=_said(*was) == _said(*now))

    def misaddressed(self, request: MessageRecord, reply: Message, whose: int) -> None:
        """The server has answered with another id than it was asked with, which is that of the record `whose`, or 0."""
        asked = self._asked(request.message)
        if self._counts(request.number) and not self._ignored.request(asked):
            title = self._title(reply)
            found = f"{title} reply to id {reply.id}, {f'that of record {whose}' if whose else 'which no request had'}"
            self._differs(
                What.REPLY_ID,
                request.number,
                f"{title} reply to id {request.message.id}",
                found,
                "id",
                _title(asked),
            )

    def request(self, request: Message) -> MessageRecord | None:
        """The server asks something: the recorded request that this is, if any."""
        found = self._recorded_as(request)
        command = self._dialect.command(request.command)
        ignored = command is not None and command.value in self._ignored.commands
        if found is None:
            if ignored or self._is_behind or not self._counts(0):
                self._outcome.ignored += 1
            else:
                self._differs(What.DMA_UNEXPECTED, 0, "", self._text(request), request.payload, self._title(request))
            return None
        self._requests.remove(found)
        if ignored or not self._counts(found.number):
            self._outcome.ignored += 1
        elif found.message.payload == request.payload:
            self._outcome.compared += 1
        else:
            said = self._text(found.message), self._text(request)
            self._differs(What.DMA_WRITE, found.number, *said, request.payload, self._title(request))
        return found

    def request_missing(self, step: MessageRecord) -> None:
        """A recorded request of the server's has not come in time."""
        command = self._dialect.command(step.message.command)
        if self._counts(step.number) and (command is None or command.value not in self._ignored.commands):
            said, place = self._text(step.message), self._title(step.message)
            self._differs(What.DMA_MISSING, step.number, said, "", step.message.payload, place)

    def interrupt(self, where: tuple[int, int], count: int) -> None:
        """An interrupt has come, so often, be it recorded or not."""
        self._interrupts_behind[where] += count if self._is_behind else 0

    def interrupt_came(self, step: Note) -> None:
        """A recorded interrupt has come."""
        counts = self._counts(step.number) and not self._ignored.interrupt(*vector_of(step))
        self._outcome.compared += counts
        self._outcome.ignored += not counts

    def interrupt_missing(self, step: Note, came: int = 0) -> None:
        """A recorded interrupt has not come in time, or not as often: only so many times."""
        where = vector_of(step)
        if self._counts(step.number) and not self._ignored.interrupt(*where):
            text = _interrupt(where)
            said = _so_often(text, count_of(step)), _so_often(text, came)
            self._differs(What.INTERRUPT_MISSING, step.number, *said, where, text)

    def interrupt_unexpected(self, where: tuple[int, int], count: int, after: int) -> None:
        """An interrupt has come, so often, that was not recorded, the first time after this record of the client's."""
        count = max(0, count - self._interrupts_behind[where])
        if count and self._knows_interrupts and self._counts(after) and not self._ignored.interrupt(*where):
            text = _interrupt(where)
            found = _so_often(text, count) if count == 1 else f"{text}, {times(count)} in all"
            self._differs(What.INTERRUPT_UNEXPECTED, 0, "", found, where, text, after)

    def no_reply(self, request: MessageRecord, seconds: float) -> None:
        """The server has not answered in time."""
        recorded = self.replies.get(request.number)
        asked = self._asked(request.message)
        expected = describe(self._dialect, recorded.message, self._registers, asked).text() if recorded else ""
        found = f"nothing within {seconds:g} s"
        self._differs(What.NO_REPLY, request.number, expected, found, "silence", _title(asked))

    def closed(self, request: MessageRecord | None, why: str, suspects: frozenset[int]) -> None:
        """The server has hung up; `request`: the oldest that it has not answered."""
        asked = self._asked(request.message) if request is not None else None
        text = asked.text() if asked is not None else ""
        number = request.number if request is not None else 0
        self._differs(What.CLOSED, number, f"an answer to {text}" if text else "", why, suspects, _title(asked))

    def garbage(self, why: str) -> None:
        """The server has sent what is no message."""
        self._differs(What.UNEXPECTED, 0, "", why, why, "bytes")

    def unasked(self, reply: Message) -> None:
        """The server has answered what nobody asked."""
        if self._counts(0):
            self._differs(What.UNEXPECTED, 0, "", self._text(reply), reply.payload, self._title(reply))

    @property
    def _is_behind(self) -> bool:
        """Whether the client has done all of a trace that ends there: what else was recorded then nobody knows."""
        return self._unknown_behind != 0 and self.after == self._unknown_behind

    def _judge(self, request: MessageRecord, was: _Reply, now: _Reply, *, same: bool) -> None:
        (expected, _), (found, _) = was, now
        if same and self._counts(request.number):
            self._outcome.compared += found.id == request.message.id
            return
        asked = self._asked(request.message)
        value_only = not expected.failed and not found.failed and self._ignored.value(asked)
        if same or value_only or not self._counts(request.number) or self._ignored.request(asked):
            self._outcome.ignored += 1
            return
        texts = self._reply_text(was, asked), self._reply_text(now, asked)
        self._differs(What.REPLY, request.number, *texts, _said(*now), _title(asked))

    def _reply_text(self, reply: _Reply, asked: DecodedMessage) -> str:
        message, kinds = reply
        text = describe(self._dialect, message, self._registers, asked).text()
        return f"{text} fds[{', '.join(kinds)}]" if kinds else text

    def _counts(self, record: int) -> bool:
        """Whether this record is compared; 0 is what was not recorded, which counts after one that is."""
        return self._compared is None or (record or self.after) in self._compared

    def _recorded_as(self, request: Message) -> MessageRecord | None:
        """The first recorded request that this one can be: the very same, or one to the same place."""
        same = [record for record in self._requests if record.message.command == request.command]
        exact = (record for record in same if record.message.payload == request.payload)
        shape = self._dialect.shapes[command] if (command := self._dialect.command(request.command)) else None
        size = shape.request.size if shape is not None and shape.request is not None else 0
        near = (record for record in same if record.message.payload[:size] == request.payload[:size])
        return next(exact, None) or next(near, None)

    def _differs(
        self, what: What, record: int, expected: str, found: str, evidence: object, place: str, after: int | None = None
    ) -> None:
        after = self.after if after is None else after
        self._outcome.differences.append(Difference(what, record, expected, found, evidence, after, place))

    def _asked(self, message: Message) -> DecodedMessage:
        return describe(self._dialect, message, self._registers)

    def _text(self, message: Message) -> str:
        return self._asked(message).text()

    def _title(self, message: Message) -> str:
        return _title(self._asked(message))


def _said(reply: Message, kinds: tuple[str, ...]) -> tuple[int, bool, int, bytes, tuple[str, ...]]:
    """What of a reply says something."""
    return reply.command, reply.failed, reply.errno, reply.payload, kinds


def _kinds(fds: Sequence[FdInfo]) -> tuple[str, ...]:
    """What descriptors are to whoever gets them: a file in memory is as good as one on disk."""
    return tuple("file" if fd.kind in _FILES else fd.kind.name.lower() for fd in fds)


def _so_often(text: str, count: int) -> str:
    """An interrupt, and how often it came where that is not once."""
    return f"{text}, {times(count)}" if count > 1 else text if count else ""


def _interrupt(where: tuple[int, int]) -> str:
    return f"{name_of(IrqIndex, where[0])} vector {where[1]}"


def _title(asked: DecodedMessage | None) -> str:
    """What a message is about, without values."""
    if asked is None:
        return ""
    where = asked.fields.get("region") if asked.region is not None else None
    words = [asked.command, str(where) if where is not None else "", asked.register]
    if asked.offset is not None and asked.region is not None:
        words.insert(2, f"{asked.offset:#x}")
    return " ".join(filter(None, words))
