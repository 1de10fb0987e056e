"""Requests of the interposer's own, among those of the side it speaks for; neither side sees the other's ids."""

from __future__ import annotations

from dataclasses import replace

from userdev.interposer.errors import PeerLost
from userdev.relay.loop import Future
from vfio_user.interposer.pairing import Pairing
from vfio_user.wire import Message
from vfio_user.wire.open_requests import free_id


class OwnRequests:
    """Those that go one way: to the server in the client's place, or to the client in the server's.

    Ids are taken from the top downwards, where QEMU's and libvfio-user's counters, which start at 0, seldom are. A
    request of the peer that would collide with one of ours still travels, under another id, and its reply gets its
    own back.
    """

    def __init__(self, theirs: Pairing) -> None:
        self._theirs = theirs
        self._waiting: dict[int, Future[Message]] = {}
        self._posted: dict[int, Future[Message]] = {}
        """By the id of requests that want no reply: what a refusal resolves."""
        self._original: dict[int, int] = {}
        self._arrived: list[tuple[Future[Message], Message]] = []
        self._last = 0

    @property
    def active(self) -> bool:
        """Whether messages have to be looked at before they are sent on."""
        return bool(self._waiting or self._posted or self._original)

    def prepare(self, message: Message) -> tuple[Message, Future[Message]]:
        """`message` under an id that is free, and what its reply will resolve."""
        reply: Future[Message] = Future()
        message = replace(message, id=self._free_id())
        self._waiting[message.id] = reply
        return message, reply

    def post(self) -> tuple[int, Future[Message]]:
        """An id for requests that want no reply, and what the first refusal will resolve: peers tell those all the
        same. `forget` ends it.
        """
        id = self._free_id()
        refused = self._posted[id] = Future()
        return id, refused

    def forget(self, id: int) -> None:
        """Forget the requests that were posted under this id: nothing more can come for them."""
        del self._posted[id]

    def outgoing(self, request: Message) -> Message:
        """The peer's own request as it may travel: itself, unless one of ours has its id, or one that travels under
        another than its own.
        """
        taken = request.id in self._waiting or request.id in self._posted or request.id in self._original
        if not request.wants_reply or not taken:
            return request
        id = self._free_id()
        self._original[id] = request.id
        return replace(request, id=id)

    def incoming(self, reply: Message) -> Message | None:
        """The reply as the peer has to see it; None where it is one of ours, see `deliver_arrived`."""
        if (waiting := self._posted.get(reply.id) or self._waiting.pop(reply.id, None)) is not None:
            self._arrived.append((waiting, reply))
            return None
        if (original := self._original.pop(reply.id, None)) is not None:
            return replace(reply, id=original)
        return reply

    def as_asked(self, request: Message) -> Message:
        """A request of the peer's that has travelled, and will not be answered, as the peer knows it."""
        original = self._original.pop(request.id, None)
        return request if original is None else replace(request, id=original)

    def deliver_arrived(self) -> None:
        """Hand replies of ours to whoever asked: apart from `incoming`, so that the books are kept before."""
        arrived, self._arrived = self._arrived, []
        for waiting, reply in arrived:
            waiting.resolve(reply)

    def give_up(self, id: int) -> None:
        """Nobody waits for this reply any more, but it must still not reach the peer."""
        if id in self._waiting:
            self._waiting[id] = Future()

    def lose(self, why: str) -> None:
        """The other side is gone: nothing of ours will be answered. What the peer asked may yet be sent again."""
        waiting, self._waiting = self._waiting, {}
        for reply in waiting.values():
            reply.fail(PeerLost(why))

    def _free_id(self) -> int:
        id = free_id(self._last, self._theirs, self._waiting, self._posted, self._original, step=-1)
        if id is None:
            raise PeerLost("65,536 requests are in flight: no id is free")
        self._last = id
        return id
