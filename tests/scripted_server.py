"""A peer that plays a server from a script: what a test wants said, whether or not a server may say it."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Self

from userdev.transport import Framer, Stream, close_all
from vfio_user.wire import CURRENT, Capabilities, Command, Dialect, Message, encode_version

Answer = Message | bytes | None
Script = Callable[["ScriptedServer", Message], Answer | Iterable[Answer]]
"""What to send for one message of the client: messages, or bytes as they are; None is nothing."""


class ScriptedServer:
    """Runs `script` for each message behind VERSION, on a thread of its own. `client_stream` is the other end."""

    def __init__(
        self,
        script: Script,
        *,
        dialect: Dialect = CURRENT,
        capabilities: Capabilities | None = None,
        minor: int = 0,
        twin: bool = False,
    ) -> None:
        here, there = socket.socketpair()
        self.stream, self.client_stream = Stream(here), Stream(there)
        self.dialect = dialect
        self.received: list[Message] = []
        self.fds: list[int] = []
        self.error: BaseException | None = None
        self._script = script
        self.twin: Stream | None = None
        self._minor = minor
        self._capabilities = capabilities or Capabilities(max_msg_fds=8, write_multiple=True)
        if twin:
            ours, theirs = socket.socketpair()
            self.twin = Stream(ours)
            self.fds.append(theirs.detach())
            self._capabilities = replace(self._capabilities, twin_socket=True, twin_socket_fd_index=0)
        self._framer = Framer(Message)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def number(self, command: Command) -> int:
        return self.dialect.number(command)

    def receive(self) -> Message | None:
        """The client's next message, None at the end of the stream."""
        while (message := self._framer.next()) is None:
            count, fds = self.stream.receive(self._framer.room())
            if not count:
                return None
            self._framer.received(count, fds)
        self.received.append(message)
        self.fds += message.fds
        return message

    def ask(self, command: Command, payload: bytes, *, flags: int = 0, id: int = 0x7777) -> Message:
        """Send a request to the client and wait for its reply; for scripts."""
        self.send(Message(id, self.number(command), flags, 0, payload))
        reply = self.receive()
        assert reply is not None
        return reply

    def send(self, answer: Answer) -> None:
        if isinstance(answer, Message):
            self.stream.send(answer.encode(), answer.fds)
        elif answer is not None:
            self.stream.send(answer)

    def _run(self) -> None:
        try:
            while (message := self.receive()) is not None:
                if message.command == self.number(Command.VERSION):
                    version = encode_version(self.dialect, self._minor, self._capabilities)
                    answers: Answer | Iterable[Answer] = message.reply(version, list(self.fds) if self.twin else [])
                else:
                    answers = self._script(self, message)
                if answers is None or isinstance(answers, Message | bytes):
                    answers = [answers]
                for answer in answers:
                    self.send(answer)
        except ConnectionError:
            pass
        except BaseException as error:  # the test's own thread reports it, in `close`
            self.error = error
        finally:
            self.stream.shutdown()

    def close(self) -> None:
        self.stream.shutdown()
        self._thread.join(60)
        self.stream.close()
        if self.twin:
            self.twin.close()
        self._framer.close()
        close_all(self.fds)
        if self.error is not None:
            raise self.error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
