"""A process that ends without freeing what it has."""

from __future__ import annotations

import atexit
import os
import sys
import threading
from typing import TextIO

from userdev.leaving import leave


class Freed:
    """Says that it was freed."""

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def __del__(self) -> None:
        print("freed", file=self._out)


def test_a_process_that_leaves_has_waited_for_threads_and_said_all_and_freed_nothing() -> None:
    heard, said = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            atexit._clear()  # what is pytest's
            sys.stdout = sys.stderr = os.fdopen(said, "w")
            _kept = Freed(sys.stdout)
            atexit.register(print, "at the end")
            goes_on = threading.Event()
            threading.Thread(target=lambda: print("a thread", goes_on.wait(0.1))).start()
            leave(3)
        finally:
            os._exit(1)
    os.close(said)
    with os.fdopen(heard) as out:
        assert out.read() == "a thread False\nat the end\n"
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 3
