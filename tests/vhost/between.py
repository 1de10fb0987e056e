"""A session of vhost-user's on the test bench: scripted front-end and back-end on socketpairs."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.interposer_bench import AnyPeer, SessionBench
from userdev.trace import TraceWriter
from userdev.transport import Stream, close_all
from vhost_user.interposer.conversation import FrontEndSession
from vhost_user.interposer.traces import NAME
from vhost_user.wire import (
    BackEndRequest,
    FrontEndRequest,
    Message,
    ProtocolFeature,
    VirtioFeature,
    acknowledge,
    encode_reply,
    encode_request,
)

R, B, P, V = FrontEndRequest, BackEndRequest, ProtocolFeature, VirtioFeature
Peer = AnyPeer[Message]


class Between(SessionBench):
    """Front-end, session and back-end in one thread. `until` turns the loop."""

    session: FrontEndSession
    most_idle = 100

    def __init__(self, trace: Path | None = None) -> None:
        super().__init__()
        self.trace = TraceWriter(trace, NAME, {"program": "tests"}) if trace is not None else None
        if self.trace is not None:
            self.loop.at_end_of_turn(self.trace.flush)
        (self.front_end, near), (self.back_end, far) = self.pair(), self.pair()
        self.session = FrontEndSession(self.loop, Stream(near), Stream(far), trace=self.trace, on_end=self._end)
        self.session.start()

    def pair(self) -> tuple[Peer, socket.socket]:
        """A peer, and the socket at its other end."""
        far, near = socket.socketpair()
        return AnyPeer(self, far, Message), near

    def tell(self, request: FrontEndRequest, value: Any = None, fds: list[int] | None = None) -> Message:
        """The front-end says something that is not answered; returns it as the back-end got it, descriptors closed."""
        self.front_end.send(encode_request(request, value, fds))
        arrived = self.back_end.receive()
        close_all(arrived.fds)
        return arrived

    def ask(self, request: FrontEndRequest, value: Any = None, answer: Any = None) -> Message:
        """The front-end asks, the back-end answers; returns the reply as the front-end got it."""
        self.front_end.send(encode_request(request, value))
        self.back_end.receive()
        self.back_end.send(encode_reply(request, answer))
        return self.front_end.receive()

    def acknowledged(self, request: FrontEndRequest, value: Any = None, error: int = 0) -> Message:
        """The same of a request that asks for an acknowledgement."""
        self.front_end.send(encode_request(request, value, need_reply=True))
        self.back_end.receive()
        self.back_end.send(acknowledge(request, error))
        return self.front_end.receive()

    def negotiate(self, features: VirtioFeature = V.VERSION_1 | V.PROTOCOL_FEATURES) -> None:
        """Agree on these features, REPLY_ACK, CONFIG and the back-end's channel."""
        agreed = P.REPLY_ACK | P.CONFIG | P.BACKEND_REQ
        self.ask(R.GET_FEATURES, answer=features)
        self.ask(R.GET_PROTOCOL_FEATURES, answer=agreed)
        self.tell(R.SET_PROTOCOL_FEATURES, agreed)
        self.tell(R.SET_FEATURES, features)

    def start_ring(self, index: int = 0) -> None:
        """Start a ring, as far as an interposer sees it."""
        kick = os.eventfd(0)
        self.tell(R.SET_VRING_KICK, index, [kick])
        os.close(kick)

    def open_channel(self) -> tuple[Peer, Peer]:
        """Give the back-end its channel; returns the front-end's end and the back-end's."""
        front, theirs = socket.socketpair()
        self.front_end.send(encode_request(R.SET_BACKEND_REQ_FD, None, [theirs.fileno()]))
        theirs.close()
        [given] = self.back_end.receive().fds
        return AnyPeer(self, front, Message), AnyPeer(self, socket.socket(fileno=given), Message)

    def peers(self) -> list[AnyPeer[Any]]:
        return [self.front_end, self.back_end]


@contextmanager
def channel(between: Between) -> Iterator[tuple[Peer, Peer]]:
    """A channel of the back-end's: the front-end's end, and the back-end's."""
    ends = between.open_channel()
    try:
        yield ends
    finally:
        for end in ends:
            end.close()
