"""Programs that are started for what they print, and end by themselves."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from userdev.errors import UserError

_COMPLAINT = re.compile(r"\berror(\[\w+\])?:")
"""What compilers and linkers call what is wrong; that they end, or are ended, stands in lines behind it."""


def run_to_end(
    what: str,
    command: Sequence[str | Path],
    seconds: float,
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    said: str = "",
) -> subprocess.CompletedProcess[str]:
    """Run a command until it ends by itself; `said` is all that it can read. `what` it is, for the error.

    Raises:
        UserError: it cannot be started, or has not ended after so many seconds: then it is killed.
    """
    try:
        return subprocess.run(
            command, input=said, capture_output=True, text=True, errors="replace", timeout=seconds, cwd=cwd, env=env
        )
    except OSError as error:
        raise UserError(f"{what} cannot be run: {error.strerror}") from None
    except subprocess.TimeoutExpired:
        raise UserError(f"{what} takes longer than {seconds:g} s") from None


def answer_of(
    what: str,
    command: Sequence[str | Path],
    seconds: float,
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> str:
    """All that a command prints, which ends well.

    Raises:
        UserError: it does not, with the line that it has said of that (`complaint`); or as `run_to_end`.
    """
    ran = run_to_end(what, command, seconds, cwd=cwd, env=env)
    if ran.returncode:
        said = complaint(ran.stderr) or complaint(ran.stdout) or "and says nothing"
        raise UserError(f"{what} ends with status {ran.returncode}: {said}")
    return ran.stdout


def complaint(said: str) -> str:
    """The line that tells best what went wrong: the first that is called an error, else the last; "" where none is."""
    lines = said.strip().splitlines()
    return next(filter(_COMPLAINT.search, lines), lines[-1] if lines else "").strip()
