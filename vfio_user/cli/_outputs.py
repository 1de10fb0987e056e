"""Options that name where results go: what cannot be written is refused before the work, whose results it loses."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from userdev.writable import require_writable

_STDOUT = "-"


class Output(click.Path):
    """A path that a command writes at its end; arguments as of `click.Path`.

    `makes_folders`: the command makes the folders above it.
    """

    def __init__(self, *, makes_folders: bool = False, **of_path: Any) -> None:
        super().__init__(path_type=Path, **of_path)
        self.makes_folders = makes_folders

    def convert(self, value: str | os.PathLike[str], param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Look at the place.

        Raises:
            UserError: it cannot be written.
        """
        path = super().convert(value, param, ctx)
        if not (self.allow_dash and os.fspath(value) == _STDOUT):
            require_writable(Path(os.fsdecode(path)), makes_folders=self.makes_folders)
        return path
