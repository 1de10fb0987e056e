"""The way from a device to its client: what a session offers the device while it is attached."""

from __future__ import annotations

import errno
import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import Protocol

from userdev.errors import AUTHORS_FAILURES, ProtocolError

log = logging.getLogger("vfio_user.device")


class Link(Protocol):
    """One client's session. All of it is called on the session's thread, except `call_soon`."""

    @property
    def in_band_interrupts(self) -> bool:
        """Interrupts without eventfd may go to the client as messages (`interrupt`)."""

    def dma_read(self, iova: int, count: int) -> bytes:
        """Read client memory by messages, in chunks of the client's size.

        Raises:
            ProtocolError: the client's errno; EDEADLK inside a register's reader, where a client that waits for the
                register cannot answer.
        """

    def dma_write(self, iova: int, data: bytes | memoryview) -> None:
        """Write client memory by messages; raises as `dma_read`."""

    def interrupt(self, index: int, vector: int) -> None:
        """Send an interrupt as a message."""

    def defer(self, work: Callable[[], None]) -> None:
        """Run `work` on the session's thread once the replies of the current batch are sent."""

    def call_soon(self, work: Callable[[], None]) -> None:
        """Wake the session's thread and run `work` there; any thread may ask."""

    def call_later(self, seconds: float, work: Callable[[], None]) -> Callable[[], None]:
        """Run `work` once, where handlers run, in so many seconds; not at all if the client goes before.

        What is returned has it forgotten.
        """

    def watch(self, fd: int, ready: Callable[[], None]) -> None:
        """Call `ready` on the session's thread whenever `fd` is readable, until `unwatch`."""

    def unwatch(self, fd: int) -> None:
        """Stop watching; before the fd is closed."""


class NoClient:
    """The link of a device that nobody is attached to: work runs at once, memory and interrupts go nowhere.

    Whoever comes while another thread is at work leaves its own to that, and does not wait: that one may wait for it.
    """

    in_band_interrupts = False

    def __init__(self) -> None:
        self._work: deque[Callable[[], None]] = deque()
        self._turn = threading.Lock()
        self._next: Link | None = None

    def dma_read(self, iova: int, count: int) -> bytes:
        """Refuse.

        Raises:
            ProtocolError: EFAULT, always.
        """
        raise ProtocolError(f"no client whose memory at {iova:#x} could be read", errno.EFAULT)

    def dma_write(self, iova: int, data: bytes | memoryview) -> None:
        """Refuse.

        Raises:
            ProtocolError: EFAULT, always.
        """
        raise ProtocolError(f"no client whose memory at {iova:#x} could be written", errno.EFAULT)

    def interrupt(self, index: int, vector: int) -> None:
        """Drop the interrupt."""

    def defer(self, work: Callable[[], None]) -> None:
        """Run `work` now; see `call_soon`."""
        self.call_soon(work)

    def call_soon(self, work: Callable[[], None]) -> None:
        """Run `work` now, on the thread that asks; behind what is being done, if anything is, by whoever does that.

        Raises what it does, here and now; what it raises elsewhere is logged.
        """
        self._work.append(work)
        if (failure := self._go_on(work)) is not None:
            raise failure

    def make_way(self, link: Link) -> None:
        """A client comes: wait until nothing is being done, and leave all that is to come to its session."""
        with self._turn:
            self._next = link
        self._go_on()

    def _go_on(self, own: Callable[[], None] | None = None) -> BaseException | None:
        """Do what is there, unless somebody is at it; what the `own` work raised."""
        failure: BaseException | None = None
        while self._work and self._turn.acquire(blocking=False):
            try:
                while self._work:
                    work = self._work.popleft()
                    try:
                        work() if self._next is None else self._next.call_soon(work)
                    except AUTHORS_FAILURES as error:
                        if work is own:
                            failure = error
                        else:
                            log.exception("work that was posted while no client was there failed")
            finally:
                self._turn.release()
        return failure

    def call_later(self, seconds: float, work: Callable[[], None]) -> Callable[[], None]:
        """Forget `work`: there is no loop that would wait."""
        return _nothing

    def watch(self, fd: int, ready: Callable[[], None]) -> None:
        """Do nothing: there is no loop that would look."""

    def unwatch(self, fd: int) -> None:
        """Do nothing."""


def _nothing() -> None:
    """There is nothing to forget."""
