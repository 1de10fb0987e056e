"""Options that would say nothing beside another one: they are refused, and not passed over."""

from __future__ import annotations

import click
from click.core import ParameterSource


def refuse_beside(said: str, *names: str) -> None:
    """Refuse those of the current command's options that were given; `said` is why they would say nothing.

    Raises:
        UsageError: one of them was.
    """
    context = click.get_current_context()
    given = [
        parameter.opts[0]
        for parameter in context.command.params
        if parameter.name in names and context.get_parameter_source(parameter.name) is ParameterSource.COMMANDLINE
    ]
    if given:
        raise click.UsageError(f"{said}: no {', '.join(given)}", context)
