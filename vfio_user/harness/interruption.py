"""SIGTERM and SIGHUP as Ctrl-C: whoever ends a run, its guests and servers are ended in order."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

_ENDINGS = (signal.SIGTERM, signal.SIGHUP)
_INTERRUPTED = 130  # exit status


@contextmanager
def interruptible(*, at_once_when_repeated: bool = False) -> Iterator[None]:
    """Raise KeyboardInterrupt in the block when the process is told to end. For the main thread.

    With `at_once_when_repeated` a second Ctrl-C or signal ends the process there and then, with whatever it started.
    """
    told: list[int] = []

    def interrupt(number: int, _frame: FrameType | None) -> NoReturn:
        told.append(number)
        if at_once_when_repeated and len(told) > 1:
            os._exit(_INTERRUPTED)  # children are killed with their owner (userdev/process)
        raise KeyboardInterrupt

    endings = (*_ENDINGS, signal.SIGINT) if at_once_when_repeated else _ENDINGS
    before = {number: signal.signal(number, interrupt) for number in endings}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
