"""What a device wants done beside its client's commands: work posted from other threads, work for later, and
descriptors to watch.

It happens on a thread of its own, under the session's lock, so that a device's code is never entered twice at once
and the session's own thread may sleep in a plain receive.
"""

from __future__ import annotations

import contextlib
import heapq
import os
import selectors
import threading
from collections import deque
from collections.abc import Callable
from functools import partial
from itertools import count
from time import monotonic

Work = Callable[[], None]

LONGEST_SLEEP_SECONDS = 3600.0
"""Seconds: epoll takes no more milliseconds than an int has, which are 24 days."""

FORGOTTEN = 64
"""Times of work that was forgotten which are kept at least; beyond, half of all."""


class Worker:
    """Runs work and watches descriptors, each through `run`, which takes the lock. Its thread starts on first use."""

    def __init__(self, run: Callable[[Work], None]) -> None:
        self._run = run
        self._work: deque[Work] = deque()
        self._later: list[tuple[float, int]] = []  # a heap: when, and the number
        self._planned: dict[int, Work] = {}  # by number
        self._numbers = count()
        self._watched: dict[int, Work] = {}
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._selector: selectors.BaseSelector | None = None
        self._wake = -1
        self._ending = False

    def call_soon(self, work: Work) -> None:
        """Run `work` soon, in order; any thread may ask for it."""
        self._work.append(work)
        self._poke()

    def call_later(self, seconds: float, work: Work) -> Work:
        """Run `work` in so many seconds, rounded up to ms; any thread may ask for it. Returns what has it forgotten."""
        number = next(self._numbers)
        with self._lock:
            self._planned[number] = work
            heapq.heappush(self._later, (monotonic() + seconds, number))
        if threading.current_thread() is not self._thread:
            self._poke()
        return partial(self._forget, number)

    def watch(self, fd: int, ready: Work) -> None:
        """Call `ready` whenever `fd` is readable."""
        with self._lock:
            self._start()
            if self._selector is None:
                return
            self._watched[fd] = ready
            with contextlib.suppress(KeyError):
                self._selector.unregister(fd)
            self._selector.register(fd, selectors.EVENT_READ)  # which epoll takes while the thread waits

    def unwatch(self, fd: int) -> None:
        """Stop watching; before the descriptor is closed."""
        with self._lock:
            if self._watched.pop(fd, None) is not None and self._selector is not None:
                self._selector.unregister(fd)

    def close(self) -> None:
        """End the thread; what was posted and has not run is dropped. Not under the lock that `run` takes."""
        self._ending = True
        with self._lock:  # which whoever begins the thread has meanwhile
            thread = self._thread
        if thread is None:
            return
        self._poke()
        thread.join()
        with self._lock:
            assert self._selector is not None
            self._selector.close()
            os.close(self._wake)
            self._wake, self._selector = -1, None
            self._watched.clear()

    def _poke(self) -> None:
        with self._lock:
            self._start()
            if self._wake >= 0:
                os.eventfd_write(self._wake, 1)

    def _start(self) -> None:
        if self._thread is not None or self._ending:
            return
        selector = selectors.DefaultSelector()
        try:
            wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        except OSError:
            selector.close()
            raise
        selector.register(wake, selectors.EVENT_READ)
        self._wake, self._selector = wake, selector
        thread = threading.Thread(target=self._loop, name="vfio-user worker", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # there is no room for it: who asks next tries again
            self._wake, self._selector = -1, None
            selector.close()
            os.close(wake)
            raise
        self._thread = thread

    def _loop(self) -> None:
        selector = self._selector
        assert selector is not None
        while not self._ending:
            for key, _ in selector.select(self._until_next()):
                if key.fd == self._wake:
                    os.eventfd_read(self._wake)
                elif (ready := self._watched.get(key.fd)) is not None:
                    self._run(ready)
            while self._work and not self._ending:
                self._run(self._work.popleft())
            for work in self._due():
                self._run(work)

    def _until_next(self) -> float | None:
        """Seconds until there is something to do, or until a while has passed; None: nothing is planned."""
        with self._lock:
            return min(max(0.0, self._later[0][0] - monotonic()), LONGEST_SLEEP_SECONDS) if self._later else None

    def _forget(self, number: int) -> None:
        with self._lock:
            self._planned.pop(number, None)
            if len(self._later) > 2 * len(self._planned) + FORGOTTEN:
                self._later = [entry for entry in self._later if entry[1] in self._planned]
                heapq.heapify(self._later)

    def _due(self) -> list[Work]:
        """What is due now, and not what it plans in turn: in between there is a look at the descriptors."""
        due = []
        with self._lock:
            while self._later and self._later[0][0] <= monotonic() and not self._ending:
                _, number = heapq.heappop(self._later)
                if number in self._planned:
                    due.append(self._planned.pop(number))
        return due
