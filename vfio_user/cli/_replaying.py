"""What `replay` and `minimize` have in common: what is compared, and with what patience."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from vfio_user.cli._durations import LEAST, Finite
from vfio_user.cli._registers import REGISTERS_HELP
from vfio_user.interposer.replay.ignoring import FORMS
from vfio_user.interposer.replay.player import PATIENCE_SECONDS

F = TypeVar("F", bound=Callable[..., Any])


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
