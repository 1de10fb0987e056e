"""Text files of a run, as far as they are any: whatever a folder has, its page is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

MOST = 64 << 20
"""Bytes that are read of a file; logs of ours are shorter."""


def text_of(path: Path) -> str:
    """What a file says; "" of what is no file (a device, a pipe: both may go on for ever), or cannot be read."""
    if not path.is_file():
        return ""
    try:
        with path.open("rb") as file:
            return file.read(MOST).decode(errors="replace")
    except OSError:
        return ""


def lines_of(path: Path) -> list[str]:
    """The lines of a text file, as `text_of` has it. They end in LF or CR LF: what else ends a line somewhere (CR, a
    form feed, U+2028) is what a guest or a device has said in one.
    """
    lines = text_of(path).split("\n")
    return [line.removesuffix("\r") for line in (lines if lines[-1] else lines[:-1])]


def json_of(text: str) -> Any:
    """The value in a text; None where there is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def seconds_of(value: object) -> float | None:
    """A number of seconds, or its text; None of what is none, or more than a clock says."""
    if not isinstance(value, int | float | str):
        return None
    try:
        seconds = float(value)
    except (ValueError, OverflowError):
        return None
    return seconds if 0 <= seconds < 1 << 32 else None
