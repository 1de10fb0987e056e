"""Work that waits for the disk, off the session's thread. Its outcome is looked at where handlers run."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

Outcome = Exception | None
Work = Callable[[], None]
Done = Callable[[Outcome], None]


class Background:
    """A few threads. `wake` is called from them when `reap` has something to do."""

    def __init__(self, wake: Callable[[], None], threads: int = 4) -> None:
        self._wake = wake
        self._threads = threads
        self._pool: ThreadPoolExecutor | None = None
        self._ended: deque[tuple[Done, Outcome]] = deque()
        self._changed = threading.Condition()
        self._running = 0
        self.outstanding = 0
        """Work begun whose end was not told yet. For the thread that submits and reaps."""

    def submit(self, work: Work, done: Done) -> None:
        """Run `work` on a thread; what it raises, or None, is given to `done` by `reap`."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="nvme")
        self.outstanding += 1
        with self._changed:
            self._running += 1
        self._pool.submit(self._run, work, done)

    def reap(self) -> None:
        """Tell of all work that has ended, in the order of its end."""
        while self._ended:
            done, outcome = self._ended.popleft()
            self.outstanding -= 1
            done(outcome)

    def wait(self) -> None:
        """Wait until nothing runs; the disk decides how long that takes."""
        with self._changed:
            self._changed.wait_for(lambda: not self._running)

    def close(self) -> None:
        """End the threads after what they are at; work that waits is done before."""
        if self._pool is not None:
            self._pool.shutdown()

    def _run(self, work: Work, done: Done) -> None:
        outcome: Outcome = None
        try:
            work()
        except Exception as error:
            outcome = error
        self._ended.append((done, outcome))
        self._wake()
        with self._changed:
            self._running -= 1
            self._changed.notify_all()
