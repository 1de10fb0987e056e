"""What a front-end says to a back-end of ours in this process, message by message."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Condition
from typing import Any, NamedTuple

import pytest

from vhost_user.backend import Session
from vhost_user.wire import FrontEndRequest, Message, decode_request


class Said(NamedTuple):
    """One message: whether it asks for an answer, and how many descriptors it has."""

    name: str
    value: Any
    needs_reply: bool
    fds: int


class Heard(list[Said]):
    """What was said so far, and dealt with."""

    def __init__(self) -> None:
        super().__init__()
        self._more = Condition()

    @property
    def names(self) -> list[str]:
        """The messages by name."""
        return [said.name for said in self]

    def add(self, said: Said) -> None:
        """One more has been dealt with."""
        with self._more:
            self.append(said)
            self._more.notify_all()

    def wait(self, wanted: Callable[[Said], bool], seconds: float) -> bool:
        """Whether something like that is said, in so many seconds."""
        with self._more:
            return self._more.wait_for(lambda: any(map(wanted, self)), seconds)


@contextmanager
def listening() -> Iterator[Heard]:
    """All that is said from now on, by whichever front-end."""
    heard = Heard()
    usual = Session._handle

    def handle(session: Session, message: Message) -> None:
        request, value = decode_request(FrontEndRequest, message)
        said = Said(request.name, value, message.needs_reply, len(message.fds))
        usual(session, message)
        heard.add(said)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Session, "_handle", handle)
        yield heard
