"""A front-end of the fuzzer, without a socket: what it says, when it says it, and the memory that it shares."""

from __future__ import annotations

import fcntl
import os
import random
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress

from userdev.transport import Stream, close_all
from vhost_user.device import Chain, Later, Queues, VhostDevice, config_field, queue, supply
from vhost_user.wire import (
    HEADER,
    NEED_REPLY,
    VERSION,
    FrontEndRequest,
    Message,
    Negotiated,
    ProtocolFeature,
    VirtioFeature,
)
from vhost_user.wire.messages import FRONT_END
from vhost_user.wire.payloads import (
    IotlbMessage,
    Region,
    VringAddress,
    VringState,
)

MEMORY = 1 << 18
USER = 0x7F0000000000
RING = 0x8000
"""Bytes of a ring with its buffers: descriptors at 0, what is available at 0x1000, used at 0x2000, buffers behind."""
QUEUES, SIZE = 3, 8
AT_ONCE = 400
"""Bytes of messages after which no further one comes in the same receive."""

R = FrontEndRequest
V = VirtioFeature
P = ProtocolFeature
EDGES = (0, 1, 7, 8, 0xFFF, 0x1000, 1 << 20, 1 << 31, (1 << 32) - 1, 1 << 63, (1 << 64) - 1)
OPTIONAL = (V.INDIRECT_DESC, V.EVENT_IDX, V.RING_PACKED, V.IN_ORDER, V.LOG_ALL, V.ACCESS_PLATFORM)
LEAVABLE = (
    *(P.LOG_SHMFD, P.INFLIGHT_SHMFD, P.RESET_DEVICE, P.INBAND_NOTIFICATIONS, P.CONFIGURE_MEM_SLOTS, P.STATUS),
    *(P.DEVICE_STATE, P.GPA_ADDRESSES, P.CONFIG),
)


class Echo(VhostDevice):
    """Gives back what it is given: at once, from another thread, or into buffers that wait for it."""

    virtio_id = 42
    queues = Queues(QUEUES, size=64)
    mode: int = config_field(4, 1, writable=True)
    fixed: bytes = config_field(8, bytes(8))
    waiting = supply(2)

    @queue(0)
    def echo(self, request: Chain) -> int:
        data = request.read(1 << 12)
        while data and (room := self.waiting.take()) is not None:
            written = room.write(data)
            self.waiting.give(room, written)
            data = data[written:] if written else b""
        return request.write(bytes(min(request.writable, 1 << 12)))

    @queue(1)
    def later(self, request: Chain) -> int | Later:
        count = request.write(request.read(1 << 12))  # no other thread looks at memory, which may go at any time
        return lambda: count


Action = Callable[[], None]
Said = tuple[Message, bytes]
"""A message, and the bytes that are sent for it."""


class FrontEndScript(Stream):
    """A front-end: messages with their descriptors, and what it does between them, made when they are wanted.

    Several messages come at once, as they do over a socket; descriptors are those of the last.
    """

    def __init__(self) -> None:
        self.carries_fds = True
        self.replies: list[Message] = []
        self.sent: list[Message] = []
        self.is_over = False
        """Whether the back-end has received all."""
        self.items: Iterator[Said | Action] = iter(())
        self._held: Said | Action | None = None
        self.socket, self._other = socket.socketpair()
        self._other.send(b"!")  # there is always something to read
        self._rest = b""

    # what a session uses of a stream

    def fileno(self) -> int:
        return self.socket.fileno()

    @property
    def is_hung_up(self) -> bool:
        return False

    def limit_sends(self, seconds: float) -> None:
        del seconds

    def receive(self, room: memoryview, flags: int = 0) -> tuple[int, list[int]]:
        del flags
        data, fds = self._rest, list[int]()
        while len(data) < AT_ONCE and not fds:
            item = self._held or next(self.items, None)
            self._held = None
            if item is None:
                self.is_over = not data
                break
            if callable(item):
                if data:
                    self._held = item
                    break
                item()
                continue
            message, more = item
            if message.fds and data:
                self._held = item
                break
            data += more
            fds = message.fds
            self.sent.append(message)
        count = min(len(data), len(room))
        room[:count] = data[:count]
        self._rest = data[count:]
        return count, fds

    def send(self, data: bytes | bytearray | memoryview, fds: Sequence[int] = ()) -> None:
        del fds  # they stay the back-end's
        self.replies.append(Message.decode(bytearray(data), 0, bytes(data[HEADER.size :]), []))

    def shutdown(self, how: int = 0) -> None:
        del how

    def close(self) -> None:
        if self._held is not None and not callable(self._held):
            close_all(self._held[0].fds)
        self.socket.close()
        self._other.close()


