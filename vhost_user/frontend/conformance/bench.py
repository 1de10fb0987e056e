"""Where a check meets the back-end: connections, the device's request, and what the back-end does not offer."""

from __future__ import annotations

import select
import time
from collections.abc import Callable
from functools import cached_property, wraps
from pathlib import Path

from userdev.conformance import CheckFailed, Skip, Target, require
from userdev.conformance.check import HURRIED_SECONDS, CheckFunction
from userdev.errors import UserdevError
from userdev.process import Deadline
from userdev.transport import Stream
from vhost_user.frontend.channel import Channel, Said
from vhost_user.frontend.conformance.devices import DeviceKind
from vhost_user.frontend.connection import Connection
from vhost_user.frontend.errors import Disconnected, NoAnswer, NotOffered
from vhost_user.frontend.front_end import FEATURES, PROTOCOL_FEATURES, FrontEnd
from vhost_user.frontend.memory import PAGE, GuestMemory
from vhost_user.frontend.queue import Completion, Queue, Request
from vhost_user.wire import BackEndRequest, ProtocolFeature, VirtioFeature

LOOK_SECONDS = 0.01
"""Between two looks at what nothing tells of: what has come back without a call, or who listens anew."""

CLOSING_SECONDS = 1.0
"""That a back-end has to close and unmap what a front-end has left: one thread may serve, and another tidy up."""

QUIET_SECONDS = 0.1
"""That a ring is looked at which is not to be served: nothing tells that a back-end will do nothing."""

RING = 16
"""Descriptors of a ring, so that it is gone through in a few requests."""


MOST_NEWS = 64
"""Changes of configuration that a device may tell of before it asks for what is waited for."""

ACKNOWLEDGED = ("messages/acknowledged",)
SERVED = (*ACKNOWLEDGED, "rings/served")
"""Checks that most others say nothing without."""

AGREED = ("features/taken",)
"""Of a back-end that does not keep this rule what a feature comes to says nothing: it has none."""


def is_news(channel: Channel, said: Said) -> bool:
    """Whether it tells of a change of configuration, which may come at any time; acknowledged then."""
    if said.request is not BackEndRequest.CONFIG_CHANGE_MSG:
        return False
    if said.needs_reply:
        channel.acknowledge(said)
    return True


def asked_by(channel: Channel) -> Said:
    """The next request of the back-end's own that is no news, waited for; raises as `take`."""
    for _ in range(MOST_NEWS):
        if not is_news(channel, said := channel.take()):
            return said
    raise CheckFailed(f"{MOST_NEWS} changes of configuration are told of, and nothing else")


