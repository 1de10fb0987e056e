"""What a front-end of the fuzzer says and writes: messages in any order, right, nearly right and hostile; and rings."""

from __future__ import annotations

import os
import random
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from tests.fuzzing_vhost_front_end import (
    EDGES,
    MEMORY,
    QUEUES,
    RING,
    SIZE,
    USER,
    Action,
    Front,
    P,
    R,
    Said,
    V,
    made,
)
from vhost_user.backend.commands import ERRORS
from vhost_user.wire import (
    HEADER,
    MAX_FDS,
    NEED_REPLY,
    NO_FD,
    VERSION,
    Message,
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

POOL = 3000
"""Messages that a campaign draws from: to make one costs more than to handle it."""


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
