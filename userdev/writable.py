"""Whether a place can be written, and is none that is read, asked before the work whose results go there."""

from __future__ import annotations

import os
from pathlib import Path

from userdev.errors import UserError


def require_writable(path: Path, *, makes_folders: bool = False) -> None:
    """Look whether a file or folder can be written at `path`, without a change to anything.

    `makes_folders`: who writes makes what lacks of the folders above it.

    Raises:
        UserError: it cannot, as far as can be told now.
    """
    place = path.absolute()
    if os.path.lexists(place):
        at = place
    else:
        at = next(folder for folder in place.parents if os.path.lexists(folder) or not makes_folders)
    why = _why_not(at, is_above=at != place)
    if why:
        raise UserError(f"{path} could not be written: {why}", hint="name another place, or make that one ready")


def apart_from(source: Path, output: Path) -> Path:
    """The output, where that is another file than what is read for it.

    Raises:
        UserError: it is the same, whatever it is called.
    """
    if source.exists() and output.exists() and output.samefile(source):
        raise UserError(f"{output} is the file that is read", hint="name another one for what is written")
    return output


def _why_not(at: Path, *, is_above: bool) -> str:
    """What is in the way; nothing where nothing is."""
    if not at.exists():
        return f"there is no {at}"
    if is_above and not at.is_dir():
        return f"{at} is no folder"
    if not os.access(at, os.W_OK | os.X_OK if at.is_dir() else os.W_OK):
        return f"this user may not write {'in ' if at.is_dir() else ''}{at}, or its disk is read-only"
    return ""
