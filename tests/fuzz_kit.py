"""What tests of both fuzzers share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

from tests.conformance_target import Fault, Proceed, Reply
from userdev.fuzz import Find, Summary, drawing
from vfio_user.server.session import Session
from vfio_user.wire import Command, Message


@contextmanager
def drawn_at_once(number: int) -> Iterator[None]:
    """Have no more sequences drawn than are looked at: 25 of them take half a second."""
    with patch.object(drawing, "AT_ONCE", number):
        yield


class Quiet:
    """Listens, and keeps what it hears."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def played(self, summary: Summary) -> None:
        self.heard.append("played")

    def found(self, find: Find) -> None:
        self.heard.append(f"found {find.cause}")

    def reducing(self, left: int, tries: int) -> None:
        self.heard.append(f"{left} left")

    def kept(self, find: Find, path: Path | None) -> None:
        self.heard.append(f"kept {find.cause}")


class Switched(Fault):
    """Does right until the fuzzer knows the server, which takes it hundreds of requests; then whatever `now` does."""

    def __init__(self) -> None:
        self.now = Fault()

    def command(self, session: Session, command: Command, message: Message, proceed: Proceed) -> Reply:
        return self.now.command(session, command, message, proceed)

    def sent(self, message: Message) -> list[Message]:
        return self.now.sent(message)
