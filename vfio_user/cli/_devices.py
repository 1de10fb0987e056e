"""What `serve` of every protocol has: a subcommand per device of a catalogue, with the options of its class."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import click

from userdev.declare.options import Option, device_options, parse_options
from userdev.errors import UserError
from userdev.serving.authored import authored
from userdev.serving.catalogue import Catalogue
from userdev.serving.program import log_to_stderr

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem


class Closable(Protocol):
    """A device: its owner gives it back."""

    def close(self) -> None:
        """Give it back."""


D = TypeVar("D", bound=Closable)

Given = dict[str, Any]
"""What a command line says, by the names of its options."""


class DeviceGroup(click.Group):
    """The devices of a catalogue. `options` are those that the protocol has for all of them."""

    def __init__(
        self,
        *,
        catalogue: Catalogue[Any],
        options: Callable[[], list[click.Parameter]],
        serve: Callable[[type[Any], Given], None],
        **attributes: Any,
    ) -> None:
        """`serve` is given the class, and what the command line says of those options and of the device's own."""
        super().__init__(subcommand_metavar="DEVICE [OPTIONS]", **attributes)
        self._catalogue = catalogue
        self._options = options
        self._serve = serve

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names of the devices."""
        return self._catalogue.names()

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """The devices and options that begin so, without importing one."""
        from vfio_user.cli._completion import subcommands

        return subcommands(self, ctx, incomplete, [(name, "") for name in self._catalogue.names()])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command:
        """The command that serves a device.

        Raises:
            UserError: there is none, or its author made a mistake.
        """
        device = self._catalogue.find(cmd_name)
        own = [_click_option(option) for option in self._own_options(device)]

        def run(**given: Any) -> None:
            if given.pop("print_capabilities"):
                click.echo(json.dumps(self._catalogue.description(device)))
                return
            log_to_stderr(verbose=given.pop("verbose"))
            self._serve(device, given)

        help_text = (device.__doc__ or "").strip()
        return click.Command(cmd_name, callback=run, params=[*self._all_options(), *own], help=help_text)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the devices, with the first line of what each says of itself."""
        with formatter.section("Devices"):
            formatter.write_dl([(name, self._first_line(name)) for name in self._catalogue.names()])

    def _all_options(self) -> list[click.Parameter]:
        return [
            click.Option(["--socket-path"], help="Listen on this UNIX socket; it is removed at the end."),
            *self._options(),
            click.Option(["--print-capabilities"], is_flag=True, help="Print the JSON description and end."),
            click.Option(["-v", "--verbose"], is_flag=True, help="Log every refused command."),
        ]

    def _own_options(self, device_class: type[Any]) -> list[Option]:
        """Those of the class, which must not have the name of one that every device has."""
        own = device_options(device_class)
        taken = {parameter.name for parameter in self._all_options()} | {"help"}
        if twice := [option.name for option in own if option.name in taken]:
            raise UserError(
                f"{device_class.__qualname__} has an option that `serve` has itself: {', '.join(twice)}",
                hint="give it another name",
            )
        return own

    def _first_line(self, name: str) -> str:
        try:
            return (self._catalogue.find(name).__doc__ or "").strip().partition("\n")[0]
        except UserError as error:  # one that is broken does not hide the others
            return str(error)


@contextmanager
def made(device_class: type[D], given: Mapping[str, str | None]) -> Iterator[D]:
    """A device of the options that a command line says, closed at the end.

    Raises:
        UserError: as `authored` raises it.
    """
    texts = {name: text for name, text in given.items() if text is not None}
    with authored(f"{device_class.__qualname__} cannot be made"):
        device = device_class(**parse_options(device_class, texts))
    try:
        yield device
    finally:
        device.close()


def address_of(given: Given, *others: str) -> str:
    """The address to listen at, which is taken out of what the command line says.

    `others` are options for addresses of transports that only some protocols can have.

    Raises:
        UserError: it is not exactly one place.
    """
    prefixes = {"socket_path": "unix:", "fd": "fd:", **dict.fromkeys(others, "")}
    places = [f"{prefix}{text}" for name, prefix in prefixes.items() if (text := given.pop(name)) is not None]
    if len(places) != 1:
        *first, last = ("--" + name.replace("_", "-") for name in prefixes)
        raise UserError(f"give one of {', '.join(first)} and {last}", hint="for example --socket-path /tmp/d.sock")
    return places[0]


def _click_option(option: Option) -> click.Option:
    """Values stay text here: `parse_options` is the one place that knows types, for every way to give an option."""
    flag = "--" + option.name.replace("_", "-")
    default = f"  [default: {option.default}]" if option.default not in (None, "") else ""
    return click.Option([flag], metavar=option.type.__name__.upper(), help=option.help + default)
