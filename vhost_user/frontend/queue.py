"""A queue as its front-end has it: the ring, the three descriptors of it, and the requests that are under way."""

from __future__ import annotations

import os
import select
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from userdev.eventfd import drain, signal_eventfd
from userdev.process import Deadline
from vhost_user.frontend.connection import Connection
from vhost_user.frontend.driver import Descriptor, Driver
from vhost_user.frontend.errors import BrokenQueue, Disconnected, NoAnswer, WrongAnswer
from vhost_user.frontend.memory import USER_ADDRESS, GuestMemory
from vhost_user.rings.ring import INDIRECT, WRITE
from vhost_user.wire import FrontEndRequest, VirtioFeature
from vhost_user.wire.payloads import VRING_F_LOG, VringAddress, VringState

R = FrontEndRequest

Buffer = bytes | int
"""What the device is to read, or how many bytes it may write."""


@dataclass(frozen=True)
class Request:
    """A request that was made available: what the ring knows it by, and the guest's addresses of its buffers."""

    head: int
    places: tuple[int, ...]


@dataclass(frozen=True)
class Completion:
    """A request that came back: how many bytes the device says it wrote, and all that its writable buffers have now."""

    head: int
    written: int
    writable: bytes

    @property
    def data(self) -> bytes:
        """What the device wrote."""
        return self.writable[: self.written]


@dataclass(frozen=True)
class _Pending:
    """What is to be read, and to be given back, when a request comes back."""

    writable: tuple[tuple[int, int], ...]
    pieces: tuple[int, ...]


