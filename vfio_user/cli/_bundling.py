"""The bundle of a command: its options, in the same words everywhere, and the recipe that its command line is."""

from __future__ import annotations

import functools
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar, cast

import click
from click.core import ParameterSource

from vfio_user.bundle import ALWAYS, AUTO, USUAL_MIB, Keeping, Recipe
from vfio_user.bundle.keeping import mention
from vfio_user.bundle.model import OWN_INPUTS
from vfio_user.bundle.packing import checked_place
from vfio_user.cli._beside import refuse_beside

F = TypeVar("F", bound=Callable[..., Any])

_NOT_OF_RECIPE = frozenset({"bundle", "bundle_size", "as_json", "quiet", "keep", "journal", "trace", "registers"})
"""Options that say where results go, and how they are told."""


_RECORDED = "Servers are interposed and recorded then."


def bundle_options(recorded: str = _RECORDED) -> tuple[Callable[[F], F], ...]:
    """--bundle and --bundle-size; `recorded` says which servers are recorded then."""
    return (
        click.option(
            "--bundle",
            metavar="DIR|auto",
            default="",
            help="Keep all that does it again and shows what was (docs/bundles.md); auto: where something fails,"
            f" among the results. {recorded}",
        ),
        click.option(
            "--bundle-size",
            type=click.IntRange(min=1),
            default=USUAL_MIB,
            show_default=True,
            help="MiB at most; what is left out for it is said.",
        ),
    )


def with_bundle_options(command: F, recorded: str = _RECORDED) -> F:
    """Give a command --bundle and --bundle-size, as they are: its arguments `bundle` and `bundle_size`."""
    return functools.reduce(lambda made, option: option(made), reversed(bundle_options(recorded)), command)


def bundled_cell(bundle: str, size: int) -> dict[str, Any]:
    """The fields of a `Cell` by which each test keeps a bundle; none where that is not wanted."""
    if not bundle:
        return {}
    return {"trace": True, "bundle": AUTO if bundle == AUTO else ALWAYS, "bundle_size": size}


def place_of_bundles(bundle: str) -> Path | None:
    """The folder that bundles of tests are moved to; None: they stay among the results.

    Raises:
        UserError: something is there already.
        UsageError: there is to be none, of a size.
    """
    _refuse_size_of_none(bundle)
    return checked_place(Path(bundle)) if bundle not in ("", AUTO) else None


def _refuse_size_of_none(bundle: str) -> None:
    if not bundle:
        refuse_beside("without --bundle none is kept", "bundle_size")


def bundled(name: str) -> Callable[[F], F]:
    """Give the command of this name --bundle and --bundle-size: its argument `kept`, the block that is kept.

    The command is within that block, and tells it where the results are.
    """
    return functools.partial(_bundled, name)


def _bundled(name: str, command: F) -> F:
    @functools.wraps(command)
    def with_bundle(*arguments: Any, **given: Any) -> Any:
        wanted, size = given.pop("bundle"), given.pop("bundle_size")
        _refuse_size_of_none(wanted)
        recipe, inputs = recipe_of(name, click.get_current_context())
        title = shlex.join(("vfio-user", recipe.command, *recipe.arguments))
        with Keeping(wanted, recipe, of=title, inputs=inputs, most=size << 20) as kept:
            result = command(*arguments, kept=kept, **given)
        if kept.place is not None:
            click.echo(mention(kept.place), err=True)
        return result

    return cast(F, with_bundle_options(with_bundle))


def recipe_of(name: str, context: click.Context) -> tuple[Recipe, dict[str, Path]]:
    """The command of this name with what was said to it, and the files that it named, by the names in the recipe."""
    inputs: dict[str, Path] = {}
    words = [word for parameter in context.command.params for word in _words(context, parameter, inputs)]
    return Recipe(command=name, arguments=tuple(words)), inputs


def _words(context: click.Context, parameter: click.Parameter, inputs: dict[str, Path]) -> Iterator[str]:
    """One parameter, as it is written on a command line; nothing where it has its default."""
    name = parameter.name or ""
    if name in _NOT_OF_RECIPE or context.get_parameter_source(name) is ParameterSource.DEFAULT:
        return
    if name not in context.params:
        return
    value = context.params[name]
    for each in value if parameter.multiple or parameter.nargs != 1 else [value]:
        if isinstance(parameter, click.Argument):
            yield _text(each, inputs)
        elif isinstance(parameter, click.Option) and parameter.is_flag:
            yield parameter.opts[0] if each else (parameter.secondary_opts or parameter.opts)[0]
        elif each is not None:
            yield from (parameter.opts[0], _text(each, inputs))


def _text(value: Any, inputs: dict[str, Path]) -> str:
    """A value; of a file that is there, its place in a bundle."""
    if not isinstance(value, Path) or not value.is_file():
        return str(value)
    name, number = value.name, 1
    while name in inputs and inputs[name] != value:
        number += 1
        name = f"{number}-{value.name}"
    inputs[name] = value
    return f"{OWN_INPUTS}/{name}"