class Front:
    """One front-end's memory and events, and the steps that a right one takes; each may go wrong."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.memory = os.memfd_create("fuzz", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self.memory, MEMORY)
        self.sealed = chance.random() < 0.5
        if self.sealed:
            fcntl.fcntl(self.memory, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
        self.events = [os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK) for _ in range(QUEUES)]
        self.channel, self._reader = socket.socketpair()
        self.pipe, other = os.pipe2(os.O_CLOEXEC)
        os.close(other)  # a state that is loaded is nothing, and one that is saved is for nobody
        self.features = V.VERSION_1 | V.PROTOCOL_FEATURES
        for feature in OPTIONAL:
            self.features |= feature if chance.random() < 0.4 else V(0)
        self.protocol = P.MQ | P.REPLY_ACK | P.BACKEND_REQ
        is_poor = chance.random() < 0.2
        for left in LEAVABLE:
            self.protocol |= P(0) if is_poor and chance.random() < 0.5 else left
        self.negotiated = Negotiated(self.features, self.protocol)

    def close(self) -> None:
        close_all([self.memory, self.pipe, *self.events])
        self.channel.close()
        self._reader.close()

    def say(self, request: R, value: object = None, fds: Sequence[int] = ()) -> Said:
        message = made(request, value, [os.dup(fd) for fd in fds])
        return message, message.encode()

    def greet(self) -> Iterator[Said]:
        """Negotiate, and share memory."""
        yield self.say(R.GET_FEATURES)
        yield self.say(R.SET_PROTOCOL_FEATURES, int(self.protocol))
        yield self.say(R.SET_OWNER)
        yield self.say(R.SET_FEATURES, int(self.features))
        whole = Region(0, MEMORY, 0 if P.GPA_ADDRESSES in self.protocol else USER, 0)
        if P.CONFIGURE_MEM_SLOTS in self.protocol:
            yield self.say(R.ADD_MEM_REG, whole, [self.memory])
        else:
            yield self.say(R.SET_MEM_TABLE, (whole,), [self.memory])
        if V.ACCESS_PLATFORM in self.features:
            yield self.say(R.IOTLB_MSG, IotlbMessage(0, MEMORY, USER, 3, 2))

    def start(self, ring: int) -> Iterator[Said]:
        """Have a ring run, with whatever is in it."""
        base = 0 if V.ACCESS_PLATFORM in self.features or P.GPA_ADDRESSES in self.protocol else USER
        at = base + RING * ring
        packed = V.RING_PACKED in self.features
        steps: list[tuple[R, object, Sequence[int]]] = [
            (R.SET_VRING_ERR, ring, self.events[ring : ring + 1]),
            (R.SET_VRING_CALL, ring, self.events[ring : ring + 1]),
            (R.SET_VRING_NUM, VringState(ring, SIZE), ()),
            (R.SET_VRING_BASE, VringState(ring, (1 << 15 | 1 << 31) * packed), ()),
            (R.SET_VRING_ADDR, VringAddress(ring, 0, at, at + 0x2000, at + 0x1000, 0), ()),
            (R.SET_VRING_KICK, ring, self.events[ring : ring + 1]),
            (R.SET_VRING_ENABLE, VringState(ring, 1), ()),
        ]
        for step in steps:
            if self.chance.random() > 0.02:
                yield self.say(*step)

    def scribble(self, ring: int, images: Sequence[bytes]) -> Action:
        """Put other content into a ring."""
        kind = int(V.RING_PACKED in self.features) ^ (self.chance.random() < 0.1)
        data = self.chance.choice(images[kind::2])

        def write() -> None:
            with suppress(OSError):
                os.pwrite(self.memory, data, RING * ring)

        return write

    def offer(self, ring: int) -> Action:
        """Make one more request of a split ring available, whatever its descriptors say."""

        def write() -> None:
            at = RING * ring + 0x1002
            if len(data := os.pread(self.memory, 2, at)) == 2:
                os.pwrite(self.memory, (int.from_bytes(data, "little") + 1 & 0xFFFF).to_bytes(2, "little"), at)

        return write

    def kick(self, ring: int) -> Action:
        return lambda: os.eventfd_write(self.events[ring], 1)

    def shrink(self) -> Action:
        """Take a piece of memory away, and give it back at once or never."""
        size = self.chance.choice((0, 0x1000, 0x8000, MEMORY - 0x1000))

        def cut() -> None:
            if not self.sealed:
                os.ftruncate(self.memory, size)

        return cut


def made(request: int, value: object, fds: list[int], flags: int = VERSION | NEED_REPLY) -> Message:
    """A message of a request with its payload."""
    payload = FRONT_END[R(request)].payload.encode(value)
    return Message(request, flags, payload, fds)
