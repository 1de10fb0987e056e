"""The second socket that a server asks on (protocol.md 3.6, Twin socket), where the interposer is who answers there.

A server that waits for DMA within a register handler cannot do that on its connection: there its client waits for the
register, and commands come that the server would have to take first. On a socket of its own nothing else comes.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from userdev.errors import ProtocolError
from userdev.relay.loop import GONE, READ, WRITE, Loop
from userdev.relay.outlet import Outlet
from userdev.transport import Framer, Stream
from vfio_user.interposer.codec import MAX_FRAME
from vfio_user.wire import Message
from vfio_user.wire.layouts import VERSION

_CAPABILITY = "twin_socket"
MAX_ASKED = 64
"""Requests that wait for the client's answer, after which no more are taken."""


class TwinSocket:
    """Our end of it: `asked` is called with it and each request of the server's."""

    def __init__(self, loop: Loop, stream: Stream, asked: Callable[[TwinSocket, Message], None]) -> None:
        self._loop, self._stream, self._asked = loop, stream, asked
        self._framer = Framer(Message, max_message=MAX_FRAME)
        self._outlet = Outlet(stream)
        self._open = True
        self._elsewhere = 0
        stream.socket.setblocking(False)
        loop.watch(stream.fileno(), self._ready)

    def send(self, reply: Message) -> None:
        """Send a reply, at once or when the server takes it."""
        if self._open:
            self._outlet.send(reply.encode())
            self._watch()

    def asks_elsewhere(self) -> None:
        """A request of its is answered by somebody who may take long, or for ever."""
        self._elsewhere += 1
        self._watch()

    def answered_elsewhere(self) -> None:
        """That request is answered, or given up."""
        self._elsewhere -= 1
        if self._elsewhere == MAX_ASKED - 1:
            self._loop.after(0, self._go_on)

    def close(self) -> None:
        """Let go of it; the server sees its end. A second call does nothing."""
        if self._open:
            self._open = False
            self._loop.forget(self._stream.fileno())
            self._outlet.clear()
            self._framer.close()
            self._stream.close()

    @property
    def _busy(self) -> bool:
        return self._outlet.waiting or self._elsewhere >= MAX_ASKED

    def _watch(self) -> None:
        """A server that does not take its replies, or asks more than is answered, is not read."""
        if self._open:
            events = WRITE if self._outlet.waiting else 0
            self._loop.change(self._stream.fileno(), events if self._busy else READ)

    def _ready(self, events: int) -> None:
        if events & WRITE:
            self._outlet.flush()
            self._go_on()
        if not self._open:
            return
        if events & (READ | GONE):
            try:
                self._receive()
            except BlockingIOError:
                return
            except (OSError, ProtocolError):
                self.close()

    def _receive(self) -> None:
        count, fds = self._stream.receive(self._framer.room())
        if not count:
            self.close()
            return
        self._framer.received(count, fds)
        self._take()

    def _take(self) -> None:
        """What has come already waits here while its answers would."""
        while self._open and not self._busy and (message := self._framer.next()) is not None:
            self._asked(self, message)

    def _go_on(self) -> None:
        try:
            self._take()
        except ProtocolError:
            self.close()
        self._watch()


def offered(payload: bytes) -> bytes | None:
    """A client's VERSION that offers to serve a twin socket; None where it does already, or cannot be understood."""
    said = _capabilities(payload)
    if said is None or _is_supported(said[1].get(_CAPABILITY)):
        return None
    document, capabilities = said
    capabilities[_CAPABILITY] = {"supported": True}
    return _encoded(payload, document)


def place_of_twin(payload: bytes) -> int | None:
    """The place of the twin socket among the descriptors of a server's VERSION; None where it has none."""
    said = _capabilities(payload)
    twin = said[1].get(_CAPABILITY) if said is not None else None
    if not isinstance(twin, dict) or not _is_supported(twin):
        return None
    place = twin.get("fd_index")
    return place if isinstance(place, int) and not isinstance(place, bool) and place >= 0 else None


def _is_supported(said: object) -> bool:
    return isinstance(said, dict) and said.get("supported") is True


def without_twin(payload: bytes) -> bytes:
    """A server's VERSION that says nothing of one."""
    said = _capabilities(payload)
    if said is None:
        return payload
    document, capabilities = said
    capabilities.pop(_CAPABILITY, None)
    return _encoded(payload, document)


def _capabilities(payload: bytes) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """The JSON of a VERSION, and the capabilities within it; what nobody here knows is kept."""
    try:
        document = json.loads(payload[VERSION.size :].rstrip(b"\0") or b"{}")
    except (ValueError, RecursionError):
        return None
    if not isinstance(document, dict):
        return None
    capabilities = document.setdefault("capabilities", {})
    return (document, capabilities) if isinstance(capabilities, dict) else None


def _encoded(payload: bytes, document: dict[str, Any]) -> bytes:
    return payload[: VERSION.size] + json.dumps(document, separators=(",", ":")).encode() + b"\0"
