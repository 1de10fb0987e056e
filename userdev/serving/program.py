"""A server as a program, as the specification's "Backend Program Conventions" want it.

It does not daemonise, leaves descriptors 0 to 2 alone, takes ``--socket-path`` or ``--fd``, and on SIGTERM ends
cleanly with its socket removed. SIGINT is the same, for people.
"""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import os
import select
import signal
import sys
import threading
from typing import TYPE_CHECKING, Any

from userdev.serving.authored import PACKAGES

if TYPE_CHECKING:
    from collections.abc import Callable

    from userdev.serving.server import Server

log = logging.getLogger(__name__)

END_SECONDS = 20
"""What is left to a program that was told to end, for its session, its device and its threads. Then it ends anyhow."""

_ENDS = (signal.SIGTERM, signal.SIGINT)


def run(make: Callable[[Callable[[], None]], Server[Any]], announced: str | None = None) -> None:
    """Serve until SIGTERM or SIGINT, or until the server says that it has ended. For the main thread.

    `make` makes the server and is given what it calls at its end; `announced` is what is said to listen, on stderr.
    Once it has been told to end the whole process has `END_SECONDS`; after them its threads' stacks go to stderr, and
    it ends with status 1. Whoever does more afterwards calls `faulthandler.cancel_dump_traceback_later`.

    Raises:
        UserError: the address cannot be listened on, or nobody is there to connect to.
    """
    with _Ending() as ending, make(ending.set) as server:
        if announced is not None:
            print(f"{announced} {server}", file=sys.stderr, flush=True)
        ending.wait()
        # A thread of C's, which needs neither Python's lock nor any of ours.
        faulthandler.dump_traceback_later(END_SECONDS, exit=True, file=2)
        if server.failure is not None:
            raise server.failure


class _Ending:
    """SIGTERM or SIGINT, or `set` from any thread, whichever comes first; the signals are as before at the end.

    The kernel gives a signal to any thread that does not block it, such as one that the device has started, and
    Python runs handlers in the main thread alone. So it is the descriptor that Python's own handler writes to which is
    waited for (`signal.set_wakeup_fd`).
    """

    def __enter__(self) -> _Ending:
        self._told, self._tell = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._before = signal.set_wakeup_fd(self._tell, warn_on_full_buffer=False)
        self._handlers = {number: signal.signal(number, lambda *_: None) for number in _ENDS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._before)
        told, tell, self._told, self._tell = self._told, self._tell, -1, -1
        os.close(told)
        os.close(tell)

    def set(self) -> None:
        with contextlib.suppress(OSError):
            os.write(self._tell, b"\0")

    def wait(self) -> None:
        poll = select.poll()
        poll.register(self._told, select.POLLIN)
        said = b""
        while not {0, *_ENDS} & {*said}:  # other signals may have handlers of their own
            poll.poll()
            said = os.read(self._told, 64)


def log_to_stderr(*, verbose: bool) -> None:
    """Send this project's log to stderr, one line each, with milliseconds; and what ends a thread of the device's own.

    Python tells that without a time, so that nobody could say what it came before.
    """
    threading.excepthook = _thread_ended
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s.%(msecs)03d %(levelname)s %(message)s", "%H:%M:%S"))
    for package in PACKAGES:
        logger = logging.getLogger(package)
        logger.addHandler(handler)
        logger.setLevel(logging.DEBUG if verbose else logging.INFO)


def _thread_ended(raised: threading.ExceptHookArgs) -> None:
    if raised.exc_type is not SystemExit:
        name = raised.thread.name if raised.thread is not None else "of the device"
        log.error("the thread %s has ended", name, exc_info=raised.exc_value)
