"""What a server does wrong with its requests: faults of which the table of requirements is made (`table`)."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import replace

from tests.conformance_target import Fault, Proceed, Reply
from userdev.errors import ProtocolError
from userdev.transport import close_all
from vfio_user.server.session import Session
from vfio_user.wire import CURRENT, NO_REPLY, Command, Message
from vfio_user.wire.constants import FEATURE_MASK, DmaFlags, Feature, RegionIndex
from vfio_user.wire.layouts import DMA_MAP, DMA_UNMAP, FEATURE, REGION_ACCESS, VERSION

Edit = Callable[[bytes], bytes]
When = Callable[[bytes], bool]
"""Whether a request, by its payload, is meant."""
Act = Callable[[Session, Message], object]
_VERSION = CURRENT.number(Command.VERSION)


def always(request: bytes) -> bool:
    return True


class _Meant(Fault):
    """Something with requests of one command, all of them or some."""

    def __init__(self, command: Command, when: When = always) -> None:
        self._command, self._when = command, when

    def is_meant(self, command: Command, message: Message) -> bool:
        return command is self._command and self._when(message.payload)


class Says(_Meant):
    """Every answer to a command says something else."""

    def __init__(self, command: Command, edit: Edit, when: When = always) -> None:
        super().__init__(command, when)
        self._edit = edit

    def command(self, session: Session, command: Command, message: Message, proceed: Proceed) -> Reply:
        is_meant = self.is_meant(command, message)
        payload, fds = proceed(command, message)
        return (self._edit(payload) if is_meant else payload), fds


class LastFirst(Fault):
    """Of two writes with No_reply behind each other the second is done first."""

    def __init__(self) -> None:
        self._held: Message | None = None

    def command(self, session: Session, command: Command, message: Message, proceed: Proceed) -> Reply:
        held, self._held = self._held, None
        is_posted = command is Command.REGION_WRITE and bool(message.flags & NO_REPLY)
        if is_posted and held is None:
            self._held = message
            return b"", []
        if held is None:
            return proceed(command, message)
        if is_posted:
            answer = proceed(command, message)
            proceed(Command.REGION_WRITE, held)
            return answer
        proceed(Command.REGION_WRITE, held)
        return proceed(command, message)


class Gives(_Meant):
    """An answer comes with other descriptors."""

    def __init__(self, command: Command, fds: Callable[[Session], list[int]], when: When = always) -> None:
        super().__init__(command, when)
        self._fds = fds

    def command(self, session: Session, command: Command, message: Message, proceed: Proceed) -> Reply:
        is_meant = self.is_meant(command, message)
        payload, fds = proceed(command, message)
        return payload, self._fds(session) if is_meant else fds


class Keeps(_Meant):
    """Some requests of a command are answered, and not done."""

    def __init__(self, command: Command, when: When = always, answer: Edit = lambda request: b"") -> None:
        super().__init__(command, when)
        self._answer = answer

    def command(self, session: Session, command: Command, message: Message, proceed: Proceed) -> Reply:
        if self.is_meant(command, message):
            return self._answer(message.payload), []
        return proceed(command, message)


class Refuses(_Meant):
    """Some requests of a command are refused, with this number."""

    def __init__(self, command: Command, when: When = always, number: int = errno.EIO) -> None:
        super().__init__(command, when)
        self._number = number

    def command(self, session: Session, command: Command, message: Message, proceed: Proceed) -> Reply:
        if self.is_meant(command, message):
            raise ProtocolError("on purpose", self._number)
        return proceed(command, message)


class Takes(_Meant):
    """What is wrong with requests of a command is not found, and they are answered as if they were done."""

    def __init__(self, command: Command, when: When = always, answer: Edit = lambda request: request) -> None:
        super().__init__(command, when)
        self._answer = answer

    def command(self, session: Session, command: Command, message: Message, proceed: Proceed) -> Reply:
        try:
            return proceed(command, message)
        except ProtocolError:
            if self.is_meant(command, message):
                return self._answer(message.payload), []
            raise


class Hears(_Meant):
    """Something else is done than what some requests of a command say."""

    def __init__(self, command: Command, edit: Edit, when: When = always) -> None:
        super().__init__(command, when)
        self._edit = edit

    def command(self, session: Session, command: Command, message: Message, proceed: Proceed) -> Reply:
        if self.is_meant(command, message):
            message.payload = self._edit(message.payload)
        return proceed(command, message)


class Behind(_Meant):
    """When a request is done something else is, too."""

    def __init__(self, command: Command, does: Act, when: When = always) -> None:
        super().__init__(command, when)
        self._does = does

    def command(self, session: Session, command: Command, message: Message, proceed: Proceed) -> Reply:
        reply = proceed(command, message)
        if self.is_meant(command, message):
            self._does(session, message)
        return reply


class BehindRefusal(_Meant):
    """A request that is refused has done something."""

    def __init__(self, command: Command, does: Act, when: When = always) -> None:
        super().__init__(command, when)
        self._does = does

    def command(self, session: Session, command: Command, message: Message, proceed: Proceed) -> Reply:
        try:
            return proceed(command, message)
        except ProtocolError:
            if self.is_meant(command, message):
                self._does(session, message)
            raise


class Changes(Fault):
    """A request that is refused has changed a register of config space: the command register at 4, for one."""

    def __init__(self, at: int) -> None:
        self._place = REGION_ACCESS.pack(at, RegionIndex.CONFIG, 1)

    def command(self, session: Session, command: Command, message: Message, proceed: Proceed) -> Reply:
        try:
            return proceed(command, message)
        except ProtocolError:
            read, _ = proceed(Command.REGION_READ, replace(message, payload=self._place))
            written = self._place + bytes((read[-1] ^ 2,))
            proceed(Command.REGION_WRITE, replace(message, payload=written))
            raise


class Sends(Fault):
    """The header of a good answer is another."""

    def __init__(self, edit: Callable[[Message], Message]) -> None:
        self._edit = edit

    def sent(self, message: Message) -> list[Message]:
        return [self._edit(message) if message.command != _VERSION else message]


class SaysVersion(Fault):
    """VERSION is answered with this."""

    def __init__(self, text: bytes, minor: int = 0, fds: int = 0, major: int = 0) -> None:
        self._payload, self._fds = VERSION.pack(major, minor, tail=text), fds

    def sent(self, message: Message) -> list[Message]:
        if message.command != _VERSION:
            return [message]
        return [replace(message, payload=self._payload, fds=[os.memfd_create("unasked") for _ in range(self._fds)])]


class RefusesWith(Fault):
    """Every refusal has this number."""

    def __init__(self, number: int) -> None:
        self._number = number

    def command(self, session: Session, command: Command, message: Message, proceed: Proceed) -> Reply:
        try:
            return proceed(command, message)
        except ProtocolError as error:
            raise ProtocolError(str(error), self._number) from error


class AnswersPosted(_Meant):
    """What wants no reply has one."""

    def command(self, session: Session, command: Command, message: Message, proceed: Proceed) -> Reply:
        reply = proceed(command, message)
        if self.is_meant(command, message) and message.flags & NO_REPLY:
            session.connection.send(message.reply())
        return reply


class ForgetsItsPlace(Fault):
    """After a reset it says that it is another."""

    def __init__(self) -> None:
        self._was_reset = False

    def command(self, session: Session, command: Command, message: Message, proceed: Proceed) -> Reply:
        payload, fds = proceed(command, message)
        self._was_reset |= command is Command.DEVICE_RESET
        return (
            payload[:12] + b"\x09" + payload[13:] if command is Command.GET_INFO and self._was_reset else payload
        ), fds


class IsAnotherForEach(Fault):
    """Every client is told of one interrupt type more than the one before."""

    def __init__(self) -> None:
        self._seen: list[Session] = []

    def command(self, session: Session, command: Command, message: Message, proceed: Proceed) -> Reply:
        if session not in self._seen:
            self._seen.append(session)
        payload, fds = proceed(command, message)
        return (
            payload[:12] + bytes([4 + len(self._seen)]) + payload[13:] if command is Command.GET_INFO else payload
        ), fds


class TakesItsIds(Fault):
    """What is written to the ids is read back."""

    def __init__(self) -> None:
        self._written = b""
        self._place = REGION_ACCESS.pack(0, RegionIndex.CONFIG, 4)

    def command(self, session: Session, command: Command, message: Message, proceed: Proceed) -> Reply:
        payload, fds = proceed(command, message)
        if message.payload[:16] == self._place:
            if command is Command.REGION_WRITE:
                self._written = message.payload[16:]
            elif command is Command.REGION_READ and self._written:
                payload = payload[:16] + self._written
        return payload, fds


class MapsWhatItRefuses(Fault):
    """Without its descriptor."""

    def command(self, session: Session, command: Command, message: Message, proceed: Proceed) -> Reply:
        try:
            return proceed(command, message)
        except ProtocolError:
            if command is Command.DMA_MAP and len(message.payload) == DMA_MAP.size:
                asked = DMA_MAP.unpack(message.payload)
                session.function.dma.map(asked.addr, asked.size, 3)
            raise


class MapsWritable(Fault):
    """What may only be read is mapped to be written, too."""

    def command(self, session: Session, command: Command, message: Message, proceed: Proceed) -> Reply:
        if command is Command.DMA_MAP and len(message.payload) == DMA_MAP.size:
            asked = DMA_MAP.unpack(message.payload)
            message.payload = DMA_MAP.pack(*asked._replace(flags=asked.flags | DmaFlags.WRITE))
        return proceed(command, message)


class DropsDescriptors(_Meant):
    """What could be mapped is asked for by message."""

    def command(self, session: Session, command: Command, message: Message, proceed: Proceed) -> Reply:
        if self.is_meant(command, message):
            fds, message.fds = message.fds, []
            close_all(fds)
        return proceed(command, message)


class KeepsMappings(Fault):
    """Unmaps what it had no descriptor of, and says that it has unmapped the rest."""

    mapped = False

    def command(self, session: Session, command: Command, message: Message, proceed: Proceed) -> Reply:
        if command is Command.DMA_MAP:
            self.mapped = bool(message.fds)
        if command is Command.DMA_UNMAP and self.mapped:
            return message.payload[: DMA_UNMAP.size], []
        return proceed(command, message)


class HasNoMigration(Fault):
    """It says so of the feature of that name as it has to, and of others otherwise."""

    def command(self, session: Session, command: Command, message: Message, proceed: Proceed) -> Reply:
        if command is Command.DEVICE_FEATURE:
            feature = FEATURE.unpack(message.payload).flags & FEATURE_MASK
            raise ProtocolError("there is none", errno.EINVAL if feature == Feature.MIGRATION else errno.EIO)
        return proceed(command, message)
