"""What `serve` of every protocol is for people: a subcommand per device, with its options, their help, and completion.

A command line without a mistake does not come by here: see `userdev.serving.command_line`, which has the options.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from userdev.declare.options import Option
from userdev.errors import UserError
from userdev.serving.command_line import Serving, Setting
from vfio_user.cli._choice import Choice
from vfio_user.cli._command import CommandLine, Group
from vfio_user.cli._durations import Finite

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem


class DeviceGroup(Group):
    """The devices of a catalogue."""

    def __init__(self, *, serving: Serving[Any], **attributes: Any) -> None:
        super().__init__(subcommand_metavar="DEVICE [OPTIONS]", **attributes)
        self._serving = serving

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names of the devices."""
        return self._serving.catalogue.names()

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """The devices and options that begin so, without importing one."""
        from vfio_user.cli._completion import subcommands

        return subcommands(self, ctx, incomplete, [(name, "") for name in self._serving.catalogue.names()])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command:
        """The command that serves a device.

        Raises:
            UserError: there is none, or its author made a mistake.
        """
        device = self._serving.catalogue.find(cmd_name)
        options = [*map(_setting_option, self._serving.settings), *map(_own_option, self._serving.own_options(device))]

        def run(**given: Any) -> None:
            self._serving.run(device, given)

        return _Served(cmd_name, callback=run, params=options, help=(device.__doc__ or "").strip())

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the devices, with the first line of what each says of itself."""
        with formatter.section("Devices"):
            formatter.write_dl([(name, self._first_line(name)) for name in self._serving.catalogue.names()])

    def _first_line(self, name: str) -> str:
        try:
            return (self._serving.catalogue.find(name).__doc__ or "").strip().partition("\n")[0]
        except UserError as error:  # one that is broken does not hide the others
            return str(error)


class _Served(CommandLine):
    """The options of a device; with --print-capabilities all others, and arguments, are ignored, whatever they are
    (vhost-user specification, "Backend program conventions").
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if _CAPABILITIES in args and not {*args} & {*ctx.help_option_names}:
            args = [_CAPABILITIES]
        return super().parse_args(ctx, args)


_CAPABILITIES = "--print-capabilities"


def _setting_option(setting: Setting) -> click.Parameter:
    declared = [setting.flag, *setting.flags]
    if setting.type is bool:
        return click.Option(declared, is_flag=True, help=setting.help)
    kind: Any = setting.type
    if setting.choices:
        kind = Choice(list(setting.choices))
    elif setting.at_least is not None:
        kind = Finite(setting.at_least)
    option = click.Option(declared, type=kind, default=setting.default, help=setting.help or None)
    option.metavar = setting.metavar
    option.show_default = setting.default not in (None, "")
    return option


def _own_option(option: Option) -> click.Option:
    """Values stay text here: `parse_options` is the one place that knows types, for every way to give an option."""
    flag = "--" + option.name.replace("_", "-")
    default = f"  [default: {option.default}]" if option.default not in (None, "") else ""
    return click.Option([flag], metavar=option.type.__name__.upper(), help=option.help + default)
