"""What the parts of a session ask of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol


class Watcher(Protocol):
    """Whoever waits for descriptors."""

    def watch(self, fd: int, ready: Callable[[], None], *, writable: bool = False) -> None:
        """Call `ready` when there is something to read; or, `writable`, room to be written to.

        Raises:
            OSError: it cannot be waited for.
        """

    def unwatch(self, fd: int) -> None:
        """Wait for it no more; before it is closed."""

    def wait_for(self, fd: int, until: float, *, writable: bool) -> bool:
        """Wait for this descriptor alone until then (of `monotonic`); False when that has come, or nobody is there."""

    def call_soon(self, work: Callable[[], None]) -> None:
        """Run `work` on the session's thread. From any thread."""
