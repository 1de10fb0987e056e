"""What a device wants done beside its client's commands: work posted from other threads, and descriptors to watch.

It happens on a thread of its own, under the session's lock, so that a device's code is never entered twice at once
and the session's own thread may sleep in a plain receive.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import threading
from collections import deque
from collections.abc import Callable

Work = Callable[[], None]


class Worker:
    """Runs work and watches descriptors, each through `run`, which takes the lock. Its thread starts on first use."""

    def __init__(self, run: Callable[[Work], None]) -> None:
        self._run = run
        self._work: deque[Work] = deque()
        self._watched: dict[int, Work] = {}
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._selector: selectors.BaseSelector | None = None
        self._wake = -1
        self._ending = False

    def call_soon(self, work: Work) -> None:
        """From any thread: run `work` soon, in order."""
        self._work.append(work)
        self._poke()

    def watch(self, fd: int, ready: Work) -> None:
        """Call `ready` whenever `fd` is readable."""
        with self._lock:
            self._start()
            if self._selector is None:
                return
            self._watched[fd] = ready
            with contextlib.suppress(KeyError):
                self._selector.unregister(fd)
            self._selector.register(fd, selectors.EVENT_READ)
        self._poke()

    def unwatch(self, fd: int) -> None:
        """Stop watching; before the descriptor is closed."""
        with self._lock:
            if self._watched.pop(fd, None) is not None and self._selector is not None:
                self._selector.unregister(fd)

    def close(self) -> None:
        """End the thread; what was posted and has not run is dropped. Not under the lock that `run` takes."""
        self._ending = True
        if self._thread is None:
            return
        self._poke()
        self._thread.join()
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
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._wake, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._loop, name="vfio-user worker", daemon=True)
        self._thread.start()

    def _loop(self) -> None:
        selector = self._selector
        assert selector is not None
        while not self._ending:
            for key, _ in selector.select():
                if key.fd == self._wake:
                    os.eventfd_read(self._wake)
                elif (ready := self._watched.get(key.fd)) is not None:
                    self._run(ready)
            while self._work and not self._ending:
                self._run(self._work.popleft())
