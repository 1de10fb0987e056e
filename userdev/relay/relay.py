"""The two peers of a conversation: what epoll is asked of their connections, and when the session is over."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, Protocol

from userdev.relay.direction import Direction
from userdev.relay.loop import GONE, READ, WRITE, Loop
from userdev.relay.outlet import Outlet
from userdev.relay.pump import HC, MC, Codec, H, M, Pump, PumpOwner
from userdev.transport import Stream


@dataclass
class Peer(Generic[M, H]):
    """One of the two: its connection, and what goes to it and comes from it."""

    name: str
    stream: Stream
    outlet: Outlet
    pump: Pump[M, H]
    """Takes what this peer sends to the other."""
    events: int = -1
    """What epoll is asked for; -1: it does not know of this peer."""
    gone: bool = False


class RelayOwner(PumpOwner[MC, HC], Protocol[MC, HC]):
    """The session, as its relay sees it."""

    def close(self) -> None:
        """Both peers have gone: nothing is left to relay."""


class Relay(Generic[M, H]):
    """Reads each peer while the other takes what was read."""

    def __init__(
        self, codec: Codec[M, H], loop: Loop, client: Stream, server: Stream, session: RelayOwner[M, H]
    ) -> None:
        to_client, to_server = Outlet(client), Outlet(server)
        self.client = Peer("client", client, to_client, Pump(codec, Direction.TO_SERVER, client, to_server, session))
        self.server = Peer("server", server, to_server, Pump(codec, Direction.TO_CLIENT, server, to_client, session))
        self.server_lost = False
        """The server is gone, and the session waits for another."""
        self._loop = loop
        self._session = session
        self._open = False
        for stream in (client, server):
            stream.socket.setblocking(False)

    def start(self) -> None:
        """Read both peers from now on."""
        self._open = True
        self.update()

    def close(self) -> None:
        """Both peers see their connection closed."""
        self._open = False
        for peer in (self.client, self.server):
            self._loop.forget(peer.stream.fileno())
            peer.pump.close()
            peer.outlet.clear()
            peer.stream.shutdown()
            peer.stream.close()

    def towards(self, direction: Direction) -> Peer[M, H]:
        """The peer that messages of this direction go to."""
        return self.server if direction is Direction.TO_SERVER else self.client

    def source(self, direction: Direction) -> Peer[M, H]:
        """The peer that messages of this direction come from."""
        return self.client if direction is Direction.TO_SERVER else self.server

    def lose_server(self) -> None:
        """The server is gone or about to be replaced: read it no longer."""
        server = self.server
        self.server_lost = True
        self._loop.forget(server.stream.fileno())
        server.events, server.gone = -1, True
        server.stream.shutdown()
        server.outlet.clear()

    def replace_server(self, stream: Stream) -> None:
        """Go on with another. The client's unfinished message, if any, will reach it whole."""
        server = self.server
        self._loop.forget(server.stream.fileno())
        server.stream.close()
        server.outlet.clear()
        stream.socket.setblocking(False)
        server.stream, server.outlet, server.events, server.gone = stream, Outlet(stream), -1, False
        self.server_lost = False
        server.pump.source_replaced(stream)
        self.client.pump.sink_replaced(server.outlet)

    def update(self) -> None:
        """Look again what epoll has to know, and whether the session has ended."""
        for peer in (self.client, self.server):
            self.update_peer(peer)
        self._end_if_over()

    def update_peer(self, peer: Peer[M, H]) -> None:
        """Ask epoll for what can be used: reading stops while the other peer does not take what was read."""
        if not self._open or (peer is self.server and self.server_lost):
            return
        events = 0
        full = self._session.overfull(peer.pump.direction)
        if not peer.pump.ended and not self._other(peer).outlet.waiting and not full:
            events |= READ
        if peer.outlet.waiting:
            events |= WRITE
        if peer.gone and not events & READ:
            self._loop.forget(peer.stream.fileno())  # it would report for ever that it is gone
            peer.events = -1
        elif peer.events == -1:
            self._loop.watch(peer.stream.fileno(), lambda ready: self._ready(peer, ready), events)
            peer.events = events
        elif peer.events != events:
            self._loop.change(peer.stream.fileno(), events)
            peer.events = events

    def _other(self, peer: Peer[M, H]) -> Peer[M, H]:
        return self.server if peer is self.client else self.client

    def _ready(self, peer: Peer[M, H], events: int) -> None:
        if events & READ:
            peer.pump.ready()
            if not self._is_stuck(peer) and not events & ~READ:
                return  # the hot path: nothing has changed that epoll would have to know
        if not self._open:
            return
        if events & WRITE:
            peer.outlet.flush()
        if events & GONE:
            peer.gone = True
            if not events & READ and not peer.pump.ended and not self._other(peer).outlet.waiting:
                peer.pump.ready()
        self.update()

    def _is_stuck(self, peer: Peer[M, H]) -> bool:
        """Whether this peer is not to be read, as far as the two connections are concerned."""
        return peer.pump.ended or self._other(peer).outlet.waiting

    def _end_if_over(self) -> None:
        if not self._open:
            return
        client, server = self.client, self.server
        if self.server_lost:  # until there is another
            over = client.pump.ended
        elif client.pump.ended and server.pump.ended:
            over = all(not peer.outlet.waiting or peer.gone for peer in (client, server))
        else:
            over = any(
                peer.pump.ended and (peer.gone or peer.outlet.broken) and (not other.outlet.waiting or other.gone)
                for peer, other in ((client, server), (server, client))
            )
        if over:
            self._session.close()
