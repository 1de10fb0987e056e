"""What was run in a guest, with its outcome: a JSON object a line, for the page of a run."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from vfio_user.harness.log import LogFile

SUFFIX = ".commands.jsonl"
_MOST = 4096
"""Characters of a command and bytes of what it printed: a program's report, and no file that was fetched so."""


class CommandLog:
    """Commands and functions as they end: `when` (seconds since 1970), `seconds`, `run`, and how that went."""

    def __init__(self, path: Path) -> None:
        """Open the file, to append to it.

        Raises:
            OSError: it cannot be opened.
        """
        self._file = LogFile(path)

    @property
    def failure(self) -> OSError | None:
        """Why not all is in it, where that is so."""
        return self._file.failure

    def go_on(self, path: Path) -> None:
        """Write what ends from now on into another file, as the guest is in another machine.

        Raises:
            OSError: it cannot be opened.
        """
        before, self._file = self._file, LogFile(path)
        before.close()

    def begin(self, what: str) -> Callable[[Future[dict[str, Any]]], None]:
        """Something is run from now on; what is returned is to be called with the agent's answer."""
        began, clock = time.time(), time.monotonic()

        def end(answer: Future[dict[str, Any]]) -> None:
            line = {"when": began, "seconds": time.monotonic() - clock, "run": what[:_MOST], **_outcome(answer)}
            self._file.write(json.dumps(line).encode() + b"\n")

        return end

    def close(self) -> None:
        """Close the file: what ends later is not in it."""
        self._file.close()


def _outcome(answer: Future[dict[str, Any]]) -> dict[str, Any]:
    if (error := answer.exception()) is not None:
        return {"error": str(error)}
    if "error" in answer.result():
        return {"error": str(answer.result()["error"])}
    done: Mapping[str, Any] = answer.result()["ok"]
    said = {name: done[name] for name in ("exit_code", "timed_out") if done.get(name)}
    for name in ("stdout", "stderr"):
        if isinstance(text := done.get(name), bytes) and 0 < len(text) <= _MOST:
            said[name] = text.decode(errors="replace")
    return said
