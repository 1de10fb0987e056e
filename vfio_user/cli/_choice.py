"""An option with a few values, which says what was perhaps meant where it is given none of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from userdev.errors import meant

if TYPE_CHECKING:
    AnyChoice = click.Choice[str]
else:  # click 8.1 has it without a type
    AnyChoice = click.Choice


class Choice(AnyChoice):
    """One of these values."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The value that is meant by a word of the command line.

        Raises:
            click.BadParameter: there is none; it has all of them, and the nearest if any is.
        """
        try:
            return super().convert(value, param, ctx)
        except click.BadParameter as error:
            near = meant(str(value), list(map(str, self.choices))).strip()
            if not near:
                raise
            raise click.BadParameter(f"{error.message.removesuffix('.')}; {near}", ctx, param) from None
