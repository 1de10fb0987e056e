"""`vfio-user serve DEVICE`: a device as a program, with the options the specification and the device define."""

from __future__ import annotations

import json
from contextlib import closing
from typing import Any

import click

from userdev.declare.options import Option, device_options, parse_options
from userdev.errors import UserError
from userdev.serving.authored import authored
from userdev.serving.program import log_to_stderr
from vfio_user.device import PciDevice
from vfio_user.server.catalogue import DEVICES
from vfio_user.server.negotiation import Offer
from vfio_user.server.server import serve
from vfio_user.wire.dialects import DIALECTS, dialect_named


def _shared_options() -> list[click.Parameter]:
    return [
        click.Option(["--socket-path"], help="Listen on this UNIX socket; it is removed at the end."),
        click.Option(["--fd"], type=int, help="Use this inherited socket, listening or connected."),
        click.Option(["--listen"], metavar="ADDRESS", help="Listen elsewhere: tcp:HOST:PORT, vsock:CID:PORT."),
        click.Option(["--dialect"], type=click.Choice(list(DIALECTS)), default="current", show_default=True),
        click.Option(["--write-multiple"], is_flag=True, help="Agree to REGION_WRITE_MULTI; QEMU then queues."),
        click.Option(["--print-capabilities"], is_flag=True, help="Print the JSON description and end."),
        click.Option(["-v", "--verbose"], is_flag=True, help="Log every refused command."),
    ]


class _Devices(click.Group):
    """A subcommand per device, made from the device's own options."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return DEVICES.names()

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command:
        device = DEVICES.find(cmd_name)
        own = [_click_option(option) for option in _own_options(device)]

        def run(**given: Any) -> None:
            _serve(device, given)

        help_text = (device.__doc__ or "").strip()
        return click.Command(cmd_name, callback=run, params=[*_shared_options(), *own], help=help_text)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Devices"):
            formatter.write_dl([(name, _first_line(name)) for name in DEVICES.names()])


@click.group(cls=_Devices, subcommand_metavar="DEVICE [OPTIONS]")
def command() -> None:
    """Serve a device on a socket, until SIGTERM or Ctrl-C.

    DEVICE is one of those below, or MODULE:CLASS or FILE.py:CLASS of your own. `serve DEVICE --help` shows its options.
    """


def _serve(device_class: type[PciDevice], given: dict[str, Any]) -> None:
    if given.pop("print_capabilities"):
        click.echo(json.dumps(DEVICES.description(device_class)))
        return
    address = _address(given.pop("socket_path"), given.pop("fd"), given.pop("listen"))
    dialect = dialect_named(given.pop("dialect"))
    offer = Offer(write_multiple=given.pop("write_multiple"))
    log_to_stderr(verbose=given.pop("verbose"))
    texts = {name: text for name, text in given.items() if text is not None}
    with authored(f"{device_class.__qualname__} cannot be made"):
        device = device_class(**parse_options(device_class, texts))
    with closing(device):
        serve(device, address, dialect=dialect, offer=offer)


def _own_options(device_class: type[PciDevice]) -> list[Option]:
    """Those of the class, which must not have the name of one that every device has."""
    own = device_options(device_class)
    taken = {parameter.name for parameter in _shared_options()} | {"help"}
    if twice := [option.name for option in own if option.name in taken]:
        raise UserError(
            f"{device_class.__qualname__} has an option that `serve` has itself: {', '.join(twice)}",
            hint="give it another name",
        )
    return own


def _address(socket_path: str | None, fd: int | None, listen: str | None) -> str:
    given = [
        text
        for text in (
            f"unix:{socket_path}" if socket_path is not None else None,
            f"fd:{fd}" if fd is not None else None,
            listen,
        )
        if text is not None
    ]
    if len(given) != 1:
        raise UserError("give one of --socket-path, --fd and --listen", hint="for example --socket-path /tmp/d.sock")
    return given[0]


def _click_option(option: Option) -> click.Option:
    """Values stay text here: `parse_options` is the one place that knows types, for every way to give an option."""
    flag = "--" + option.name.replace("_", "-")
    default = f"  [default: {option.default}]" if option.default not in (None, "") else ""
    return click.Option([flag], metavar=option.type.__name__.upper(), help=option.help + default)


def _first_line(name: str) -> str:
    try:
        return (DEVICES.find(name).__doc__ or "").strip().partition("\n")[0]
    except UserError as error:  # one that is broken does not hide the others
        return str(error)
