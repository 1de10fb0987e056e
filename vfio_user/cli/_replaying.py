"""What `replay` and `minimize` have in common: what is compared, and with what patience."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import click

from userdev.interposer.server_process import STDERR
from vfio_user.cli._durations import LEAST, Finite
from vfio_user.cli._registers import REGISTERS_HELP
from vfio_user.interposer.replay.ignoring import FORMS
from vfio_user.interposer.replay.player import PATIENCE_SECONDS
from vfio_user.interposer.replay.script import Script, load_script

F = TypeVar("F", bound=Callable[..., Any])
_LAST_WORDS = 1 << 16
"""Bytes of what a server has printed, where that is told afterwards."""


def comparing(function: F) -> F:
    """Give a command --session, --ignore, --registers and --patience."""
    for option in (
        click.option(
            "--patience",
            type=Finite(LEAST),
            default=PATIENCE_SECONDS,
            show_default=True,
            help="Seconds for what was recorded.",
        ),
        click.option("--registers", metavar="MAP", help=REGISTERS_HELP),
        click.option("--ignore", multiple=True, metavar="WHAT", help=f"What may differ: {FORMS}. Several times."),
        click.option("--session", default=1, show_default=True, help="Which of the trace's sessions."),
    ):
        function = option(function)
    return function


def played_of(trace: str | Path, session: int) -> Script:
    """What of a trace is played; that it ends within the session is said.

    Raises:
        UserError: the trace cannot be read, or has no such session.
    """
    script = load_script(trace, session)
    if script.truncated:
        click.echo(f"{trace}: {script.truncated}; everything before it is played", err=True)
    return script


@contextmanager
def words_of_server(*, quiet: bool) -> Iterator[int]:
    """A block with a descriptor for what a server prints: stderr; if it is quiet, told where the block raises."""
    if not quiet:
        yield STDERR
        return
    with tempfile.TemporaryFile() as said:
        try:
            yield said.fileno()
        except Exception:
            said.seek(max(0, said.seek(0, os.SEEK_END) - _LAST_WORDS))
            click.echo(said.read().decode(errors="replace"), err=True, nl=False)
            raise
