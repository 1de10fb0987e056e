"""What a front-end says to a back-end of ours in this process, message by message."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
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


@contextmanager
def listening() -> Iterator[list[Said]]:
    """All that is said from now on, by whichever front-end."""
    heard: list[Said] = []
    usual = Session._handle

    def handle(session: Session, message: Message) -> None:
        request, value = decode_request(FrontEndRequest, message)
        heard.append(Said(request.name, value, message.needs_reply, len(message.fds)))
        usual(session, message)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Session, "_handle", handle)
        yield heard


def names(heard: list[Said]) -> list[str]:
    """The messages by name."""
    return [said.name for said in heard]
