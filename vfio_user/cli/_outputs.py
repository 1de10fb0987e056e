"""Options that name where results go: what cannot be written is refused before the work, whose results it loses.

So is what would be written over something that the command reads, or over another of its results.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

from userdev.errors import UserError
from userdev.writable import apart_from, require_writable

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


def refuse_overwriting(*outputs: Path | str | None, read: Iterable[Path | str | None]) -> None:
    """Look at where results go beside what is read; None where there is none, and a text of `read` may be no file.

    Raises:
        UserError: what is read would be written over, or two results are one file.
    """
    written: set[Path] = set()
    for output in (Path(each) for each in outputs if each is not None):
        for source in (Path(each) for each in read if each):
            apart_from(source, output)
        if output.exists() and not output.is_file():  # such as /dev/null
            continue
        if output.resolve() in written:
            raise UserError(f"two results would go to {output}", hint="name another file for one of them")
        written.add(output.resolve())
