"""SIGTERM and SIGHUP as Ctrl-C: whoever ends a run, its guests and servers are ended in order."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from userdev.whole import write_whole

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

    with handled((*_ENDINGS, signal.SIGINT) if at_once_when_repeated else _ENDINGS, interrupt):
        yield


@contextmanager
def handled(signals: Iterable[int], handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Have these signals handled so in the block, and as before behind it. For the main thread."""
    before = {number: signal.signal(number, handler) for number in signals}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


def reentrant(say: Callable[[str], None]) -> Callable[[str], None]:
    """What says a line to a person also from a signal's handler, which may have interrupted who is saying one.

    A buffered stream takes nothing then (RuntimeError): the line goes past it, to standard error.
    """

    def tell(line: str) -> None:
        try:
            say(line)
        except RuntimeError:
            write_whole(2, f"{line}\n".encode(errors="backslashreplace"))

    return tell
