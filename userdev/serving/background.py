"""Work that waits for something, a disk perhaps, off the thread that serves, which looks at its outcome."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
from typing import Generic, TypeVar

T = TypeVar("T")

log = logging.getLogger("userdev.serving")

THREADS = 4
"""As many pieces of work wait at once."""


class Background(Generic[T]):
    """A few threads, which begin with the work. `wake` is called from them when `reap` has something to do.

    Only the thread that submits also reaps and closes.
    """

    def __init__(self, wake: Callable[[], None], name: str) -> None:
        """`name` is that of the threads, for people."""
        self._wake = wake
        self._name = name
        self._threads: list[threading.Thread] = []
        self._waiting: SimpleQueue[tuple[Callable[[], T], Callable[[T | Exception], None]] | None] = SimpleQueue()
        self._ended: deque[tuple[Callable[[T | Exception], None], T | Exception]] = deque()
        self._changed = threading.Condition()
        self._running = 0
        self.outstanding = 0
        """Work begun whose end was not told yet."""

    def submit(self, work: Callable[[], T], done: Callable[[T | Exception], None]) -> None:
        """Run `work` on a thread; what it returns, or the exception that it raises, is given to `done` by `reap`.

        Raises:
            RuntimeError: there is no thread, and no room for one; the work is nobody's then.
        """
        if len(self._threads) < min(self.outstanding + 1, THREADS):
            self._begin_thread()
        self.outstanding += 1
        with self._changed:
            self._running += 1
        self._waiting.put((work, done))

    def reap(self) -> None:
        """Tell of all work that has ended, in the order of its end."""
        while self._ended:
            done, outcome = self._ended.popleft()
            self.outstanding -= 1
            done(outcome)

    def wait(self) -> None:
        """Wait until nothing runs; whatever it waits for decides how long that takes."""
        with self._changed:
            self._changed.wait_for(lambda: not self._running)

    def close(self) -> None:
        """End the threads after what they are at; work that waits is done before."""
        for _ in self._threads:
            self._waiting.put(None)
        while self._threads:
            self._threads.pop().join()

    def _begin_thread(self) -> None:
        thread = threading.Thread(target=self._run, name=self._name, daemon=True)
        try:
            thread.start()
        except RuntimeError:
            if not self._threads:
                raise
        else:
            self._threads.append(thread)

    def _run(self) -> None:
        while (item := self._waiting.get()) is not None:
            work, done = item
            outcome: T | Exception
            try:
                outcome = work()
            except Exception as error:
                outcome = error
            except SystemExit as end:
                outcome = RuntimeError(f"it has called sys.exit({end.code!r})")
            self._ended.append((done, outcome))
            try:
                self._wake()
            except Exception:  # whoever waits counts on this thread; `reap` finds the outcome whenever it looks
                log.exception("nobody could be told that work has ended")
            with self._changed:
                self._running -= 1
                self._changed.notify_all()
