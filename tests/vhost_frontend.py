"""A vhost-user front-end over a socket: it negotiates, shares a memfd, and drives split rings as a driver would."""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import select
import struct
from collections.abc import Iterator, Sequence
from typing import Any

from userdev.transport import Framer, Stream, connect
from vhost_user.wire import (
    MAX_FDS,
    NO_FD,
    FrontEndRequest,
    Message,
    Negotiated,
    ProtocolFeature,
    VirtioFeature,
    decode_reply,
    encode_request,
)
from vhost_user.wire.payloads import Inflight, Log, Region, VringAddress, VringState

R = FrontEndRequest
PATIENCE = 10.0
"""Seconds: more than any answer takes."""

MEMORY = 1 << 20
USER = 0x7F0000000000
"""Where this front-end says that it has the memory; the guest has it at 0."""

NEXT, WRITE = 1, 2

V, P = VirtioFeature, ProtocolFeature
FEATURES = V.VERSION_1 | V.PROTOCOL_FEATURES
PROTOCOL = P.MQ | P.REPLY_ACK | P.LOG_SHMFD | P.CONFIGURE_MEM_SLOTS | P.RESET_DEVICE | P.INFLIGHT_SHMFD

Buffer = bytes | int
"""What the device is to read, or how many bytes it may write."""


class Gone(Exception):
    """The back-end has ended the connection."""


