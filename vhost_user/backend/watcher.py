"""What the parts of a session ask of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol


class Watcher(Protocol):
    """Whoever waits for descriptors."""

    def watch(self, fd: int, ready: Callable[[], None]) -> None:
        """Call `ready` when there is something to read.

        Raises:
            OSError: it cannot be waited for.
        """

    def unwatch(self, fd: int) -> None:
        """Wait for it no more; before it is closed."""

    def call_soon(self, work: Callable[[], None]) -> None:
        """Run `work` on the session's thread. From any thread."""
