"""The end of a Python process without what only takes time."""

from __future__ import annotations

import atexit
import os
import sys
import threading
from typing import NoReturn


def leave(status: int = 0) -> NoReturn:
    """End this process as the interpreter does, but for freeing memory object by object.

    That takes longer than all the rest, most of all in a fork, which copies for it what it shares. Where nobody reads
    any more what was printed last, a status of 0 is 1, and another stays: the interpreter's would be 120.

    Raises:
        OSError: what was printed last cannot be written.
    """
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in filter(None, (sys.stdout, sys.stderr)):  # one that was closed from the start is None
        try:
            stream.flush()
        except BrokenPipeError:
            status = status or 1
    os._exit(status)
