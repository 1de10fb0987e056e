"""What a replay has asked a server, and which of it a reply is to, be its id right or not."""

from __future__ import annotations

from collections.abc import Iterator

from vfio_user.interposer.trace import MessageRecord
from vfio_user.wire import Message
from vfio_user.wire.open_requests import OpenRequests


class Asked:
    """The requests that the server has not answered, and whose each id was last."""

    def __init__(self) -> None:
        self._open = OpenRequests[MessageRecord]()
        self._owners: dict[int, int] = {}
        """Message ID: the record of the last request that had it."""

    def __iter__(self) -> Iterator[MessageRecord]:
        return iter(self._open)

    def sent(self, request: MessageRecord) -> None:
        """A request has gone out."""
        self._owners[request.message.id] = request.number
        if request.message.wants_reply:
            self._open.sent(request.message.id, request)

    def replied(self, reply: Message) -> MessageRecord | None:
        """What a reply is to, which is open no more: what has its id, or else the oldest of its command, or None."""
        if (request := self._open.replied(reply.id)) is not None:
            return request
        alike = [each for each in self._open if each.message.command == reply.command]
        if not alike:
            return None
        return self._open.replied(min(alike, key=lambda each: each.number).message.id)

    def owner(self, id: int) -> int:
        """The record of the last request that had this id; 0 where none had."""
        return self._owners.get(id, 0)