class Queue:
    """One queue of a device. `FrontEnd.queue` makes it, and closes it at the end."""

    def __init__(
        self, connection: Connection, memory: GuestMemory, index: int, driver: Driver, ready: Callable[[], None]
    ) -> None:
        """`ready` is called when it was enabled: the driver of the device is."""
        self.connection = connection
        self.memory = memory
        self.index = index
        self.driver = driver
        self.logged = False
        """Whether writes to its used ring are marked in the dirty log."""
        self.log_at: int | None = None
        """The guest's address that they are marked from, where that is not the ring's."""
        flags = os.EFD_CLOEXEC | os.EFD_NONBLOCK
        self.kick_fd, self.call_fd, self.err_fd = (os.eventfd(0, flags) for _ in range(3))
        self._ready = ready
        self._base: int | None = None
        self._pending: dict[int, _Pending] = {}
        self._done: deque[Completion] = deque()
        self._is_broken = False

    @property
    def size(self) -> int:
        """Descriptors."""
        return self.driver.size

    @property
    def base_at_stop(self) -> int | None:
        """Where the back-end has said that it goes on, when it was stopped; None while it runs."""
        return self._base

    @property
    def outstanding(self) -> int:
        """Requests that have not come back."""
        return len(self.driver.chains)

    def close(self) -> None:
        """Close its descriptors, and let go of its memory; idempotent."""
        if self.kick_fd < 0:
            return
        for fd in (self.kick_fd, self.call_fd, self.err_fd):
            os.close(fd)
        self.kick_fd = self.call_fd = self.err_fd = -1
        self.driver.close()
        for pending in self._pending.values():
            for piece in pending.pieces:
                self.memory.free(piece)
        self.memory.free(self.driver.addresses.descriptor)

    # What the back-end is told

    @property
    def addresses(self) -> VringAddress:
        """Where it is, in the front-end's own addresses."""
        descriptor, used, available = (USER_ADDRESS + address for address in self.driver.addresses)
        log = self.driver.addresses.used if self.log_at is None else self.log_at
        return VringAddress(self.index, VRING_F_LOG * self.logged, descriptor, used, available, log * self.logged)

    def start(self, base: int | None = None, *, enable: bool = True, kick: bool = True) -> None:
        """Have it served, from `base` on: unless told, from where it was stopped, or all that has not come back again.

        Everything is said each time, as back-ends differ in what they keep of a stopped ring; and a ring that has
        requests is kicked, as most do not look by themselves (`kick` False leaves that out).

        Raises:
            BackEndError: the back-end refuses something, or has gone.
        """
        self.set_up(base)
        if enable:
            self.enable(kick=False)
            self._ready()
            if kick:
                self._kick_pending()

    def set_up(self, base: int | None = None, *, descriptors: bool = True) -> None:
        """Say all of it but SET_VRING_ENABLE, the kick last; see `start`.

        Without `descriptors` it is started by VRING_KICK, and calls by VRING_CALL ("In-band notifications").
        """
        self._collect()  # what has come back is not to be done again
        if base is None:
            base = self.driver.base if self._base is None else self._base
        self._base, self._is_broken = None, False
        tell = self.connection.do
        tell(R.SET_VRING_NUM, VringState(self.index, self.size))
        tell(R.SET_VRING_BASE, VringState(self.index, base))
        tell(R.SET_VRING_ADDR, self.addresses)
        if not descriptors:
            return
        tell(R.SET_VRING_ERR, self.index, [self.err_fd])
        tell(R.SET_VRING_CALL, self.index, [self.call_fd])
        tell(R.SET_VRING_KICK, self.index, [self.kick_fd])

    def enable(self, on: bool = True, *, kick: bool = True) -> None:
        """Have it served, or not. Without PROTOCOL_FEATURES there is nothing to say: what is started is enabled."""
        if self.connection.has(VirtioFeature.PROTOCOL_FEATURES):
            self.connection.do(R.SET_VRING_ENABLE, VringState(self.index, int(on)))
        if on and kick:
            self._kick_pending()

    def stop(self, *, drain: bool = True) -> int:
        """Have it stopped; where it would go on, as GET_VRING_BASE says it.

        Requests under way are waited for first, as QEMU's storage daemon stops without that; `drain` False is for those
        that need not come back, such as the buffers of a network device.

        Raises:
            NoAnswer: requests do not come back.
            BackEndError: the back-end does wrong, or has gone.
        """
        if drain:
            self.drain()
        state: VringState = self.connection.ask(R.GET_VRING_BASE, VringState(self.index, 0))
        if state.vring != self.index:
            raise WrongAnswer(f"GET_VRING_BASE of queue {self.index} is answered for queue {state.vring}")
        self._base = state.num
        return state.num

    def forget_base(self) -> None:
        """Go on from what has come back, whatever was said at the last stop: the back-end is another."""
        self._base = None

    # Requests

    def put(self, *buffers: Buffer, indirect: bool = False) -> Request:
        """Make a request available, without telling the device. `indirect`: its descriptors in a table of their own.

        Raises:
            ValueError, MemoryError: the ring, or the guest's memory, has no room for it.
        """
        memory = self.memory
        pieces: list[int] = []
        try:
            return self._put(buffers, pieces, indirect=indirect)
        except (ValueError, MemoryError):
            for piece in pieces:
                memory.free(piece)
            raise

    def _put(self, buffers: Sequence[Buffer], pieces: list[int], *, indirect: bool) -> Request:
        """`put`; what it takes of memory is in `pieces`."""
        memory = self.memory
        pieces.extend(memory.allocate(_length(buffer), align=1) for buffer in buffers)
        places = tuple(pieces)
        chain = [
            Descriptor(place, _length(buffer), WRITE if isinstance(buffer, int) else 0)
            for place, buffer in zip(places, buffers, strict=True)
        ]
        for place, buffer in zip(places, buffers, strict=True):
            if isinstance(buffer, bytes):
                memory[place : place + len(buffer)] = buffer
        given = chain
        if indirect:
            table = self.driver.table(chain)
            at = memory.allocate(len(table))
            pieces.append(at)
            memory[at : at + len(table)] = table
            given = [Descriptor(at, len(table), INDIRECT)]
        head = self.driver.put(given)
        writable = tuple((at, length) for at, length, flags in chain if flags & WRITE)
        self._pending[head] = _Pending(writable, tuple(pieces))
        return Request(head, places)

    def kick(self) -> None:
        """Tell the device that there are requests, whether it wants to know or not; never waits."""
        signal_eventfd(self.kick_fd)

    def notify(self) -> bool:
        """Tell the device if it wants to know; whether it did."""
        wanted = self.driver.wants_kick()
        if wanted:
            self.kick()
        return wanted

    def take_used(self) -> list[Completion]:
        """Take what has come back, without a wait.

        Raises:
            BrokenQueue: something came back that the device was not given.
        """
        self._collect()
        done = list(self._done)
        self._done.clear()
        return done

    def wait_used(self, count: int = 1) -> list[Completion]:
        """Take what has come back, and wait until that is at least `count` requests.

        Raises:
            NoAnswer: they do not come back within the front-end's timeout.
            BrokenQueue: the back-end says that the queue is broken, or gives back what it was not given.
            Disconnected: it has gone.
        """
        deadline = Deadline(self.connection.timeout)
        self._collect()
        while len(self._done) < count:
            self._wait(deadline, f"{len(self._done)} of {count} requests came back on queue {self.index}")
        return self.take_used()

    def drain(self) -> None:
        """Wait until all requests have come back; they stay to be taken. One that is broken gives back no more.

        Raises:
            NoAnswer, Disconnected, BrokenQueue: as `wait_used`.
        """
        deadline = Deadline(self.connection.timeout)
        self._collect()
        while self.outstanding and not self._is_broken:
            self._wait(deadline, f"{self.outstanding} requests do not come back on queue {self.index}")

    def exchange(self, *buffers: Buffer, indirect: bool = False) -> Completion:
        """Do one request, and wait for it.

        Raises:
            NoAnswer, Disconnected, BrokenQueue: as `wait_used`.
        """
        head = self.put(*buffers, indirect=indirect).head
        self.kick()
        while True:
            for completion in self.wait_used():
                if completion.head == head:
                    return completion

    def wait_call(self, seconds: float | None = None) -> bool:
        """Whether the device calls, in so many seconds; it is taken note of."""
        return self._heard(self.call_fd, seconds)

    def await_call(self) -> bool:
        """Whether the device calls within the front-end's timeout; it is taken note of.

        Raises:
            BrokenQueue, Disconnected: as `wait_used`.
        """
        ready = self._await(self.connection.timeout)
        if drain(self.call_fd):
            return True
        self._require_alive(ready, "the driver was not called")
        return False

    def wait_err(self, seconds: float | None = None) -> bool:
        """Whether the back-end says that the queue is broken, in so many seconds; it is taken note of."""
        self._is_broken |= self._heard(self.err_fd, seconds)
        return self._is_broken

    def _heard(self, fd: int, seconds: float | None) -> bool:
        _poll([fd], self.connection.timeout if seconds is None else seconds)
        return bool(drain(fd))

    def _kick_pending(self) -> None:
        if self.outstanding:
            self.kick()

    def _wait(self, deadline: Deadline, what: str) -> None:
        """Wait for a call, and collect what came back."""
        self.driver.ask_for_call()
        if self._collect():
            return
        ready = self._await(deadline.remaining)
        drain(self.call_fd)
        if self._collect():
            if not ready:
                raise NoAnswer(f"requests came back on queue {self.index}, and the device does not call its driver")
            return
        self._require_alive(ready, what)
        if not ready and deadline.passed:
            raise NoAnswer(f"{what} within {deadline.seconds:g} s")

    def _await(self, seconds: float) -> set[int]:
        """What there is of a call, a broken queue and the end of the back-end."""
        return _poll([self.call_fd, self.err_fd], seconds, hang_up=self.connection.stream.fileno())

    def _require_alive(self, ready: set[int], what: str) -> None:
        if self.err_fd in ready and self.wait_err(0):
            raise BrokenQueue(f"the back-end says that queue {self.index} is broken")
        if self.connection.stream.fileno() in ready:
            raise Disconnected(f"the back-end has gone: {what}")

    def _collect(self) -> bool:
        """Take what the ring has; whether that was something."""
        memory = self.memory
        before = len(self._done)
        for head, written in self.driver.take_used():
            pending = self._pending.pop(head, _Pending((), ()))
            writable = b"".join(memory[at : at + length] for at, length in pending.writable)
            for piece in pending.pieces:
                memory.free(piece)
            if written > len(writable) and pending.pieces:
                raise BrokenQueue(f"the device says that it wrote {written} bytes, and it was given {len(writable)}")
            self._done.append(Completion(head, written, writable))
        return len(self._done) > before


def _length(buffer: Buffer) -> int:
    return buffer if isinstance(buffer, int) else len(buffer)


def _poll(fds: Sequence[int], seconds: float, hang_up: int | None = None) -> set[int]:
    """Those of the descriptors that are readable, or have been hung up, once there is one or the time is over."""
    poll = select.poll()
    for fd in fds:
        poll.register(fd, select.POLLIN)
    if hang_up is not None and hang_up >= 0:
        poll.register(hang_up, select.POLLRDHUP)
    return {fd for fd, _ in poll.poll(seconds * 1000)}
