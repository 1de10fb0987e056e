"""A device for which a server is started: said as where guests have devices, and served as there."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import click

from userdev.errors import UserError
from userdev.serving.catalogue import Catalogue
from vfio_user.cli._completion import Completer
from vfio_user.cli._hardware import DEVICE, device_option
from vfio_user.cli._other_protocol import instead

F = TypeVar("F", bound=Callable[..., Any])


def is_authors(name: str) -> bool:
    """Whether a name is MODULE:CLASS or FILE.py:CLASS, of no protocol and not of QEMU's own."""
    return ":" in name and not name.startswith(("vhost-user:", "qemu:"))


def command_of(device: str, protocol: str) -> str:
    """The command line of a device's server, with {socket} in it.

    vhost-user's may be called as its `serve` has them: blk, MODULE:CLASS.

    Raises:
        UserError: there is no such device, it is none of this protocol, or it has no server.
    """
    from vfio_user.extras import needing

    with needing("harness", "--device"):
        from vfio_user.harness.device import SOCKET, Device, UnknownDevice, command_line
        from vfio_user.harness.family import VHOST_USER

    name = device.split(" ")[0]
    if protocol == VHOST_USER.name and is_authors(name) and SOCKET not in device:
        device = f"{protocol}:{device}"
    elif f"{protocol}-{name}" in VHOST_USER.devices():
        device = f"{protocol}-{device}"
    try:
        wanted = Device.parse(device)
    except UnknownDevice:
        _catalogue(protocol).find(name)  # who knows what there is of this protocol
        raise
    if wanted.served and wanted.family.name != protocol:
        context = click.get_current_context(silent=True)
        other = instead(wanted.family.name, (context.info_name if context is not None else None) or "")
        hint = other or f"the command `{wanted.family.name}` has the same for it"
        raise UserError(f"{name!r} is a {wanted.family.name} device, not a {protocol} one", hint=hint)
    return command_line(wanted)


def known_command_of(device: str, protocol: str) -> str:
    """The same where a server's own words are not shown: a class of an author's is loaded here first.

    What is odd about it is told then as `serve` does; what is wrong is so before a server is started.

    Raises:
        UserError: as `command_of`, or the class cannot be had.
    """
    command = command_of(device, protocol)
    look_at_class(device, protocol)
    return command


def look_at_class(device: str, protocol: str = "vfio-user") -> None:
    """Load the class of a device here, where it is an author's. What needs no prefix is of `protocol`.

    Raises:
        UserError: it cannot be had.
    """
    prefix, _, name = device.split(" ")[0].rpartition("vhost-user:")
    if is_authors(name) and not prefix and "{socket}" not in device:
        _catalogue("vhost-user" if device.startswith("vhost-user:") else protocol).find(name)


def devices_option(**attributes: Any) -> Callable[[F], F]:
    """The option --device, which may be repeated, as the argument `devices`.

    What is odd or wrong about an author's class is told first: their servers' words go into logs.
    """
    wanted = {"help": f"{DEVICE} May be repeated.", "callback": _looked_at, **attributes}
    return device_option("devices", multiple=True, **wanted)


def _looked_at(context: click.Context, _: click.Parameter, devices: Sequence[str]) -> Sequence[str]:
    if not context.resilient_parsing:  # as completion does
        for device in devices:
            look_at_class(device)
    return devices


def _catalogue(protocol: str) -> Catalogue[Any]:
    if protocol == "vhost-user":
        from vhost_user.backend.catalogue import DEVICES as BACK_ENDS

        return BACK_ENDS
    from vfio_user.server.catalogue import DEVICES

    return DEVICES


def device_as_command(protocol: str, complete: Completer, *, shown: bool = True) -> Callable[[F], F]:
    """Give a command the option --device, which is a way to say its --server-command; `complete` is as of an option.

    `shown`: what its servers print is.
    """
    named = command_of if shown else known_command_of

    def decorate(command: F) -> F:
        @functools.wraps(command)
        def served(*arguments: Any, device: str | None, **given: Any) -> Any:
            if device is not None:
                beside = next((name for name in ("server_command", "connect") if given.get(name)), None)
                if beside is not None:
                    option = f"--{beside.replace('_', '-')}"
                    raise UserError(f"one server, please: --device and {option} are two", hint=f"leave {option} out")
                given["server_command"] = named(device, protocol)
            return command(*arguments, **given)

        option = device_option(help=f"Start the server of this. {DEVICE}", shell_complete=complete)
        return cast(F, option(cast(click.Command, served)))

    return decorate


def one_command(address: str | None, command: str | None, device: str | None, protocol: str) -> str | None:
    """The command that starts the server of a command line; None: it is there already, at `address`.

    Raises:
        UserError: more than one of them is said, or none; or as `command_of`.
    """
    if sum(map(bool, (address, command, device))) != 1:
        raise UserError(
            "one server, please", hint="give either its address, --server-command 'CMD {socket}' or --device"
        )
    return known_command_of(device, protocol) if device else command
