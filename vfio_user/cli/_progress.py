"""What takes long, told on stderr while it does: a line that stays on a terminal, a line for each elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

import click

from userdev.printable import printable

if TYPE_CHECKING:
    from rich.progress import Progress

F = TypeVar("F", bound=Callable[..., Any])

_NOW_AND_THEN = 5.0
"""Seconds between two lines of `how_far`, where no terminal shows one that changes."""


def quiet_option(help: str = "Say nothing of what is done meanwhile.") -> Callable[[F], F]:
    """The option --quiet."""
    return click.option("--quiet", is_flag=True, help=help)


class Waiting:
    """A person waits: a context manager that shows what for, and for how long. Nothing of that is `quiet`.

    On a terminal that is one line, which is gone at the end, below what was said with `say`. Elsewhere each `tell` is
    a line, `how_far` is one now and then, and steps are not told.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._line: Progress | None = None
        self._live = not quiet and sys.stderr.isatty()
        self._told = monotonic()

    def __enter__(self) -> Self:
        if self._live:
            try:
                from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn  # only for a terminal
            except ModuleNotFoundError:  # it comes with an extra, and what is told is worth lines too
                return self
            from vfio_user.cli._console import drawing_console

            columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
            self._line = Progress(*columns, console=drawing_console(err=True), transient=True)
            self._task = self._line.add_task("", start=True)
            self._line.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    def end(self) -> None:
        """There is no more to wait for, and the line is gone; once more is no mistake."""
        if self._line is not None:
            self._line.stop()
            self._line = None

    def tell(self, text: str) -> None:
        """Tell of a preparation that takes long, as when something is fetched."""
        if self._line is not None:
            self._line.update(self._task, description=printable(text.strip()))
        elif not self._quiet:
            click.echo(text, err=True)

    def step(self, text: str) -> None:
        """Tell what begins now, which takes a moment."""
        if self._line is not None:
            self._line.update(self._task, description=printable(text))

    def how_far(self, text: str) -> None:
        """Tell how far it is."""
        if self._line is not None:
            self.step(text)
        elif not self._quiet and monotonic() - self._told >= _NOW_AND_THEN:
            self._told = monotonic()
            click.echo(text, err=True)

    def say(self, text: str) -> None:
        """Say something that stays."""
        if self._line is not None:
            self._line.console.print(printable(text), markup=False, highlight=False, soft_wrap=True)
        elif not self._quiet:
            click.echo(text, err=True)
