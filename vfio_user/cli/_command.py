"""What every command line of ours has: a value that is empty is refused, whatever it is of.

`--server "$SERVER"` of a variable that is not set is what such a value comes of. Taken for none given, it had our own
server in the place of the one that was meant, and a verdict of that.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import click


class CommandLine(click.Command):
    """A command."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Refuse what is empty before anything is made of it: a path of "" would be the folder that one is in."""
        refuse_empty(self, ctx, args)
        words = list(args)
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as error:
            if type(error) is click.UsageError and (word := self._bare(ctx, words)):
                raise click.UsageError(f"{error.message}; a device is given by --device {word}", ctx) from None
            raise

    def _bare(self, ctx: click.Context, words: list[str]) -> str:
        """The first word of no option where none is taken and devices are: people name one as `serve` has it."""
        parameters = self.get_params(ctx)
        if any(isinstance(each, click.Argument) or each.required for each in parameters):
            return ""
        _, left, _ = self.make_parser(ctx).parse_args(words)
        return left[0] if left and any("--device" in each.opts for each in parameters) else ""


class Group(click.Group):
    """A group of such commands, which is one too where it does something itself."""

    command_class = CommandLine

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """The same."""
        refuse_empty(self, ctx, args)
        return super().parse_args(ctx, args)


def refuse_empty(command: click.Command, ctx: click.Context, words: Sequence[str]) -> None:
    """Refuse options and arguments of `command` among `words` whose value is empty, or spaces alone.

    Raises:
        UsageError: one is.
    """
    if ctx.resilient_parsing or all(word.strip() and not word.rstrip().endswith("=") for word in words):
        return
    given, _, _ = command.make_parser(ctx).parse_args([*words])
    for parameter in command.get_params(ctx):
        if not all(value.strip() for value in _texts(given.get(parameter.name or ""))):
            is_option = isinstance(parameter, click.Option)
            name = max(parameter.opts, key=len) if is_option else parameter.make_metavar(ctx).strip("[].")
            otherwise = "give it a value, or leave it out" if is_option or not parameter.required else "give it a value"
            raise click.UsageError(f"{name} is empty, as a variable that is not set would leave it: {otherwise}", ctx)


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, tuple | list):
        for each in value:
            yield from _texts(each)
