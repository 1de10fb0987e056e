"""A device's state on its way, through the pipe or socket of SET_DEVICE_STATE_FD ("Migrating back-end state").

Either way it goes as the other end takes it, beside messages. CHECK_DEVICE_STATE has to know how it ended, and drives
what is left. Whether the descriptor blocks is a flag that the front-end shares, so each call asks for no wait.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Callable
from time import monotonic

from userdev.errors import ProtocolError
from vhost_user.backend.watcher import Watcher

log = logging.getLogger("vhost_user.backend")

TRANSFER_SECONDS = 60.0
"""Without a byte, before a transfer is given up: what is loaded comes from another host."""

CHECK_SECONDS = 10.0
"""The same while CHECK_DEVICE_STATE waits for the rest, which has come then: messages stand still meanwhile."""

_PIECE = 1 << 16
_ATOMIC = 4096
"""What a pipe takes whole that is ready to be written (PIPE_BUF), where the kernel cannot be told not to wait."""


class StateTransfer(ABC):
    """One transfer, until `outcome` is known; the descriptor is closed with that, which tells the other end."""

    def __init__(self, fd: int, watcher: Watcher, *, writes: bool) -> None:
        """Take over the descriptor.

        Raises:
            ProtocolError: it is neither a pipe nor a socket, or not for this direction; it stays the caller's.
        """
        mode = os.fstat(fd).st_mode
        access = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE
        if not (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)):
            raise ProtocolError("a device's state goes through a pipe or a socket, and this is neither")
        if access not in (os.O_RDWR, os.O_WRONLY if writes else os.O_RDONLY):
            raise ProtocolError("the wrong end of a pipe for a device's state")
        self.outcome: int | None = None
        """0, or the errno of what went wrong; None: it goes on."""
        self.until = monotonic() + TRANSFER_SECONDS
        """When to give up (of `monotonic`)."""
        self._fd = fd
        self._watcher = watcher
        self._writes = writes
        watcher.watch(fd, self._go_on, writable=writes)

    def finish(self) -> int:
        """Have it come to its end, and how it went."""
        while self.outcome is None:
            if self._watcher.wait_for(self._fd, monotonic() + CHECK_SECONDS, writable=self._writes):
                self._go_on()
            else:
                self.expire()
        return self.outcome

    def expire(self) -> None:
        """Give it up: nothing has come or was taken for too long, or the front-end has gone."""
        self._end(errno.ETIMEDOUT, "the other end does nothing")

    def close(self) -> None:
        """Nobody wants to know any more. Idempotent."""
        if self.outcome is None:
            self._end(errno.ECANCELED)

    @abstractmethod
    def _move(self) -> bool:
        """Move a piece of it; False at the end.

        Raises:
            OSError: it cannot be moved, or (BlockingIOError) not now.
            ProtocolError: it is wrong.
        """

    def _go_on(self) -> None:
        try:
            if self._move():
                self.until = monotonic() + TRANSFER_SECONDS
            else:
                self._end(0)
        except BlockingIOError:
            return
        except (OSError, ProtocolError) as error:
            self._end(error.errno or errno.EIO, str(error))

    def _end(self, outcome: int, why: str = "") -> None:
        if why:
            log.warning("a device's state is not %s: %s", "saved" if self._writes else "loaded", why)
        self.outcome = outcome
        self._watcher.unwatch(self._fd)
        os.close(self._fd)


class Saving(StateTransfer):
    """Writes a state."""

    def __init__(self, fd: int, watcher: Watcher, state: bytes) -> None:
        """As `StateTransfer`."""
        self._left = memoryview(state)
        super().__init__(fd, watcher, writes=True)

    def _move(self) -> bool:
        try:
            count = os.pwritev(self._fd, [self._left[:_PIECE]], -1, os.RWF_NOWAIT)
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise
            count = os.write(self._fd, self._left[:_ATOMIC])
        self._left = self._left[count:]
        return bool(self._left)


class Loading(StateTransfer):
    """Reads a state to its end, and has it loaded then."""

    def __init__(self, fd: int, watcher: Watcher, load: Callable[[bytes], None], most: int) -> None:
        """As `StateTransfer`; `load` raises ProtocolError for what it refuses, and takes so many bytes at `most`."""
        self._state = bytearray()
        self._load = load
        self._most = most
        super().__init__(fd, watcher, writes=False)

    def _move(self) -> bool:
        piece = bytearray(_PIECE)
        try:
            count = os.preadv(self._fd, [piece], -1, os.RWF_NOWAIT)
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise
            count = os.readv(self._fd, [piece])
        self._state += piece[:count]
        if len(self._state) > self._most:
            raise ProtocolError(f"it has more than {self._most} bytes", errno.EFBIG)
        if not count:
            self._load(bytes(self._state))
        return bool(count)
