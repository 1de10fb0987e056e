"""Messages to a back-end, and its answers, each with a deadline."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

from userdev.errors import ProtocolError
from userdev.process import Deadline
from userdev.transport import DescriptorsLost, Framer, Stream, close_all
from vhost_user.frontend.errors import BackEndError, Disconnected, NoAnswer, NotOffered, Refused, WrongAnswer
from vhost_user.wire import (
    MAX_FDS,
    FrontEndRequest,
    Message,
    Negotiated,
    ProtocolFeature,
    VirtioFeature,
    decode_reply,
    encode_request,
)

R = FrontEndRequest


class Connection:
    """One connection to a back-end. What is negotiated decides which messages there are, and which are answered."""

    def __init__(self, stream: Stream, *, timeout: float) -> None:
        """Take over a connected stream; `timeout` is what each answer has, in seconds."""
        self.timeout = timeout
        self.negotiated = Negotiated()
        self._take_over(stream)

    def _take_over(self, stream: Stream) -> None:
        self.stream = stream
        self._framer: Framer[Message] = Framer(Message, max_fds=MAX_FDS)

    @property
    def has_more(self) -> bool:
        """Whether more was received than was taken, which does not show on the descriptor any more."""
        return self._framer.pending > 0

    def has(self, feature: ProtocolFeature | VirtioFeature) -> bool:
        """Whether all of this was negotiated."""
        if isinstance(feature, ProtocolFeature):
            return feature in self.negotiated.protocol_features
        return feature in self.negotiated.features

    def need(self, feature: ProtocolFeature | VirtioFeature) -> None:
        """Insist on it.

        Raises:
            NotOffered: it was not negotiated.
        """
        if not self.has(feature):
            raise NotOffered(f"{feature.name} was not negotiated")

    def send(
        self, request: FrontEndRequest, value: Any = None, fds: Sequence[int] = (), *, need_reply: bool = False
    ) -> None:
        """Say something; descriptors stay the caller's.

        Raises:
            BackEndError: the back-end has gone, or takes nothing.
        """
        self.send_message(encode_request(request, value, list(fds), need_reply=need_reply))

    def send_message(self, message: Message) -> None:
        """Say anything, right or wrong; its descriptors stay the caller's.

        Raises:
            BackEndError: the back-end has gone, or takes nothing.
        """
        self.send_bytes(message.encode(), message.fds)

    def send_bytes(self, data: bytes, fds: Sequence[int] = ()) -> None:
        """Say anything at all.

        Raises:
            BackEndError: the back-end has gone, or takes nothing.
        """
        try:
            self.stream.socket.settimeout(self.timeout)
            self.stream.send(data, fds)
        except TimeoutError:
            self.stream.close()
            raise NoAnswer(f"the back-end takes no message for {self.timeout:g} s") from None
        except OSError as error:
            raise Disconnected(f"the back-end has ended the connection: {error.strerror}") from None

    def receive(self, what: str = "something") -> Message:
        """The next message of the back-end's; its descriptors are the caller's. `what` is that which it answers.

        Raises:
            Disconnected, NoAnswer, WrongAnswer: there is none.
        """
        deadline = Deadline(self.timeout)
        try:
            while (message := self._framer.next()) is None:
                self._receive_more(deadline, what)
        except ProtocolError as error:
            self.stream.close()
            raise WrongAnswer(f"what comes in answer to {what} is no message: {error}") from None
        return message

    def _receive_more(self, deadline: Deadline, what: str) -> None:
        try:
            self.stream.socket.settimeout(max(deadline.remaining, 1e-6))
            count, fds = self.stream.receive(self._framer.room())
        except DescriptorsLost as lost:
            self._framer.lost(lost.count)
            return
        except TimeoutError:
            self.stream.close()
            raise NoAnswer(f"the back-end does not answer {what} within {deadline.seconds:g} s").at(what) from None
        except OSError as error:
            said = f"the back-end has ended the connection at {what}: {error.strerror}"
            raise Disconnected(said).at(what) from None
        self._framer.received(count, fds)
        if not count:
            raise Disconnected(f"the back-end has ended the connection at {what}").at(what)

    def ask(
        self, request: FrontEndRequest, value: Any = None, fds: Sequence[int] = (), *, need_reply: bool = False
    ) -> Any:
        """Say something that is answered; the payload of the answer. Descriptors that come with it are closed.

        Raises:
            BackEndError: there is no answer, or a wrong one.
        """
        said, given = self.ask_for_fds(request, value, fds, need_reply=need_reply)
        close_all(given)
        return said

    def ask_for_fds(
        self, request: FrontEndRequest, value: Any = None, fds: Sequence[int] = (), *, need_reply: bool = False
    ) -> tuple[Any, list[int]]:
        """As `ask`, with the descriptors of the answer, which are the caller's."""
        self.send(request, value, fds, need_reply=need_reply)
        message = self.receive(request.name)
        try:
            return decode_reply(request, message, self.negotiated), message.fds
        except ProtocolError as error:
            close_all(message.fds)
            raise WrongAnswer(f"a wrong answer of the back-end: {error}") from None

    def tell(self, request: FrontEndRequest, value: Any = None, fds: Sequence[int] = ()) -> int:
        """Say something; the number that it is acknowledged with, 0 for success. Without REPLY_ACK that is always 0.

        Raises:
            BackEndError: there is no answer, or a wrong one.
        """
        if self.has(ProtocolFeature.REPLY_ACK):
            answer: int = self.ask(request, value, fds, need_reply=True)
            return answer
        self.send(request, value, fds)
        try:
            self.settle()
        except BackEndError as error:
            error.request = request.name
            raise
        return 0

    def do(self, request: FrontEndRequest, value: Any = None, fds: Sequence[int] = ()) -> None:
        """Say something that is to succeed.

        Raises:
            Refused: it was acknowledged with an error.
            BackEndError: there is no answer, or a wrong one.
        """
        if error := self.tell(request, value, fds):
            raise Refused(request.name, error)

    def settle(self) -> None:
        """Wait until everything that was said is done: messages are handled in order.

        Raises:
            BackEndError: the back-end has gone meanwhile, or does not come to that.
        """
        try:
            self.ask(R.GET_FEATURES)
        except BackEndError as error:
            error.request = ""  # whatever was said before
            raise

    def close(self) -> None:
        """End the connection without a word, as libblkio does; idempotent."""
        self._framer.close()
        self.stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