class FrontEnd:
    """One connection to a back-end, and the memory that it is to have."""

    def __init__(self, address: str) -> None:
        self.stream: Stream = connect(address)
        self.stream.socket.settimeout(PATIENCE)
        self.negotiated = Negotiated()
        self.memory_fd = os.memfd_create("guest", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self.memory_fd, MEMORY)
        fcntl.fcntl(self.memory_fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
        self.memory = mmap.mmap(self.memory_fd, MEMORY)
        self._framer: Framer[Message] = Framer(Message, max_fds=MAX_FDS)

    def reconnect(self, address: str) -> None:
        """Have another connection, with the same memory, as QEMU's reconnect-ms does."""
        self.stream.close()
        self.stream = connect(address)
        self.stream.socket.settimeout(PATIENCE)
        self.negotiated = Negotiated()
        self._framer = Framer(Message, max_fds=MAX_FDS)

    def close(self) -> None:
        """End the connection without a word, as libblkio does."""
        self._framer.close()
        self.stream.close()
        self.memory.close()
        with contextlib.suppress(OSError):
            os.close(self.memory_fd)

    def __enter__(self) -> FrontEnd:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Messages

    def send(self, request: R, value: Any = None, fds: Sequence[int] = (), *, need_reply: bool = False) -> None:
        """Say something."""
        message = encode_request(request, value, list(fds), need_reply=need_reply)
        self.stream.send(message.encode(), fds)

    def receive(self) -> Message:
        """What the back-end says next. Raises Gone at its end, TimeoutError where nothing comes."""
        while (message := self._framer.next()) is None:
            try:
                count, fds = self.stream.receive(self._framer.room())
            except ConnectionError as error:
                raise Gone(str(error)) from None
            self._framer.received(count, fds)
            if not count:
                raise Gone("the end of the stream")
        return message

    def ask(self, request: R, value: Any = None, fds: Sequence[int] = (), *, need_reply: bool = False) -> Any:
        """Say something that has a reply of its own, and take it; descriptors of the reply follow its payload."""
        self.send(request, value, fds, need_reply=need_reply)
        message = self.receive()
        said = decode_reply(request, message, self.negotiated)
        return (said, *message.fds) if message.fds else said

    def tell(self, request: R, value: Any = None, fds: Sequence[int] = ()) -> int:
        """Say something; the errno that it is acknowledged with, 0 for success."""
        answer: int = self.ask(request, value, fds, need_reply=True)
        return answer

    def do(self, request: R, value: Any = None, fds: Sequence[int] = ()) -> None:
        """Say something that is to succeed."""
        assert (error := self.tell(request, value, fds)) == 0, f"{request.name}: {os.strerror(error)}"

    def settle(self) -> None:
        """Wait until everything that was said is done."""
        self.ask(R.GET_FEATURES)

    # What is done in order

    def negotiate(self, features: VirtioFeature = FEATURES, protocol: ProtocolFeature = PROTOCOL) -> None:
        """As QEMU does when a device is made, of what the back-end offers."""
        offered = V(self.ask(R.GET_FEATURES))
        if V.PROTOCOL_FEATURES in features:
            protocol &= P(self.ask(R.GET_PROTOCOL_FEATURES))
            self.send(R.SET_PROTOCOL_FEATURES, int(protocol))
        self.send(R.SET_OWNER)
        self.send(R.SET_FEATURES, int(features & offered))
        self.negotiated = Negotiated(features & offered, protocol)

    def share_memory(self) -> None:
        """Give the back-end the whole memory."""
        self.do(R.ADD_MEM_REG, self.region, [self.memory_fd])

    @property
    def region(self) -> Region:
        """The whole memory."""
        return Region(0, MEMORY, USER, 0)

    def share_log(self, size: int = MEMORY // 4096 // 8) -> tuple[mmap.mmap, int]:
        """Give it a dirty log."""
        fd = os.memfd_create("log", os.MFD_CLOEXEC)
        os.ftruncate(fd, size)
        log = mmap.mmap(fd, size)
        self.ask(R.SET_LOG_BASE, Log(size, 0), [fd])
        return log, fd

    def ask_inflight(self, queues: int = 1, size: int = 8) -> tuple[Inflight, int]:
        """Have a region be made for requests that are under way."""
        described, fd = self.ask(R.GET_INFLIGHT_FD, Inflight(0, 0, queues, size))
        return described, fd

    def queue(self, index: int = 0, size: int = 8, at: int | None = None) -> DriverQueue:
        """A split ring, of which the back-end is not told yet."""
        return DriverQueue(self, index, size, 0x10000 * (index + 1) if at is None else at)


class DriverQueue:
    """A split ring as its driver has it, and the three descriptors of it."""

    def __init__(self, front_end: FrontEnd, index: int, size: int, at: int) -> None:
        self.front_end = front_end
        self.index = index
        self.size = size
        self.descriptor, self.available, self.used = at, at + 0x1000, at + 0x2000
        self._buffers = at + 0x4000
        self._next_buffer = self._buffers
        self._next_descriptor = 0
        self.seen = 0
        self.made = 0
        flags = os.EFD_CLOEXEC | os.EFD_NONBLOCK
        self.kick_fd, self.call_fd, self.err_fd = (os.eventfd(0, flags) for _ in range(3))

    def close(self) -> None:
        """Close its descriptors."""
        for fd in (self.kick_fd, self.call_fd, self.err_fd):
            os.close(fd)

    # What the back-end is told

    @property
    def addresses(self) -> VringAddress:
        """Where it is, in the front-end's own addresses."""
        return VringAddress(self.index, 0, USER + self.descriptor, USER + self.used, USER + self.available, 0)

    def start(self, base: int = 0, *, enable: bool = True) -> None:
        """As QEMU does when a driver starts a device."""
        tell = self.front_end
        tell.do(R.SET_VRING_ERR, self.index, [self.err_fd])
        tell.do(R.SET_VRING_CALL, self.index, [self.call_fd])
        tell.do(R.SET_VRING_NUM, VringState(self.index, self.size))
        tell.do(R.SET_VRING_BASE, VringState(self.index, base))
        tell.do(R.SET_VRING_ADDR, self.addresses)
        tell.do(R.SET_VRING_KICK, self.index, [self.kick_fd])
        if enable:
            self.enable()

    def enable(self, on: bool = True) -> None:
        """Have it be served, or not."""
        self.front_end.do(R.SET_VRING_ENABLE, VringState(self.index, int(on)))

    def stop(self) -> int:
        """Have it stopped; where it would go on."""
        state: VringState = self.front_end.ask(R.GET_VRING_BASE, VringState(self.index, 0))
        assert state.vring == self.index
        return state.num

    # What its driver does

    def put(self, *buffers: Buffer) -> list[int]:
        """Make a request available, without a kick; where its buffers are."""
        head = self._next_descriptor % self.size
        places = []
        for position, buffer in enumerate(buffers):
            length = buffer if isinstance(buffer, int) else len(buffer)
            address, self._next_buffer = self._next_buffer, self._next_buffer + length
            if isinstance(buffer, bytes):
                self.front_end.memory[address : address + length] = buffer
            last = position == len(buffers) - 1
            flags = (0 if last else NEXT) | (WRITE if isinstance(buffer, int) else 0)
            index = (head + position) % self.size
            self.describe(index, address, length, flags, (index + 1) % self.size)
            places.append(address)
        self._next_descriptor += len(buffers)
        self.offer(head)
        return places

    def describe(self, index: int, address: int, length: int, flags: int, next_: int) -> None:
        """Write one descriptor, right or wrong."""
        struct.pack_into("<QIHH", self.front_end.memory, self.descriptor + 16 * index, address, length, flags, next_)

    def offer(self, head: int) -> None:
        """Make a chain of descriptors available."""
        memory = self.front_end.memory
        struct.pack_into("<H", memory, self.available + 4 + 2 * (self.made % self.size), head)
        self.made = self.made + 1 & 0xFFFF
        struct.pack_into("<H", memory, self.available + 2, self.made)

    def kick(self) -> None:
        """Tell the device."""
        os.eventfd_write(self.kick_fd, 1)

    @property
    def used_index(self) -> int:
        """How many requests were given back since the memory was made."""
        index: int = struct.unpack_from("<H", self.front_end.memory, self.used + 2)[0]
        return index

    def take_used(self) -> Iterator[tuple[int, int]]:
        """(head, bytes written) of what was given back and not taken yet."""
        while self.seen != self.used_index:
            at = self.used + 4 + 8 * (self.seen % self.size)
            yield struct.unpack_from("<II", self.front_end.memory, at)
            self.seen = self.seen + 1 & 0xFFFF

    def wait_used(self, count: int = 1) -> list[tuple[int, int]]:
        """As `take_used`, waiting for calls until there are so many."""
        found = list(self.take_used())
        while len(found) < count:
            assert self.wait_call(), f"{len(found)} of {count} requests came back"
            found += self.take_used()
        return found

    def wait_call(self, seconds: float = PATIENCE) -> bool:
        """Whether the device calls, in so many seconds."""
        return _wait(self.call_fd, seconds)

    def wait_err(self, seconds: float = PATIENCE) -> bool:
        """Whether the device says that the ring is broken."""
        return _wait(self.err_fd, seconds)

    def read(self, *buffers: Buffer) -> bytes:
        """Do one request; what was written into its writable buffers, which are one."""
        places = self.put(*buffers)
        self.kick()
        ((_, written),) = self.wait_used()
        at = next(place for place, buffer in zip(places, buffers, strict=True) if isinstance(buffer, int))
        return self.front_end.memory[at : at + written]


def no_fd(index: int) -> int:
    """What SET_VRING_KICK and its like say of a ring without a descriptor."""
    return index | NO_FD


def _wait(fd: int, seconds: float) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    if not poll.poll(seconds * 1000):
        return False
    os.eventfd_read(fd)
    return True
