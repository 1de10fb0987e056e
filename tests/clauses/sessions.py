"""What a server does wrong with its connections and headers: sessions of which the table of requirements is made."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable

from userdev.errors import ProtocolError
from userdev.transport import BadFrame, Framer
from vfio_user.server.connection import ClientGone
from vfio_user.server.session import Session
from vfio_user.wire import ERROR, HEADER, NO_REPLY, Command, Message
from vfio_user.wire.layouts import REGION_ACCESS


class NoShortcut(Session):
    """Has every request go where these faults are."""

    def _refresh_registers(self) -> None:
        self._registers.clear()


def takes_first(edit: Callable[[Message], None]) -> type[Session]:
    """What comes first is changed before it is looked at."""

    class TakesFirst(NoShortcut):
        def _negotiate(self) -> bool:
            take = self.connection.next

            def taken() -> Message | None:
                first = take()
                if first is not None:
                    self.connection.next = take  # type: ignore[method-assign]
                    edit(first)
                return first

            self.connection.next = taken  # type: ignore[method-assign]
            return super()._negotiate()

    return TakesFirst


class _OfTheFirst(Framer[Message]):
    """Descriptors belong to the first byte that they came with, and not to the last."""

    __slots__ = ()

    def received(self, count: int, fds: Iterable[int] = ()) -> None:
        super().received(1, fds)
        super().received(count - 1)


class GivesDescriptorsToTheFirst(NoShortcut):
    """Of the messages that it receives at once, whichever of them they came with."""

    def _negotiate(self) -> bool:
        self.connection.framer.__class__ = _OfTheFirst
        return super()._negotiate()


class StaysOpen(Session):
    """Refuses what is no VERSION as it has to, and keeps the connection."""

    def _negotiate(self) -> bool:
        try:
            agreed = super()._negotiate()
        except ClientGone:
            agreed = False
        while not agreed and self.connection.receive():
            self.connection.framer.start = self.connection.framer.end
        return agreed


class HangsUp(Session):
    """On whoever comes."""

    def _negotiate(self) -> bool:
        while self.connection.next() is None:
            if not self.connection.receive():
                break
        return False


def serves(clients: int) -> type[Session]:
    """So many clients are served, and nobody behind them."""

    class ServesSome(Session):
        served = 0

        def run(self) -> None:
            if ServesSome.served == clients:
                self.connection.close()
                return
            ServesSome.served += 1
            super().run()

    return ServesSome


def minds(*, flags: bool) -> type[Session]:
    """Flags that mean nothing in a request are refused, or else an errno."""

    class Minds(NoShortcut):
        def _command(self, message: Message) -> Command:
            if message.flags & ~(NO_REPLY | 0xF) if flags else message.errno:
                raise ProtocolError("what is that for?")
            return super()._command(message)

    return Minds


class TakesAnyCommand(NoShortcut):
    """What is no command reads a region."""

    def _command(self, message: Message) -> Command:
        try:
            return super()._command(message)
        except ProtocolError:
            return Command.REGION_READ


class RefusesCommandsWrongly(NoShortcut):
    """With another number than the rules have."""

    def _command(self, message: Message) -> Command:
        try:
            return super()._command(message)
        except ProtocolError as error:
            raise ProtocolError(str(error), errno.EIO) from error


class MarksItsRefusals(NoShortcut):
    """By a flag that there is not."""

    def failed(self, message: Message, error: BaseException) -> None:
        super().failed(message, error)
        self.connection.out[-8] |= 0x40  # the flags, before the errno, of a reply that is a header


class RefusesWithoutTheBit(NoShortcut):
    """By an errno alone."""

    def failed(self, message: Message, error: BaseException) -> None:
        super().failed(message, error)
        if message.wants_reply:
            self.connection.out[-8] &= ~ERROR & 0xFF  # the flags, before the errno, of a reply that is a header


class NeverRefuses(RefusesWithoutTheBit):
    """By its replies: they say that all is done."""

    def failed(self, message: Message, error: BaseException) -> None:
        super().failed(message, error)
        if message.wants_reply:
            self.connection.out[-4:] = bytes(4)  # the errno


class NamesNoErrno(NoShortcut):
    """Where it refuses."""

    def failed(self, message: Message, error: BaseException) -> None:
        super().failed(message, error)
        self.connection.out[-4:] = bytes(4)  # the errno of a reply that is a header


class ExplainsItsRefusals(NoShortcut):
    """In bytes behind their headers."""

    def failed(self, message: Message, error: BaseException) -> None:
        super().failed(message, error)
        self.connection.out[-12] += 4  # the size of a reply that is a header
        self.connection.out += b"why?"


class AnswersReplies(NoShortcut):
    def _handle(self, message: Message) -> None:
        if message.is_reply:
            self.connection.send(message.error(errno.EIO))
        else:
            super()._handle(message)


class FramesWrongly(NoShortcut):
    """What cannot be a message is refused with another number than the rules have."""

    def _negotiate(self) -> bool:
        framer = self.connection.framer

        def taken() -> Message | None:
            try:
                return framer.next()
            except BadFrame as bad:
                if bad.message is not None:
                    self.connection.send(bad.message.error(errno.EIO))
                    self.connection.flush()
                raise ClientGone("on purpose") from None

        self.connection.next = taken  # type: ignore[method-assign]
        return super()._negotiate()


class TakesBodiesInOneReceive(NoShortcut):
    """What one receive brings behind a header is the payload, however little that is."""

    def _negotiate(self) -> bool:
        framer, receive = self.connection.framer, self.connection.receive

        def received(end: float | None = None) -> bool:
            is_headed = framer.end - framer.start >= HEADER.size
            is_open = receive(end)
            if is_headed:
                id, command, size, flags, number = HEADER.unpack_from(framer.buffer, framer.start)
                size = min(size, framer.end - framer.start)
                HEADER.pack_into(framer.buffer, framer.start, id, command, size, flags, number)
            return is_open

        self.connection.receive = received  # type: ignore[method-assign]
        return super()._negotiate()


class DoesHalfAWrite(Session):
    """What has come of a write when its client goes away is done."""

    def _end(self, *, attached: bool) -> None:
        framer = self.connection.framer
        came = bytes(framer.buffer[framer.start : framer.end])[16:]
        if len(came) > REGION_ACCESS.size:
            self.function.config.set(REGION_ACCESS.unpack(came).offset, 1, came[REGION_ACCESS.size])
        super()._end(attached=attached)
