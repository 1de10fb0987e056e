"""The end of a process as an event (pidfd_open(2))."""

from __future__ import annotations

import math
import os
import select

from userdev.process.deadline import Deadline
from userdev.process.owned import OwnedDescriptor


class ProcessEnd(OwnedDescriptor):
    """Waits for the end of a process, be it ours or not. A context manager.

    `fd` is readable once it has ended; what its exit status is, only its parent can ask.
    """

    def __init__(self, pid: int) -> None:
        """Open a pidfd of the process.

        Raises:
            ProcessLookupError: there is no such process.
        """
        self.pid = pid
        super().__init__(os.pidfd_open(pid))

    @property
    def has_come(self) -> bool:
        """Whether the process has ended."""
        return self.wait(0.0)

    def wait(self, limit: float | Deadline, *, or_readable: int | None = None) -> bool:
        """Whether it has ended: known at its end, at the deadline, or when another descriptor becomes readable."""
        left = Deadline.of(limit).remaining
        poller = select.poll()
        poller.register(self.fd, select.POLLIN)
        if or_readable is not None:
            poller.register(or_readable, select.POLLIN)
        ready = poller.poll(None if math.isinf(left) else math.ceil(left * 1000))
        return any(fd == self.fd for fd, _ in ready)
