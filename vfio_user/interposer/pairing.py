"""What the interposer keeps of requests on their way, until their replies come."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from userdev.transport import close_all
from vfio_user.wire import Message
from vfio_user.wire.open_requests import OpenRequests

LIMIT = 64
"""Requests of one id remembered at most: a peer that is never answered must not fill the memory."""


class PendingRequest(NamedTuple):
    """A request on its way."""

    number: int
    """Of its record in the trace; 0 without one."""
    command: int
    message: Message | None
    """The request, where something needs it once its reply is there; its descriptors are the pairing's."""
    stale: bool = False
    """Asked by a server that has been replaced: the reply is for nobody."""
    answered: tuple[Callable[[Message | None], None], ...] = ()
    """Who is told of the reply: see `Passing.answered`."""


class Pairing(OpenRequests[PendingRequest]):
    """The requests of one direction that have no reply yet."""

    def __init__(self) -> None:
        super().__init__(LIMIT, _forget)
        self._had_stale = False

    @property
    def has_stale(self) -> bool:
        """Some were asked by a server that has been replaced."""
        self._had_stale = self._had_stale and any(request.stale for request in self)
        return self._had_stale

    def make_stale(self) -> None:
        """Whoever asked is gone."""
        self.change(lambda request: request._replace(stale=True))
        self._had_stale = True

    def close(self) -> None:
        """Forget all of them. Nobody is told: the server is gone, and another may yet be asked the same."""
        for request in self:
            _let_go(request)
        self.clear()


def _forget(request: PendingRequest) -> None:
    _let_go(request)
    for told in request.answered:
        told(None)


def _let_go(request: PendingRequest) -> None:
    if request.message is not None:
        close_all(request.message.fds)
