"""One ring of a session: what the front-end has said of it, its descriptors, and how its requests are taken."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final

from userdev.declare.returned import WrongReturn
from userdev.errors import AUTHORS_FAILURES
from userdev.eventfd import drain
from userdev.serving.background import Background
from vhost_user.backend.in_band import InBand
from vhost_user.backend.lifecycle import RingEvent, RingState, after
from vhost_user.backend.line import Line
from vhost_user.backend.misses import Misses
from vhost_user.backend.watcher import Watcher
from vhost_user.device.queues import Begun, Left
from vhost_user.memory import IotlbMiss
from vhost_user.rings import BrokenRing, Chain, Ring, RingAddresses, WrongLength
from vhost_user.wire import BackEndRequest

if TYPE_CHECKING:
    from vhost_user.device import Later, Taken, VhostDevice

log = logging.getLogger("vhost_user.backend")

BATCH: Final = 32
"""Requests whose end is told at once: the index is stored and the driver asked for its wish once for all of them."""


WANTED: Final = "how many bytes it has written, 0 for none, or a function that does the rest and returns that"
"""What a function that takes requests has to return."""


class Vring:
    """A ring, from SET_VRING_NUM on. Only `Vrings` stops it."""

    def __init__(
        self,
        index: int,
        device: VhostDevice,
        watcher: Watcher,
        make: Callable[[Vring], Ring],
        misses: Misses,
        in_band: InBand,
    ) -> None:
        """`make` makes the ring of what is said here, when it begins to run. Its BrokenRing is a broken ring; after
        its IotlbMiss it is called again.
        """
        self.index = index
        self.state = RingState.STOPPED
        self.size = 0
        self.base: int | None = None
        """Where to begin, as SET_VRING_BASE says; None: where a ring begins that nobody has used."""
        self.addresses: RingAddresses | None = None
        self.log_address: int | None = None
        self.call = Line(partial(in_band.signal, BackEndRequest.VRING_CALL, index))
        self.err = Line(partial(in_band.signal, BackEndRequest.VRING_ERR, index))
        self.ring: Ring | None = None
        self.is_polled = False
        """Whether it is looked at without being told: SET_VRING_KICK without a descriptor."""
        self.is_told = False
        """Whether SET_VRING_ENABLE has come; without PROTOCOL_FEATURES a ring starts enabled."""
        self.pending = False
        """Whether there may be requests."""
        self.is_awake = False
        """Whether its driver was told that it need not tell of requests, as they are looked for: until `rest`."""
        self.owes = False
        """Whether requests were given back that the driver has not got: `publish`."""
        self.tell_others: Callable[[], None] = lambda: None
        """Called when it has begun to run."""
        self._device = device
        self._watcher = watcher
        self._make = make
        self._misses = misses
        self._is_waiting = False
        """For a translation."""
        self._kick = -1
        self._has_begun = False
        """Whether the device was told that it runs."""
        self._was_broken = False
        """Whether people were told that it is, and not yet that it runs again."""

    def __str__(self) -> str:
        return f"queue {self.index} of {type(self._device).__name__}"

    def set_kick(self, fd: int | None) -> None:
        """Take over the descriptor that tells of requests; None: look without being told.

        Raises:
            OSError: it cannot be waited for; it stays the caller's.
        """
        if fd is not None:
            self._watcher.watch(fd, self._drain_kick)
        self._drop_kick()
        self._kick = -1 if fd is None else fd
        self.is_polled = fd is None

    def happen(self, event: RingEvent) -> None:
        """Go where an event leads."""
        leaves = self.state is RingState.RUNNING and after(self.state, event) is not RingState.RUNNING
        if leaves and event is not RingEvent.BREAK and self.ring is not None and self.ring.resubmitted:
            self.serve()  # where a ring goes on is behind them, and nobody else would do them
        before, self.state = self.state, after(self.state, event)
        if before is not RingState.RUNNING and self.state is RingState.RUNNING:
            self._run()
        elif before is RingState.RUNNING and self.state is not RingState.RUNNING:
            self.pending = self.is_awake = False
            self._end()
            self._go_on()
            if self._has_begun:
                self._has_begun = False
                self._tell(self._device.on_stop)

    def let_go(self) -> None:
        """Have it be as one that was never started, but for its size, its addresses, and whom it tells."""
        if self.ring is not None:
            self.base = self.ring.base
        self.ring = None
        self._drop_kick()
        self.is_polled = False

    def forget(self) -> None:
        """Have it be as it was in the beginning."""
        self.call.forget()
        self.err.forget()
        self.size, self.base, self.addresses, self.log_address = 0, None, None, None
        self.state, self.is_told = RingState.STOPPED, False
        if self._was_broken:
            self._was_broken = False
            log.info("%s is gone with its front-end after it was broken", self)

    def serve(self) -> None:
        """Take requests, not more than the ring can have: others wait too."""
        ring = self.ring
        if ring is None or not self._has_begun:
            self._run()
            return
        waited, self._is_waiting = self._is_waiting, False
        try:
            if waited and self.owes:
                self.publish()
            self.pending = self._take(ring)
        except IotlbMiss as miss:
            self.publish()
            if not self._is_waiting:
                self._wait_for(miss)
        except AUTHORS_FAILURES as error:
            self._fail(ring, error)
        if waited and not self._is_waiting:
            self._misses.drop(self)

    def look(self) -> bool:
        """Whether there are requests, of which its driver need not tell."""
        return self._ask(lambda ring: ring.has_requests())

    def rest(self) -> bool:
        """Have its driver tell of requests from now on; whether some have come before it could know."""
        self.is_awake = False
        return self._ask(lambda ring: ring.enable_kicks())

    def publish(self) -> None:
        """Let the driver have what was given back."""
        self.owes = False
        if self.ring is not None:
            try:
                if self.ring.publish():
                    self.call.signal()
            except IotlbMiss as miss:
                self.owes = True
                self._wait_for(miss)
            except BrokenRing as error:
                self.break_down(str(error))

    def recall(self) -> None:
        """Have nothing be under way that uses memory; the ring runs on."""

    def other_began(self) -> None:
        """Take note that another ring of the device has begun to run."""

    def break_down(self, why: str) -> None:
        """Take no requests any more; the front-end is told, and people are."""
        self._was_broken = True
        log.warning("%s is broken until it is started again: %s", self, why)
        self.happen(RingEvent.BREAK)
        self.err.signal()

    def _run(self) -> None:
        """Take up requests, also those that came before: whoever was told of them may not be there any more."""
        self.pending = False
        try:
            if self.ring is None:
                self.ring = self._make(self)
                self._go_on()
        except IotlbMiss as miss:
            self._wait_for(miss)
            return
        except BrokenRing as error:
            self.break_down(str(error))
            return
        self._begin()
        self._has_begun = self._tell(self._device.on_start)
        if not self._has_begun:
            self.break_down("its device has failed")
            return
        self.pending = True
        if self._was_broken:
            self._was_broken = False
            log.info("%s is started again after it was broken", self)
        self.tell_others()
        self.call.signal()  # a back-end that died may have owed it

    def _wait_for(self, miss: IotlbMiss) -> None:
        """Have what is not translated be asked for; the request that has missed stays where it is."""
        self.pending = self.is_awake = False
        self._is_waiting = True
        self._misses.wait(self, miss)

    def _go_on(self) -> None:
        self._is_waiting = False
        self._misses.drop(self)

    def _begin(self) -> None:
        """Be ready for requests, before the device is told that the ring runs."""

    def _end(self) -> None:
        """Have nothing be under way; the ring does not run any more."""

    def _take(self, ring: Ring) -> bool:
        """Take requests, and publish what becomes of them; whether there may be more.

        Raises:
            BrokenRing: one of them cannot be right.
            IotlbMiss: an address has to be asked for first.
        """
        raise NotImplementedError

    def _ask(self, question: Callable[[Ring], bool]) -> bool:
        assert self.ring is not None
        try:
            self.pending = question(self.ring)
        except IotlbMiss as miss:
            self._wait_for(miss)
        except BrokenRing as error:
            self.break_down(str(error))
        return self.pending

    def _fail(self, ring: Ring, error: BaseException) -> None:
        """A request cannot be right, or the device has failed at it; what was done before is right."""
        if isinstance(error, BrokenRing | WrongReturn):
            why = str(error)
        else:
            why = "its device has failed"
            log.error("%s: the device failed at a request", self, exc_info=error)
        if not ring.is_lost:
            self.publish()
        self.break_down(why)

    def kicked(self) -> None:
        """The driver has made something available."""
        self.pending = self.state is RingState.RUNNING

    def _drain_kick(self) -> None:
        drain(self._kick)
        self.kicked()

    def _drop_kick(self) -> None:
        if self._kick >= 0:
            self._watcher.unwatch(self._kick)
            os.close(self._kick)
            self._kick = -1

    def _tell(self, hook: Callable[[int], None]) -> bool:
        try:
            hook(self.index)
        except AUTHORS_FAILURES:
            log.exception("%s: the device failed at %s", self, hook.__name__)
            return False
        return True


class HandledVring(Vring):
    """A ring whose requests a function takes as they come."""

    def __init__(
        self,
        index: int,
        device: VhostDevice,
        handler: Callable[[Chain], Taken],
        watcher: Watcher,
        make: Callable[[Vring], Ring],
        misses: Misses,
        in_band: InBand,
        background: Background[int],
        drain: Callable[[], None],
    ) -> None:
        """`drain` waits for what `background` is at, and has it given back."""
        super().__init__(index, device, watcher, make, misses, in_band)
        self._handler = handler
        self._background = background
        self._drain = drain
        self._has_left = False
        """Whether the next request waits for another ring."""

    def recall(self) -> None:  # noqa: D102 - Vring has it
        self._drain()

    def other_began(self) -> None:  # noqa: D102 - Vring has it
        if self._has_left:
            self.kicked()

    def _end(self) -> None:
        self._has_left = False
        self._drain()

    def _ask(self, question: Callable[[Ring], bool]) -> bool:
        return super()._ask(question) and not self._is_left()

    def _is_left(self) -> bool:
        """Whether what there is was left; it is not looked for then."""
        if self._has_left:
            self.pending = False
        return self._has_left

    def _take(self, ring: Ring) -> bool:
        handler, pop, push = self._handler, ring.pop, ring.push
        self._has_left = False
        if not self.is_awake:
            self.is_awake = True
            ring.disable_kicks()
        left = ring.size
        while left > 0:
            count = 0
            begun: list[tuple[Chain, Begun]] = []
            try:
                while count < BATCH and (chain := pop()) is not None:
                    done = handler(chain)
                    if isinstance(done, int):
                        try:
                            push(chain, done)
                        except WrongLength as error:
                            raise _wrong_length(handler, done, error) from None
                    elif isinstance(done, Begun):
                        begun.append((chain, done))
                    elif isinstance(done, Left):
                        self._has_left = True
                        ring.unpop(chain)
                        break
                    else:
                        self._wait_with(ring, chain, done, self._handler)
                    count += 1
            finally:
                if begun:
                    self._end_begun(ring, begun)
            if count and ring.publish():
                self.call.signal()
            if count < BATCH:
                return False
            left -= count
        return True

    def _end_begun(self, ring: Ring, begun: list[tuple[Chain, Begun]]) -> None:
        """Have all of them be done, whatever the device says of one: none may use guest memory after this."""
        failure: BaseException | None = None
        for chain, request in begun:
            try:
                done = request.end()
                if isinstance(done, int):
                    _push(ring, chain, done, request.end)
                else:
                    self._wait_with(ring, chain, done, request.end)
            except AUTHORS_FAILURES as error:
                failure = error
        if failure is not None:
            raise failure

    def _wait_with(self, ring: Ring, chain: Chain, rest: Later, function: Callable[..., object]) -> None:
        """Have the rest of a request, which `function` has returned, be done on another thread.

        Raises:
            WrongReturn: that is nothing that can be done.
        """
        if not callable(rest):
            raise WrongReturn(function, rest, WANTED)
        self._background.submit(rest, partial(self._ended, ring, chain, rest))

    def _ended(self, ring: Ring, chain: Chain, rest: Later, outcome: int | Exception) -> None:
        """The rest of a request was done on another thread."""
        try:
            if isinstance(outcome, Exception):
                raise outcome
            if not isinstance(outcome, int):
                raise WrongReturn(rest, outcome, WANTED)
            _push(ring, chain, outcome, rest)
            self.owes = True
        except AUTHORS_FAILURES as error:
            self._fail(ring, error)


def _push(ring: Ring, chain: Chain, written: int, function: Callable[..., object]) -> None:
    """Give back a request of which `function` has said how much is written.

    Raises:
        WrongReturn: so much cannot be.
    """
    try:
        ring.push(chain, written)
    except WrongLength as error:
        raise _wrong_length(function, written, error) from None


def _wrong_length(function: Callable[..., object], written: int, error: WrongLength) -> WrongReturn:
    return WrongReturn(function, written, f"{WANTED}, not {error}")
