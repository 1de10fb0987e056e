"""The page of doorbells that a client may map: a file, and what of it was seen.

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
from hashlib import sha256

from userdev.errors import UserError
from userdev.memory.guard import guard
from userdev_servers.nvme.queues import CompletionQueue, SavedQueues, SubmissionQueue
from userdev_servers.nvme.spec import DOORBELLS

IN_MEMORY = "memfd"
SIGNATURE = 64
"""Bytes at the beginning of the file, which no client maps."""


class DoorbellPage:
    """The page of one controller, and what its server has acted on."""

    def __init__(self, place: str, count: int, size: int) -> None:
        """`place`: the file, or `memfd` for none that another server could open; of `size` bytes as BAR 0, which has
        `count` doorbells.

        Raises:
            UserError: a file that cannot be such a page, or is that of another server.
        """
        self.fd, self._lock = _open(place, size)
        self._map = mmap.mmap(self.fd, size)
        if place != IN_MEMORY:  # which is sealed; a file the client can make smaller
            guard(self._map)
        self.rung = memoryview(self._map)[DOORBELLS : DOORBELLS + 4 * count].cast("I")
        """What the guest has written, by the doorbells' places."""
        self.seen = array("I", self.rung)
        """What of it was acted on."""
        self.is_left_over = any(self.rung)
        """Rung by the guest of a server that is gone."""

    def close(self) -> None:
        """Unmap the page, close its file, and let go of the lock that says it is in use."""
        self.rung.release()
        self._map.close()
        os.close(self.fd)
        os.close(self._lock)

    def store(self, index: int, value: int) -> None:
        """A doorbell that was rung by message."""
        self.rung[index] = self.seen[index] = value

    def clear(self, *queues: SubmissionQueue | CompletionQueue) -> None:
        """Forget what was rung for these queues, before they are there; of all, if none are named."""
        for index in map(place_of, queues) if queues else range(len(self.rung)):
            self.store(index, 0)

    def sign(self, queues: SavedQueues) -> None:
        """The page goes with these queues, which are being saved."""
        self._map[:SIGNATURE] = _signature(queues)

    def goes_with(self, queues: SavedQueues) -> bool:
        """Whether it was signed for just these."""
        return self._map[:SIGNATURE] == _signature(queues)


def place_of(queue: SubmissionQueue | CompletionQueue) -> int:
    """The place of a queue's doorbell among all."""
    return 2 * queue.id + (not isinstance(queue, SubmissionQueue))


def _signature(queues: SavedQueues) -> bytes:
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
