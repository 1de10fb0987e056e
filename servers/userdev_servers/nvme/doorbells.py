"""Doorbells in a page that the client may map, and how a server sees what nobody tells it.

A guest that maps the page rings by a store to memory: no exit, no message. So the page is looked at, on the session's
worker: again and again while doorbells move, then after pauses that grow with the time since one has, up to a bound,
and not at all while the controller is disabled or stands still. A client that does not map rings by messages, which end
up in the page too.

Who has mapped the page keeps it when the server is replaced: its successor has to have the same one, which is what a
file is for. It goes with the state that was saved last (`sign`): a controller that takes over just that state finds
what the guest has rung since; one that gets another's state begins with where that left off.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import stat
from array import array
from contextlib import ExitStack
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING

from userdev.errors import UserError
from userdev_servers.nvme.queues import SavedQueues, SubmissionQueue
from userdev_servers.nvme.spec import DOORBELLS, PAGE, Csts

if TYPE_CHECKING:
    from userdev_servers.nvme.nvme import Nvme
    from userdev_servers.nvme.queues import CompletionQueue

LOOKS = 100
"""So many in vain, one right after the other, before the first pause."""
SHORTEST = 0.001
"""Seconds of a pause, at least."""
SHARE = 1 / 8
"""Of the time since a doorbell moved: a guest that is slow to ring waits no longer than so much more."""
IN_MEMORY = "memfd"
SIGNATURE = 64
"""Bytes at the beginning of the file, which no client maps."""


class Doorbells:
    """The page of one controller. `look` and all else is called where handlers run."""

    def __init__(self, device: Nvme, place: str, count: int, size: int, longest: float) -> None:
        """`place`: the file, or `memfd` for none that another server could open; of `size` bytes as BAR 0, which has
        `count` doorbells. `longest`: the bound of pauses, in seconds.

        Raises:
            UserError: a file that cannot be such a page, or is that of another server.
        """
        self._device = device
        self._longest = longest
        self.fd, self._lock = _open(place, size)
        self._map = mmap.mmap(self.fd, size)
        self._page = memoryview(self._map)[DOORBELLS : DOORBELLS + 4 * count].cast("I")
        self._seen = array("I", self._page)
        device.let_map(0, DOORBELLS, PAGE, self.fd)
        self._left_over = any(self._page)
        """Rung by the guest of a server that is gone: the first client is told, as one that rings too early."""
        self.looks = 0
        """So far."""
        self._planned: float | None = None  # the pause before the next look; None: there is none
        self._turn = 0  # the number of that look
        self._left = 0  # looks before the next pause
        self._last = 0.0  # when a doorbell moved, or was about to

    def close(self) -> None:
        self._page.release()
        self._map.close()
        os.close(self.fd)
        os.close(self._lock)

    # What is in the page

    def store(self, index: int, value: int) -> None:
        """A doorbell that was rung by message."""
        self._page[index] = self._seen[index] = value

    def clear(self, *queues: SubmissionQueue | CompletionQueue) -> None:
        """Forget what was rung for these queues, before they are there; of all, if none are named."""
        for index in map(_index, queues) if queues else range(len(self._page)):
            self.store(index, 0)

    def settle(self) -> None:
        """Take over where the guest says that its queues are, and act on it another time."""
        for sq in self._device.engine.submission_queues.values():
            if (sq.shadow is None or not sq.id) and (tail := self._page[_index(sq)] & 0xFFFF) < sq.size:
                sq.tail = tail
        for cq in self._device.engine.completion_queues.values():
            if (cq.shadow is None or not cq.id) and (head := self._page[_index(cq)] & 0xFFFF) < cq.size:
                cq.head = head

    def sign(self, queues: SavedQueues) -> None:
        """The page goes with these queues, which are being saved."""
        if self._device.enabled:  # and not about to become what was saved elsewhere
            self._map[:SIGNATURE] = _signature(queues)

    def load(self, queues: SavedQueues) -> None:
        """After the engine has these queues. What was rung since they were saved is seen by the next look."""
        is_theirs = self._map[:SIGNATURE] == _signature(queues)
        if not is_theirs:
            self.clear()
        engine = self._device.engine
        places = {_index(sq): sq.tail for sq in engine.submission_queues.values()}
        places |= {_index(cq): cq.head for cq in engine.completion_queues.values()}
        for index, place in places.items():
            self._seen[index] = place
            if not is_theirs:
                self._page[index] = place

    # Looking

    def watch(self) -> None:
        """Look, from now on, and often: there is work, or there was."""
        self._left, self._last = LOOKS, monotonic()
        if self._planned != 0 and self._has_to_look:
            self._plan(0.0)

    def watch_anew(self) -> None:
        """What was planned went with the client before, or with a reset."""
        self._planned = None
        if self._left_over:
            self._left_over = False
            self._device.status |= Csts.FATAL
        self.watch()

    def look(self, turn: int) -> None:
        """Act on what the guest has rung, and plan the next look."""
        if turn != self._turn:
            return
        self._planned = None
        if not self._has_to_look:
            return
        self.looks += 1
        self._left -= 1
        try:
            if self._take():
                self.watch()
        finally:
            if self._planned is None:
                self._plan(self._next_pause())

    def _plan(self, pause: float) -> None:
        """The next look; one that was planned before is not made."""
        self._planned = pause
        self._turn += 1
        self._device.call_later(pause, partial(self.look, self._turn))

    def _next_pause(self) -> float:
        if self._left > 0:
            os.sched_yield()
            return 0.0
        return min(max(SHORTEST, SHARE * (monotonic() - self._last)), self._longest)

    @property
    def _has_to_look(self) -> bool:
        device = self._device
        return device.enabled and not device.status & Csts.FATAL and not device.engine.quiet

    def _take(self) -> bool:
        """Ring what has changed in the page, and shadow doorbells; whether there was anything."""
        device = self._device
        moved = bool(device.shadow_buffers) and device.engine.look_at_shadows()
        page, seen, engine = self._page, self._seen, device.engine
        if page == seen:
            return moved
        for number in engine.completion_queues:
            if (head := page[2 * number + 1]) != seen[2 * number + 1]:
                seen[2 * number + 1] = head
                engine.completion_doorbell(number, head & 0xFFFF)
        for number in engine.submission_queues:
            if (tail := page[2 * number]) != seen[2 * number]:
                seen[2 * number] = tail
                engine.submission_doorbell(number, tail & 0xFFFF)
        if page != seen:
            self._refuse()
        return True

    def _refuse(self) -> None:
        """Tell the guest of doorbells that it has rung for queues that are not there."""
        for index, value in enumerate(self._page):
            if value != self._seen[index]:
                self._seen[index] = value
                self._device.ring(index, value)


def _index(queue: SubmissionQueue | CompletionQueue) -> int:
    return 2 * queue.id + (not isinstance(queue, SubmissionQueue))


def _signature(queues: SavedQueues) -> bytes:
    from hashlib import sha256

    return sha256(repr(queues).encode()).hexdigest().encode()


def _open(place: str, size: int) -> tuple[int, int]:
    """A file of `size` bytes, zeros if it is new; and a descriptor that keeps it locked.

    The lock is not that of the file's descriptor, a copy of which the client keeps when the server is gone.
    """
    if place == IN_MEMORY:
        fd = os.memfd_create("nvme-doorbells", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(fd, size)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
        return fd, os.dup(fd)
    with ExitStack() as opened:
        try:
            fd, lock = (os.open(place, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600) for _ in range(2))
            opened.callback(os.close, fd)
            opened.callback(os.close, lock)
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.fstat(fd).st_size:
                os.ftruncate(fd, size)
        except BlockingIOError:
            raise UserError(
                f"{place} has the doorbells of another server", hint="each controller has its own"
            ) from None
        except OSError as error:
            raise UserError(f"doorbells cannot be in {place}: {error.strerror}") from None
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_size != size:
            raise UserError(f"{place} has no doorbells: they are in a file of {size} bytes, in a tmpfs at best")
        opened.pop_all()
        return fd, lock
