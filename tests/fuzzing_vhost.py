"""Bad input for a real vhost-user session: messages in any order, right, nearly right and hostile; and in rings.

A session runs in the calling thread on a `FrontEndScript`, a stream that plays a front-end without a socket; between
messages it writes into the guest's memory, kicks, and takes memory away. What a seed does is always the same.
"""

from __future__ import annotations

import fcntl
import gc
import os
import random
import socket
import struct
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from unittest.mock import patch

from tests.fuzzing import Defects, Outcome, open_fds, resident_bytes
from userdev.errors import ProtocolError
from userdev.transport import Stream, close_all
from vhost_user.backend import Session, watch
from vhost_user.backend.commands import ERRORS
from vhost_user.backend.withheld import Withheld
from vhost_user.device import Chain, Later, Queues, VhostDevice, config_field, queue, supply
from vhost_user.wire import (
    HEADER,
    MAX_FDS,
    NEED_REPLY,
    NO_FD,
    REPLY,
    VERSION,
    FrontEndRequest,
    Message,
    Negotiated,
    ProtocolFeature,
    VirtioFeature,
    decode_reply,
)
from vhost_user.wire.messages import FRONT_END, Reply
from vhost_user.wire.payloads import (
    Config,
    DeviceStateTransfer,
    Inflight,
    IotlbMessage,
    Log,
    Region,
    SharedObject,
    VringAddress,
    VringState,
)

PER_SESSION = 500
"""Messages of one session, unless it ends before."""
POOL = 3000
"""Messages that a campaign draws from: to make one costs more than to handle it."""

MEMORY = 1 << 18
USER = 0x7F0000000000
RING = 0x8000
"""Bytes of a ring with its buffers: descriptors at 0, what is available at 0x1000, used at 0x2000, buffers behind."""
QUEUES, SIZE = 3, 8
GROWTH = 32 << 20
"""Bytes of memory that a campaign may cost."""
AT_ONCE = 400
"""Bytes of messages after which no further one comes in the same receive."""

WITHHELD = Withheld.of(["PAGEFAULT"])
"""A page fault keeps Python's lock, and it is this process that would have to serve it."""

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


@dataclass(frozen=True)
class _Drawn:
    """A message of the pool, its bytes, and how many descriptors go along."""

    message: Message
    data: bytes
    count: int
    own: R | None
    """The request, where it can be refused by the connection's end alone."""
    is_risky: bool
    unsettles: bool
    """Whether it takes away what rings need."""


UNSETTLING = frozenset(
    {
        *(R.SET_OWNER, R.RESET_OWNER, R.RESET_DEVICE, R.SET_FEATURES, R.SET_STATUS, R.GET_VRING_BASE),
        *(R.SET_MEM_TABLE, R.REM_MEM_REG, R.SET_VRING_ADDR, R.SET_VRING_NUM, R.SET_VRING_BASE),
    }
)
INFLIGHT_SIZE = 24
RISKY = frozenset({R.SET_PROTOCOL_FEATURES, R.GET_INFLIGHT_FD})


def _ring_of(own: R | None, message: Message) -> int:
    return int.from_bytes(message.payload[:4], "little") if own is R.GET_VRING_BASE else 0


