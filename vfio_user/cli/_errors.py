"""What a command says of an error, and the exit status that it ends with."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import click

from userdev.errors import FULL, UserError, VerdictError

_OF_FILES = frozenset(
    {
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EFBIG,
        errno.EROFS,
        errno.EACCES,
        errno.EPERM,
        errno.EIO,
        errno.ENOENT,
        errno.EMFILE,
    }
)
"""What goes wrong with files, and is the disk's or a limit's doing, not ours."""


ROOM = "make room, or name a place on a larger disk; for results that is VFIO_USER_RESULTS"
"""What to do where a disk is full."""


def explain(error: Exception) -> int:
    """Say on stderr what happened and what to do; the exit status, 1 for a verdict and 2 for all else."""
    status = _say(error)
    for note in getattr(error, "__notes__", ()):  # where the logs are, where somebody added that
        click.echo(f"  {note}", err=True)
    return status


def _unnamed(error: OSError) -> str:
    """What to say of an error with a file that it does not name: where it happened, and which disks are full."""
    import shutil
    import traceback

    printing = any(frame.f_code is click.echo.__code__ for frame, _ in traceback.walk_tb(error.__traceback__))
    places = {".", os.environ.get("TMPDIR") or "/tmp", os.environ.get("HOME") or "/"}
    full = sorted(place for place in places if os.access(place, os.X_OK) and not shutil.disk_usage(place).free)
    hint = f"\n  no space is left in {' and in '.join(full)}" if full else ""
    return f"{'the standard output' if printing else 'a file of this command'}: {error.strerror}{hint}"


def _remedy(error: OSError, name: str | bytes | int) -> str:
    """What to do about a disk that is full or a folder that may not be written to; nothing where neither is."""
    if error.errno in FULL:
        return f"\n  {ROOM}"
    if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS) or not isinstance(name, str):
        return ""
    folder = next((each for each in Path(name).absolute().parents if each.exists()), None)
    if folder is None or os.access(folder, os.W_OK):
        return ""
    return f"\n  you may not write to {folder}: give another place, or do it in a folder of yours"


def _say(error: Exception) -> int:
    match error:
        case UserError():
            hint = f"\n  {error.hint}" if error.hint else ""
            click.echo(f"error: {error}{hint}" + (f"\n{error.evidence}" if error.evidence else ""), err=True)
            return 2
        case VerdictError():
            click.echo(f"failed: {error}" + (f"\n{error.evidence}" if error.evidence else ""), err=True)
            return 1
        case OSError(filename=name) if name is not None:
            click.echo(f"error: {name}: {error.strerror}{_remedy(error, name)}", err=True)
            return 2
        case OSError(errno=number) if number in _OF_FILES:
            click.echo(f"error: {_unnamed(error)}", err=True)
            return 2
        case _:
            click.echo(
                f"error: internal: {type(error).__name__}: {error}\n"
                "  this is a defect of vfio-user; VFIO_USER_TRACEBACK=1 shows where",
                err=True,
            )
            return 2
