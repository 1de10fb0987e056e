"""What `vfio-user interpose` and `vhost-user interpose` have in common: options, and a scenario's schema."""

from __future__ import annotations

import functools
import json
import signal
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

from userdev.interposer.interposer import BaseInterposer
from vfio_user.cli._beside import refuse_beside

if TYPE_CHECKING:
    from userdev.interposer.faults.scenario import AnyScenario

F = TypeVar("F", bound=Callable[..., Any])


def interposing(scenario: Callable[[], type[AnyScenario]]) -> Callable[[F], F]:
    """Give a command the options that every interposer has; `scenario` loads the language of its scenarios."""

    def print_schema(context: click.Context, _: click.Parameter, wanted: bool) -> None:
        if wanted:
            click.echo(json.dumps(scenario().model_json_schema(), indent=2))
            context.exit()

    options = (
        click.option("--listen", required=True, metavar="ADDRESS", help="Where the client connects to."),
        click.option("--connect", metavar="ADDRESS", help="Where the server listens."),
        click.option(
            "--server-command", metavar="CMD", help="Start the server: {socket} is its path, or {fd} its socket."
        ),
        click.option(
            "--server-pid", type=int, help="The process of the server at --connect, for scenarios that signal it."
        ),
        click.option("--trace", type=click.Path(dir_okay=False), help="Record every message in this file, or fd:N."),
        click.option("--faults", type=click.Path(dir_okay=False), help="Do to messages what this scenario says."),
        click.option(
            "--print-faults-schema",
            is_flag=True,
            is_eager=True,
            expose_value=False,
            callback=print_schema,
            help="Print the JSON schema of scenarios and end.",
        ),
        click.option("--control", metavar="ADDRESS", help="Take commands here: JSON lines."),
    )

    def decorate(command: F) -> F:
        @functools.wraps(command)
        def checked(**given: Any) -> Any:
            started = next((name for name in ("server_command", "device") if given[name] is not None), None)
            if started is not None:
                refuse_beside(f"--{started.replace('_', '-')} starts the server", "server_pid")
            return command(**given)

        return cast(F, functools.reduce(lambda made, option: option(made), reversed(options), checked))

    return decorate


def run(interposer: BaseInterposer[Any], listen: str, target: str) -> None:
    """Say that it listens, and serve until SIGTERM or SIGINT."""
    with interposer:
        interposer.loop.stop_on(signal.SIGTERM, signal.SIGINT)
        click.echo(f"listening on {listen}, forwarding to {target}")
        interposer.run()