class Generator:
    """Makes messages and rings' contents out of a seed."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.pool = [self._message() for _ in range(POOL)]
        self.images = [self._image(packed=bool(at % 2)) for at in range(64)]

    def session(self, front: Front, messages: int) -> Iterator[Said | Action]:
        """What a front-end says and does."""
        chance = self.random
        yield from front.greet()
        said = 0
        while said < messages:
            dice = chance.random()
            ring = chance.randrange(QUEUES)
            if dice < 0.04:
                yield front.say(R.GET_VRING_BASE, VringState(ring, 0))
                yield front.scribble(ring, self.images)
                yield from front.start(ring)
                said += 8
            elif dice < 0.1:
                yield front.offer(ring)
                yield front.kick(ring)
            elif dice < 0.11:
                yield front.scribble(ring, self.images)
            elif dice < 0.112:
                yield front.shrink()
            elif (drawn := self._draw(front)) is not None:
                yield drawn
                said += 1

    def _draw(self, front: Front) -> Said | None:
        """A message of the pool; seldom one that ends the session for sure."""
        drawn = self.pool[int(self.random.random() * POOL)]
        message = drawn.message
        risky = drawn.is_risky or (drawn.own is not None and not front.negotiated.allows(drawn.own))
        if risky and self.random.random() < 0.99:
            return None
        if drawn.unsettles and self.random.random() < 0.9:
            return None
        if not drawn.count:
            return message, drawn.data
        fds = [self._fd(front, message.request) for _ in range(drawn.count)]
        return Message(message.request, message.flags, message.payload, fds), drawn.data

    def _fd(self, front: Front, request: int) -> int:
        kind = self.random.random()
        if kind < 0.8:
            match request:
                case R.SET_VRING_KICK | R.SET_VRING_CALL | R.SET_VRING_ERR:
                    return os.dup(front.events[0])
                case R.SET_BACKEND_REQ_FD:
                    return os.dup(front.channel.fileno())
                case R.SET_DEVICE_STATE_FD:
                    return os.dup(front.pipe)
            return os.dup(front.memory)
        return os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)

    def _message(self) -> _Drawn:
        chance = self.random
        request = chance.choice(list(R))
        own = request if FRONT_END[request].reply is Reply.ALWAYS and request not in ERRORS else None
        message = made(request, self._value(request), [])
        count = self._count(request, message)
        if chance.random() > 0.15:
            risky = request in RISKY or _ring_of(own, message) >= QUEUES
            return _Drawn(message, message.encode(), count, own, risky, request in UNSETTLING)
        payload = message.payload
        match chance.randrange(5):
            case 0:
                payload = payload[: chance.randrange(len(payload) + 1)]
            case 1:
                payload += chance.randbytes(chance.randrange(1, 40))
            case 2:
                bent = bytearray(payload or b"\0")
                bent[chance.randrange(len(bent))] ^= 1 << chance.randrange(8)
                payload = bytes(bent)
            case 3:
                count = chance.randrange(MAX_FDS + 1)
            case 4:
                message.request, own = chance.choice((0, 46, 60, chance.getrandbits(32))), None
        message.payload = payload
        risky = own is not None or request in RISKY
        return _Drawn(message, message.encode(), count, own, risky, request in UNSETTLING)

    def rubbish(self, front: Front, count: int) -> Iterator[Said | Action]:
        """What is hardly a message: each ends the session, or a later one does."""
        chance = self.random
        yield from front.greet()
        for _ in range(count):
            size = chance.choice((0, 1, 8, 40, 300, 5000, 1 << 31))
            flags = chance.choice((VERSION, VERSION | NEED_REPLY, 0, 2, 5, chance.getrandbits(32)))
            data = HEADER.pack(chance.randrange(48), flags, size) + chance.randbytes(min(size, 300))
            yield Message(0, flags, b""), data[: chance.randrange(1, len(data) + 1)]

    def _value(self, request: R) -> object:
        chance = self.random
        ring = VringState(chance.choice((0, 1, 2, 0, 1, 2, 0, 1, 2, 3, 255)), self._number() & 0xFFFFFFFF)
        match request:
            case R.SET_FEATURES:
                return int(V.VERSION_1 | V.PROTOCOL_FEATURES | V(chance.choice((0, 0, V.RING_PACKED, 1 << 63))))
            case R.SET_PROTOCOL_FEATURES:
                return int(P.REPLY_ACK | P.MQ | P.STATUS | P.CONFIGURE_MEM_SLOTS | P(chance.choice((0, 0, 0, 1 << 17))))
            case R.SET_MEM_TABLE:
                return tuple(self._region() for _ in range(chance.choice((0, 1, 1, 2, 3))))
            case R.ADD_MEM_REG | R.REM_MEM_REG:
                return self._region()
            case R.SET_LOG_BASE:
                return Log(self._number(), self._number())
            case R.SET_VRING_ADDR:
                places = [USER + chance.randrange(0, MEMORY, 0x1000) + chance.choice((0, 0, 0, 1)) for _ in range(3)]
                descriptor, used, available = places
                return VringAddress(ring.vring, chance.choice((0, 1)), descriptor, used, available, self._number())
            case R.SET_VRING_KICK | R.SET_VRING_CALL | R.SET_VRING_ERR:
                return ring.vring | NO_FD * (chance.random() < 0.3)
            case R.SET_VRING_ENABLE | R.SET_VRING_ENDIAN:
                return ring._replace(num=chance.choice((0, 1, 1, 2)))
            case R.SET_VRING_NUM:
                return ring._replace(num=chance.choice((0, 4, 8, 8, 64, 7, 65536)))
            case R.SET_VRING_BASE | R.GET_VRING_BASE | R.GET_VRING_BASE_SKIP_DRAIN | R.VRING_KICK:
                return ring
            case R.IOTLB_MSG:
                page = chance.randrange(0, MEMORY, 0x1000)
                return IotlbMessage(
                    page, chance.choice((0x1000, MEMORY, 0)), USER + page, chance.randrange(4), chance.randrange(6)
                )
            case R.GET_CONFIG | R.SET_CONFIG:
                size = chance.choice((0, 1, 4, 12, 13, 256))
                return Config(chance.choice((0, 0, 4, 12, 1 << 31)), size, chance.randrange(3), bytes(size))
            case R.GET_INFLIGHT_FD:
                return Inflight(0, 0, chance.randrange(5), chance.choice((0, 8, 64, 7, 65535)))
            case R.SET_INFLIGHT_FD:
                return Inflight(
                    chance.choice((0x1000, MEMORY, 0, 1 << 40)), chance.choice((0, 0x1000, 1)), chance.randrange(4), 8
                )
            case R.SET_DEVICE_STATE_FD:
                return DeviceStateTransfer(chance.randrange(3), chance.randrange(2))
            case R.GET_SHARED_OBJECT:
                return SharedObject(bytes(16))
            case R.CREATE_CRYPTO_SESSION:
                return bytes(8)
        shape = FRONT_END[request].payload
        return self._number() if shape.section == "A single 64-bit integer" else None

    def _count(self, request: R, message: Message) -> int:
        """Descriptors that a right message of this kind has, as a rule."""
        chance = self.random
        match request:
            case R.SET_VRING_KICK | R.SET_VRING_CALL | R.SET_VRING_ERR:
                return int(not message.payload[1] & 1)
            case R.SET_MEM_TABLE:
                return message.payload[0]
            case R.ADD_MEM_REG | R.SET_LOG_BASE | R.SET_INFLIGHT_FD | R.SET_BACKEND_REQ_FD | R.SET_DEVICE_STATE_FD:
                return 1
        return int(chance.random() < 0.03)

    def _region(self) -> Region:
        chance = self.random
        if chance.random() < 0.4:
            return Region(0, MEMORY, USER, 0)
        at = chance.randrange(0, MEMORY, 0x1000)
        return Region(at, chance.choice((0x1000, 0x1800, *EDGES)), USER + at, chance.choice((0, 0, at, *EDGES)))

    def _number(self) -> int:
        return self.random.choice(EDGES) if self.random.random() < 0.3 else self.random.randrange(16)

    def _image(self, *, packed: bool) -> bytes:
        """What a ring and its buffers may have: nearly right, as a rule."""
        chance = self.random
        wrong = 0.05 if chance.random() < 0.7 else 0.4
        descriptors = b""
        for at in range(SIZE):
            address = 0x3000 + 0x200 * at
            length = chance.choice((0, 1, 16, 64, 0x100))
            flags = chance.choice((0, 0, 1, 2, 2, 3))
            after = (at + 1) % SIZE
            if chance.random() < wrong:
                address = chance.choice((0, 0x3FFF, MEMORY - 8, MEMORY, 1 << 63))
                length = chance.choice((0, 0x1000, 0xFFFFFFFF))
                flags = chance.randrange(8)
                after = chance.choice((at, 0, SIZE, 0xFFFF))
            if chance.random() < 0.1:
                address, length, flags = 0x3000 + 0x80 * chance.randrange(2), 0x40, 4
            if packed:
                flags |= chance.choice((0x80, 0x80, 0x80, 0x80, 0x8000, 0x8080, 0))
            descriptors += struct.pack("<QIHH", address, length, *((at, flags) if packed else (flags, after)))
        heads = [chance.randrange(SIZE) if chance.random() > wrong else 0xFFFF for _ in range(SIZE)]
        index = chance.choice((0, 1, 2, 3, 8)) if chance.random() > wrong else 9
        available = struct.pack(f"<HH{SIZE}HH", chance.randrange(2), index, *heads, chance.randrange(9))
        if packed:
            available = struct.pack("<HH", chance.choice((0, 3, 0x8003)), chance.randrange(4))
        image = bytearray(RING)
        image[: len(descriptors)] = descriptors
        image[0x1000 : 0x1000 + len(available)] = available
        image[0x3000:0x3080] = descriptors  # as an indirect table
        return bytes(image[:0x3100])


def campaign(messages: int, seed: int) -> Outcome:
    """Send so many messages in sessions to one device after another; always the same for a seed."""
    outcome = Outcome()
    generator = Generator(seed)
    device = Echo()
    threads = threading.active_count()
    # A session that looks before it sleeps would do so for as long as this machine lets it.
    with Defects.of("vhost_user") as defects, patch.object(watch, "SHORT_NS", 0):
        while outcome.messages < messages and len(outcome.wrong) < 10:
            one = _noisy_session if outcome.sessions % 20 == 19 else _one_session
            try:
                one(device, generator, min(PER_SESSION, messages - outcome.messages), outcome)
                if outcome.sessions % 20 == 0:
                    _next_is_served(device, outcome)
            except Exception as error:
                outcome.wrong.append(f"session {outcome.sessions}: {error!r} at {_place(error)}")
        device.close()
    if threading.active_count() > threads:
        outcome.wrong.append(f"{threading.active_count() - threads} threads are left")
    outcome.wrong += defects.found
    return outcome


def _one_session(device: Echo, generator: Generator, count: int, outcome: Outcome) -> None:
    """Every message asks for an answer and has it, in order; the last has none where the back-end hangs up."""
    front, script = Front(generator.random), FrontEndScript()
    script.items = generator.session(front, count)
    _run(device, front, script, outcome)
    where = f"session {outcome.sessions}"
    for message, reply in zip(script.sent, script.replies, strict=False):
        if reply.request != message.request or reply.flags != VERSION | REPLY:
            outcome.wrong.append(f"{where}: {message} is answered by a {reply} with flags {reply.flags:#x}")
            return
        try:
            _decode(reply, front.negotiated)
        except ProtocolError as error:
            outcome.wrong.append(f"{where}: the reply to {message}: {error}")
        outcome.refused += len(reply.payload) == 8 and any(reply.payload)
    if script.is_over:
        outcome.whole += 1
        if len(script.replies) != len(script.sent):
            outcome.wrong.append(f"{where}: {len(script.replies)} replies to {len(script.sent)} messages")


def _noisy_session(device: Echo, generator: Generator, count: int, outcome: Outcome) -> None:
    front, script = Front(generator.random), FrontEndScript()
    script.items = generator.rubbish(front, count)
    _run(device, front, script, outcome)


def _run(device: Echo, front: Front, script: FrontEndScript, outcome: Outcome) -> None:
    try:
        Session(device, script, withheld=WITHHELD).run()
    finally:
        front.close()
        outcome.sessions += 1
        outcome.messages += len(script.sent)


def _place(error: BaseException) -> str:
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{last.filename}:{last.lineno}"


def _decode(reply: Message, negotiated: Negotiated) -> None:
    """Raise ProtocolError for a payload that no reply to this request has; a number is an acknowledgement, too."""
    if len(reply.payload) == 8:
        return
    request = R(reply.request)
    if request is R.GET_INFLIGHT_FD and len(reply.payload) == INFLIGHT_SIZE:
        return  # its descriptor is not kept
    decode_reply(request, reply, negotiated)


def _next_is_served(device: Echo, outcome: Outcome) -> None:
    """A front-end that is right, and its request, which is done."""
    front, script = Front(random.Random(0)), FrontEndScript()
    front.features, front.protocol = V.VERSION_1 | V.PROTOCOL_FEATURES, P.REPLY_ACK | P.CONFIGURE_MEM_SLOTS | P.MQ
    for at, data in (
        (0, struct.pack("<QIHH", 0x3000, 16, 2, 0)),
        (0x1000, struct.pack("<HHH", 0, 1, 0)),
        (0x3000, b"\xff" * 16),
    ):
        os.pwrite(front.memory, data, at)
    stop: Iterator[Said | Action] = iter([front.kick(0), front.say(R.GET_VRING_BASE, VringState(0, 0))])
    script.items = chain(front.greet(), front.start(0), stop)
    Session(device, script, withheld=WITHHELD).run()
    used, written = os.pread(front.memory, 12, 0x2000), os.pread(front.memory, 16, 0x3000)
    if used[2:] != struct.pack("<HII", 1, 0, 16) or any(written):
        outcome.wrong.append(f"after session {outcome.sessions} the next front-end is not served: {used.hex()}")
    front.close()


def checked_campaign(messages: int, seed: int) -> Outcome:
    """`campaign`, and what is left of its front-ends afterwards: descriptors, mappings and memory of this process."""
    campaign(500, 0)
    gc.collect()
    fds, memory = open_fds(), resident_bytes()
    outcome = campaign(messages, seed)
    gc.collect()
    if open_fds() != fds:
        outcome.wrong.append(f"{open_fds() - fds} descriptors are left open")
    if mappings():
        outcome.wrong.append(f"{mappings()} mappings of front-ends' memory are left")
    if resident_bytes() - memory > GROWTH:
        outcome.wrong.append(f"the process has grown by {resident_bytes() - memory >> 20} MiB")
    return outcome


def mappings() -> int:
    """How many pieces of a front-end's memory this process has."""
    return Path("/proc/self/maps").read_text().count("memfd:fuzz")
