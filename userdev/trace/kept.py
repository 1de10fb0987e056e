"""A recorded trace is not written over: what would take its place has it kept beside it first."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path

from userdev.trace.format import LENGTH, MAGIC, PREFIX, RecordKind

_LEAST = PREFIX.size - LENGTH.size
_WITHOUT_SESSIONS = frozenset({RecordKind.HEADER, RecordKind.NOTE})


def to_stderr(text: str) -> None:
    """Tell whoever runs the program."""
    print(text, file=sys.stderr, flush=True)


def keep_aside(path: Path, warn: Callable[[str], None] = to_stderr) -> None:
    """Move a trace of a session out of the way of what is to be written at `path`, and tell `warn` where it is then.

    It becomes PATH.1, or the next that is free: whoever writes it still goes on there. A link stays, and leads to the
    new one. What is no trace, and a trace without a message, stays where it is.

    Raises:
        OSError: it cannot be looked at or moved.
    """
    if not (path.is_file() and _has_session(path)):
        return
    place = path.resolve()
    aside = next(each for each in (place.with_name(f"{place.name}.{number}") for number in count(1)) if _is_free(each))
    place.rename(aside)
    kept = path.with_name(aside.name) if place.parent == path.parent.resolve() else aside
    warn(f"{path} had a trace of a session, which is kept as {kept}")


def _is_free(path: Path) -> bool:
    return not os.path.lexists(path)


def _has_session(path: Path) -> bool:
    """Whether a file is a trace in which there is more than its header and notes, as far as can be told."""
    with path.open("rb") as stream:
        if stream.read(len(MAGIC)) != MAGIC:
            return False
        while len(prefix := stream.read(PREFIX.size)) == PREFIX.size:
            length, kind, *_ = PREFIX.unpack(prefix)
            if kind not in _WITHOUT_SESSIONS or length < _LEAST:
                return True
            stream.seek(length - _LEAST, os.SEEK_CUR)
    return False
