"""Interrupts as the kernel delivers them: an eventfd counts how often it was triggered."""

from __future__ import annotations

import os
import select

from userdev.eventfd import drain
from vfio_user.client.errors import NoAnswer


class EventFd:
    """An eventfd to hand to SET_IRQS. A context manager; closing is idempotent."""

    def __init__(self) -> None:
        self.fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def fileno(self) -> int:
        """The descriptor; -1 once it is closed."""
        return self.fd

    def take(self) -> int:
        """The number of triggers since it was last asked; never waits, whatever the server has made of the file."""
        return drain(self.fd)

    def wait(self, timeout: float = 5.0) -> int:
        """Wait until it is triggered; how often it was.

        Raises:
            NoAnswer: it was not, within `timeout` seconds.
        """
        poll = select.poll()
        poll.register(self.fd, select.POLLIN)
        if not poll.poll(timeout * 1000):
            raise NoAnswer(f"no interrupt within {timeout:g} s")
        return self.take()

    def close(self) -> None:
        """Close the descriptor."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __enter__(self) -> EventFd:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
