"""`vfio-user probe`: an lspci-like description of any server's device."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from dataclasses import asdict
from functools import partial

import click

from userdev.errors import ProtocolError, UserError
from vfio_user.cli._choice import Choice
from vfio_user.cli._command import CommandLine
from vfio_user.cli._completion import complete_servers
from vfio_user.cli._conformance import Target, server
from vfio_user.cli._durations import LEAST, Finite
from vfio_user.cli._hardware import DEVICE, device_option
from vfio_user.cli._other_protocol import probe_command, speaks_vhost_user
from vfio_user.cli._probed_registers import as_yaml, probed_registers
from vfio_user.cli._served import one_command
from vfio_user.client import Client, NoAnswer, RemoteError
from vfio_user.client.conformance import greeting
from vfio_user.client.description import Description, describe, render
from vfio_user.wire import CURRENT, DIALECTS, DRAFT_V6, Command, Dialect

_AUTO = (CURRENT, DRAFT_V6)
_FAILURES = (RemoteError, ProtocolError, ConnectionError, NoAnswer)


class NoVersion(UserError):
    """No version was agreed on with a server; `last` is what it did at the last try."""

    def __init__(self, what: str, last: Exception) -> None:
        super().__init__(what, hint=hint_at_version(last))
        self.is_in_use = isinstance(last, RemoteError) and last.errno == errno.EBUSY


@click.command(cls=CommandLine)
@click.argument("socket", required=False)
@click.option("--server-command", metavar="'CMD {socket}'", help="Start the server.")
@device_option(help=f"Start the server of this. {DEVICE}", shell_complete=complete_servers)
@click.option(
    "--dialect",
    type=Choice(["auto", *DIALECTS]),
    default="auto",
    show_default=True,
    help="auto tries current, then draft-v6.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option(
    "--register-map",
    is_flag=True,
    help="Print instead the registers that it has as every PCI device has them, for --registers of other commands.",
)
@click.option(
    "--timeout", type=Finite(LEAST), default=5.0, show_default=True, help="Seconds that each answer may take."
)
def command(
    socket: str | None,
    server_command: str | None,
    device: str | None,
    dialect: str,
    as_json: bool,
    register_map: bool,
    timeout: float,
) -> None:
    """Describe the device behind SOCKET (a path, unix:PATH, tcp:HOST:PORT, vsock:CID:PORT) without changing it."""
    dialects = _AUTO if dialect == "auto" else (DIALECTS[dialect],)
    name = socket or device or str(server_command)
    started = one_command(socket, server_command, device, "vfio-user")
    with server(socket, started, greeting(dialects[0]), timeout=timeout) as target:
        try:
            description = _describe(name, partial(_connected, target, timeout), dialects)
        except NoVersion as error:
            if error.is_in_use or not speaks_vhost_user(target.connect, timeout=timeout):
                raise
            raise UserError(str(error), hint=f"it speaks vhost-user: {probe_command('vhost-user', socket)}") from None
    if register_map:
        registers = probed_registers(description)
        text = json.dumps({"registers": registers.plain}) + "\n" if as_json else as_yaml(registers)
    else:
        text = json.dumps(asdict(description), indent=2) + "\n" if as_json else render(description)
    click.echo(text, nl=False)


def _connected(target: Target, timeout: float, dialect: Dialect) -> Client:
    client = Client(target.connect(), dialect=dialect, timeout=timeout)
    try:
        client.negotiate()
    except BaseException:
        client.close()
        raise
    return client


def _describe(address: str, connect: Callable[[Dialect], Client], dialects: tuple[Dialect, ...]) -> Description:
    refused: list[str] = []
    for dialect in dialects:
        try:
            client = connect(dialect)
        except _FAILURES as error:
            if isinstance(error, NoAnswer) or (isinstance(error, RemoteError) and error.errno == errno.EBUSY):
                raise NoVersion(f"{address}: {error}", error) from None
            refused.append(f"{dialect.name}: {error}")
            last = error
            continue
        with client:
            try:
                return describe(client)
            except _FAILURES as error:
                raise UserError(f"{address}: {error}", hint=hint_beyond_version(error)) from None
    raise NoVersion(f"{address}: no version was agreed on\n  " + "\n  ".join(refused), last)


def hint_at_version(error: Exception) -> str:
    """The advice about a server with which no version was agreed on."""
    match error:
        case RemoteError(errno=errno.EBUSY):
            return "another client is connected, and a server has one at a time"
        case NoAnswer():
            return "does it serve another client, is it stopped (SIGSTOP), or is it one of 2020 that speaks first?"
        case ConnectionError():
            return "it hangs up at VERSION: its log should say why, if it speaks vfio-user at all"
    return "it may speak another dialect: see --dialect"


def hint_beyond_version(error: Exception) -> str:
    """The advice about a server that has agreed on a version and cannot be described."""
    match error:
        case RemoteError(command=Command.REGION_READ.value):
            return "a device that is stopped for migration refuses accesses"
        case RemoteError():
            return "every server has to answer that: `vfio-user conformance` says what else it should"
        case NoAnswer():
            return "it hangs, or is slow: --timeout gives it longer"
        case ConnectionError():
            return "it has hung up, or died, over that question: its log should say why"
    return "its answers are of another dialect (see --dialect) or wrong: `vfio-user conformance` says which"
