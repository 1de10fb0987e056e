"""`vfio-user control` and `vhost-user control`: a command of a program's control socket, from the command line."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from userdev.control.client import TIMEOUT_SECONDS, ControlClient
from userdev.errors import UserError
from vfio_user.cli._answering import answering
from vfio_user.cli._command import CommandLine
from vfio_user.cli._completion import completer
from vfio_user.cli._durations import LEAST, Finite

if TYPE_CHECKING:
    from userdev.interposer.control.command import ControlCommand

_JSON = re.compile(r"-?\d+|true|false|null|[\[{\"].*", re.DOTALL)
"""Values that are taken as JSON: whole numbers, what has quotes, lists, objects. Any other is text."""
_BYTES = frozenset({"data", "payload"})
"""Values of an interposer's answers that are base64."""
_WATCH = "watch"
"""The command of a device of ours behind whose answer events come."""
_OWN = frozenset({"command", "id", "fds", "behind"})
"""What goes along with a command, and is none of its parameters."""


def _commands(context: click.Context) -> Mapping[str, type[ControlCommand[Any]]]:
    """Those of an interposer of the program's protocol."""
    if context.find_root().info_name == "vhost-user":
        from vhost_user.interposer.control.commands import COMMANDS as of_vhost_user

        return of_vhost_user
    from vfio_user.interposer.control.commands import COMMANDS

    return COMMANDS


def _complete_command(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The commands of an interposer, each with what it does."""

    def words() -> Iterable[tuple[str, str]]:
        return ((name, (model.__doc__ or "").partition(".")[0]) for name, model in _commands(context).items())

    return completer(words)(context, parameter, incomplete)


def _complete_parameter(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The names of the command's parameters that are not there yet; behind the = a file may be meant."""

    def words() -> Iterable[tuple[str, str]]:
        given = {each.partition("=")[0] for each in context.params.get("parameters") or ()}
        fields = _commands(context)[context.params["name"]].model_fields
        return ((f"{name}=", "") for name in fields if name not in _OWN | given)

    return completer(words)(context, parameter, incomplete)


@click.command(cls=CommandLine)
@click.argument("socket", type=click.Path())
@click.argument("name", metavar="COMMAND", shell_complete=_complete_command)
@click.argument("parameters", metavar="[NAME=VALUE]...", nargs=-1, shell_complete=_complete_parameter)
@click.option(
    "--timeout", type=Finite(LEAST), default=TIMEOUT_SECONDS, show_default=True, help="Seconds for an answer."
)
@click.option(
    "--json", "as_json", is_flag=True, help="Print the result as JSON: one object; each event of `watch` too."
)
def command(socket: str, name: str, parameters: tuple[str, ...], timeout: float, as_json: bool) -> None:
    """Have the program at a control SOCKET do a COMMAND, and print what it answers.

    An interposer listens where its --control says, a device of ours too. What there is for an interposer is told by its
    page ("The control socket"); a name that is none is answered with the nearest.

    \b
    For instance
      vfio-user control /tmp/control status
      vfio-user control /tmp/control region_read region=BAR0 offset=0x10 size=4
      vfio-user control /tmp/control mark text="here it begins"
      vfio-user control /tmp/control restart hand_over=false

    A VALUE that is a whole number, true, false, null or in JSON's quotes or brackets is taken as that, any other as
    text. `data` is base64, or hex: and digits; its bytes are printed in digits. Exit status 2: it was not done.
    """
    values = _values(parameters)
    path = Path(socket.removeprefix("unix:"))
    with answering(path, name, timeout), ControlClient(path, timeout=timeout) as control:
        result = control.call(name, **values)
        for line in [json.dumps(result, default=_encoded)] if as_json else _lines(result):
            click.echo(line)
        if name == _WATCH:
            _tell_events(control)


def _values(parameters: Iterable[str]) -> dict[str, Any]:
    """The parameters of a command.

    Raises:
        UserError: one is none, or is no JSON though it looks so.
    """
    found: dict[str, Any] = {}
    for each in parameters:
        name, equals, value = each.partition("=")
        if not (name and equals):
            raise UserError(f"{each!r} is no parameter", hint="NAME=VALUE, for example size=4")
        if name in found or name in _OWN:
            why = "is said twice" if name in found else "is no parameter of any command"
            raise UserError(f"{name!r} {why}", hint="each once, and the command's name before them")
        try:
            found[name] = json.loads(value) if _JSON.fullmatch(value) else value
        except (ValueError, RecursionError) as error:
            raise UserError(
                f"{name}: it begins as JSON and is none: {error}", hint="text that does so goes in quotes"
            ) from None
    return found


def _tell_events(control: ControlClient) -> None:
    """Print each event as it comes, until the program goes or Ctrl-C."""
    while True:
        with suppress(TimeoutError):  # of one that has come in part the rest is waited for
            click.echo(json.dumps(control.next_event()))


def _lines(result: Mapping[str, Any], within: str = "") -> Iterator[str]:
    """What was answered, a line for each value; bytes as hexadecimal digits."""
    for name, value in result.items():
        match value:
            case dict() if value:
                yield from _lines(value, f"{within}{name}.")
            case str():
                yield f"{within}{name}: {base64.b64decode(value).hex() if name in _BYTES else value}"
            case bytes():
                yield f"{within}{name}: {value.hex()}"
            case _:
                yield f"{within}{name}: {json.dumps(value)}"


def _encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()