class Bench:
    """One check's view of the back-end. Everything it opens is closed at the end of the check."""

    def __init__(self, target: Target, device: DeviceKind | None, *, timeout: float) -> None:
        self.target = target
        self.timeout = timeout
        self._device = device
        self._front_ends: list[FrontEnd] = []
        self._beside: list[Queue] = []

    def close(self) -> None:
        """Close all that the check has opened."""
        for front_end in self._front_ends:
            front_end.close()

    # Connections

    def begin(self) -> None:
        """Have a back-end that answers."""
        self.stranger()

    def hurry(self) -> None:
        """As `Workbench.hurry`."""
        self.timeout = min(self.timeout, HURRIED_SECONDS)

    def cause(self) -> None:
        """As `userdev.conformance.Workbench.cause`: nothing is seen here that a check does not say."""

    def stranger(self, *, regions: int = 1, answered: bool = True) -> FrontEnd:
        """A front-end that has agreed on nothing yet; `answered` False: nor knows whether anybody is there."""
        stream = self._connected() if answered else self.target.connect()
        made = FrontEnd(stream, memory=GuestMemory(4 << 20, regions=regions), timeout=self.timeout)
        self._front_ends.append(made)
        return made

    def agreed(self, features: VirtioFeature = FEATURES, protocol: ProtocolFeature = PROTOCOL_FEATURES) -> FrontEnd:
        """One that has negotiated: what is named, as far as it is offered."""
        front_end = self.stranger()
        front_end.negotiate(features, protocol)
        return front_end

    def ready(self, features: VirtioFeature = FEATURES, protocol: ProtocolFeature = PROTOCOL_FEATURES) -> FrontEnd:
        """One that has negotiated and shared its memory."""
        front_end = self.agreed(features, protocol)
        front_end.share_memory()
        return front_end

    @cached_property
    def front_end(self) -> FrontEnd:
        """The check's own front-end, which has negotiated and shared its memory."""
        return self.ready()

    def again(self, front_end: FrontEnd, features: VirtioFeature = FEATURES) -> None:
        """Have it come again by another connection, with its memory; its queues are to be started again."""
        front_end.stream.close()
        front_end.reconnect(self._connected())
        front_end.negotiate(features)
        front_end.share_memory()

    def _connected(self) -> Stream:
        """A new connection, to a back-end that answers."""
        return answering(self.target, timeout=self.timeout)

    # The device

    @property
    def device(self) -> DeviceKind:
        """What it is; skips the check where nobody has said that."""
        if self._device is None:
            raise Skip("no harmless request is known: give --device, or MODULE:CLASS with a sample_request")
        return self._device

    @property
    def config_size(self) -> int:
        """Bytes of configuration space that there are; 1 where nobody has said what device it is."""
        if self._device is None:
            return 1
        if not self._device.config_size:
            raise Skip(f"{self._device.name} has no configuration space")
        return self._device.config_size

    def queue(self, front_end: FrontEnd | None = None, *, size: int = RING) -> Queue:
        """The queue that takes the device's request, of which the back-end is not told yet."""
        front_end = front_end or self.front_end
        self._beside = [front_end.queue(index, RING) for index in self.device.beside]
        self.start_beside()
        return front_end.queue(self.device.queue, size)

    def start_beside(self) -> None:
        """Start the queues that run beside the one with requests."""
        for queue in self._beside:
            queue.start()

    def stop_beside(self) -> None:
        """Stop them."""
        for queue in self._beside:
            queue.stop(drain=False)

    def running(self, front_end: FrontEnd | None = None) -> Queue:
        """The same, started."""
        queue = self.queue(front_end)
        queue.start()
        return queue

    def put(self, queue: Queue, *, indirect: bool = False) -> Request:
        """Make the device's request available."""
        return queue.put(*self.device.request, indirect=indirect)

    def polled(self, queue: Queue, what: str) -> None:
        """Wait until a request has come back right without being told of it; `what` it came by, for a sentence."""
        deadline, pause = Deadline(self.timeout), 0.0
        while not (done := queue.take_used()):
            if deadline.passed:
                raise CheckFailed(f"a request does not come back within {deadline.seconds:g} s {what}")
            queue.connection.settle()  # which gives the back-end its time, and mostly enough
            time.sleep(min(pause, deadline.remaining))
            pause = LOOK_SECONDS
        require(self.device.is_right(done[0]), f"a request is answered with {_shown(done[0])}")

    def served(self, queue: Queue, count: int = 1) -> list[Completion]:
        """Wait until so many requests, which were made available, have come back right."""
        done = queue.wait_used(count)  # and no more than were made available, or it says that the queue is broken
        for completion in done:
            require(self.device.is_right(completion), f"a request is answered with {_shown(completion)}")
        return done

    def serve(self, queue: Queue, count: int = 1, *, indirect: bool = False) -> list[Completion]:
        """Make so many requests available, kick, and wait until they have come back right."""
        for _ in range(count):
            self.put(queue, indirect=indirect)
        queue.kick()
        return self.served(queue, count)

    def called(self, queue: Queue, times: int = 3) -> None:
        """Have requests served, one by one, of each of which the driver has to be told."""
        for _ in range(times):
            queue.wait_call(0)
            queue.driver.ask_for_call()
            self.put(queue)
            queue.kick()
            require(queue.await_call(), "a request was made available, and the driver is not called")
            self.served(queue)

    def notified(self, queue: Queue) -> None:
        """Have requests served, one by one, of each of which the device is told only where it asks for that."""
        for _ in range(2 * RING):
            self.put(queue)
            queue.notify()
            self.served(queue)

    def unasked(self, queue: Queue) -> None:
        """Have a request served of which the driver asks not to be told."""
        self.called(queue)
        queue.driver.ask_for_no_call()
        self.put(queue)
        queue.kick()
        self.polled(queue, "where the driver asks for no call")
        self.uncalled(queue, "a driver that asks for no calls")

    def quiet(self, queue: Queue, what: str) -> None:
        """Nothing may come back of this ring; `what` it is, for a sentence."""
        for _ in range(2):  # a kick that was there at the first has been looked at by the second
            queue.connection.settle()
        deadline = Deadline(QUIET_SECONDS)
        while not deadline.passed:  # some call once at a start, which tells of nothing
            queue.wait_call(deadline.remaining)
            require(not queue.take_used(), f"{what} is served")

    def uncalled(self, queue: Queue, who: str) -> None:
        """Its driver, whose name for a sentence is `who`, must not be called from now on."""
        queue.connection.settle()
        require(not queue.wait_call(QUIET_SECONDS), f"{who} is called")

    def fill_to(self, front_end: FrontEnd, address: int) -> None:
        """Have what is put into the guest's memory from now on lie at this address, or behind."""
        at = front_end.memory.allocate(PAGE)
        front_end.memory.allocate(address - at - PAGE, at=at + PAGE)

    # Judging

    def refused(self, front_end: FrontEnd, said: Callable[[], int], what: str) -> bool:
        """Something wrong has to be answered with an error, or end the connection; whether that goes on.

        An acknowledgement of 0 counts where the connection ends with it, as the storage daemon's does.
        """
        front_end.need(ProtocolFeature.REPLY_ACK)
        try:
            answer = said()
            front_end.settle()
        except Disconnected:
            return False
        require(answer != 0, f"{what} is acknowledged as done")
        return True

    def accepted(self, front_end: FrontEnd, said: Callable[[], int], what: str) -> None:
        """Something right has to be acknowledged with 0, and the connection has to go on."""
        try:
            answer = said()
            front_end.settle()
        except Disconnected as error:
            raise CheckFailed(f"{what}: {error}") from None
        require(answer == 0, f"{what} is answered with {answer:#x}")

    def alive(self) -> None:
        """The next front-end has to be served."""
        for front_end in self._front_ends:
            front_end.close()
        try:
            self.agreed()
        except UserdevError as error:
            raise CheckFailed(f"the next front-end is not served: {error}") from None

    def leave_alone(self, front_end: FrontEnd) -> None:
        """Have the back-end take what it was sent, and look at it for a moment; or hang up."""
        front_end.stream.await_taken(self.timeout)
        poll = select.poll()
        poll.register(front_end.stream.fileno(), select.POLLRDHUP)
        poll.poll(QUIET_SECONDS * 1000)

    def ends(self, front_end: FrontEnd) -> bool:
        """Whether the back-end ends this connection, within its timeout."""
        try:
            front_end.receive()
        except Disconnected:
            return True
        except NoAnswer:
            return False
        return False

    def process_holds(self) -> tuple[int, int]:
        """The descriptors and the mappings of memory files that the back-end's process has."""
        if self.target.pid is None:
            raise Skip("the back-end's process is not known: give --server-command")
        process = Path(f"/proc/{self.target.pid}")
        try:
            return sum(1 for _ in (process / "fd").iterdir()), (process / "maps").read_text().count("memfd:")
        except PermissionError:  # it has made itself so, as passt does (PR_SET_DUMPABLE in prctl(2))
            raise Skip("the back-end shows its descriptors to nobody but root") from None


def answering(target: Target, *, timeout: float) -> Stream:
    """A new connection, to a back-end that answers within `timeout` seconds.

    One that listens anew for each front-end, as vhost-device-vsock does, hangs up on whoever was quicker.
    """
    deadline = Deadline(timeout)
    while True:
        stream = target.connect()
        try:
            Connection(stream, timeout=timeout).settle()
        except Disconnected:
            stream.close()
            if deadline.passed:
                raise
            time.sleep(min(LOOK_SECONDS, deadline.remaining))
        except BaseException:
            stream.close()
            raise
        else:
            return stream


def where_offered(run: CheckFunction[Bench]) -> CheckFunction[Bench]:
    """The check, skipped with the reason that negotiation gave where the back-end does not offer what it needs."""

    @wraps(run)
    def run_where_offered(bench: Bench) -> None:
        try:
            run(bench)
        except NotOffered as reason:
            raise Skip(str(reason)) from None

    return run_where_offered


def _shown(completion: Completion) -> str:
    shown = completion.writable[-32:].hex(" ")
    return f"{completion.written} bytes, the last that it could write being {shown or 'none'}"
