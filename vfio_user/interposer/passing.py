"""A message of vfio-user's on its way through a session, and who is shown what happens in one."""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

from userdev.descriptors import duplicates
from userdev.interposer import passing
from vfio_user.wire import Message

Passing = passing.Passing[Message]
Stage = passing.Stage[Message]


class SessionWatcher(Protocol):
    """Is shown what happens in a session. There may be several; each is told, in the order they began to watch."""

    def passed(self, passing: Passing) -> None:
        """A request has been sent on, or a reply has come."""

    def server_gone(self) -> bool:
        """The server is gone; True keeps the session, and the client, waiting for `Session.replace_server`."""

    def closed(self) -> None:
        """The session has ended."""


def copy_message(message: Message) -> Message:
    """The message with descriptors of its own."""
    return replace(message, fds=duplicates(message.fds))
