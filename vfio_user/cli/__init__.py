"""Two commands, `vfio-user` and `vhost-user`: each subcommand is a module of this package, imported when it is called.

The tables below are the whole command lines. A module named in one defines a `click.Command` called `command`.
"""

from __future__ import annotations

import errno
import gc
import importlib
import os
import sys
from typing import TYPE_CHECKING, Any, NoReturn

import click

from userdev.errors import about, meant
from userdev.printable import show_controls
from vfio_user.cli._errors import explain
from vfio_user.extras import lacking

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

# name: (module, one line of help). The help is here so that `vfio-user --help` imports nothing.
COMMANDS: dict[str, tuple[str, str]] = {
    "boot": ("boot", "Boot a guest with a device and open a shell in it."),
    "bundle": ("bundle", "Show what a bundle is of, and what is otherwise in another."),
    "control": ("control", "Have a running interposer, or a device, do a command of its control socket."),
    "conformance": ("conformance", "Check any server against the rules of the protocol."),
    "completion": ("completion", "Print what has a shell complete commands, options, devices, images and tests."),
    "doctor": ("doctor", "Say what is there, what is missing and how to get it."),
    "docs": ("docs", "Open the documentation of this version, which needs no network."),
    "exec": ("exec", "Run one command in a guest, and end with its status."),
    "fuzz": ("fuzz", "Look for what any server does wrong, by sequences that are drawn."),
    "image": ("image", "Build and list guest images."),
    "interpose": ("interpose", "Stand between a client and a server: trace, break, keep alive."),
    "known-issues": ("known_issues", "List what is known to go wrong in QEMU, and what of it happens here."),
    "man": ("man", "Show the page of the manual."),
    "migrate": ("migrate", "Migrate a guest with its device, and verify it from inside."),
    "soak": ("soak", "Migrate, reset, kill, upgrade and pause in a random order, while the guest works and verifies."),
    "minimize": ("minimize", "Shrink a failing trace while it still fails."),
    "new": ("new", "Write a project: a device, its tests and its CI, which pass at once."),
    "nightly": ("nightly", "Run the cells of a plan, and say what is wrong that was not so before."),
    "probe": ("probe", "Describe any server's device, as lspci would."),
    "qemu": ("qemu", "Install, list and find QEMU."),
    "reference": ("reference", "Build libvfio-user, the reference in C, and say where its programs are."),
    "replay": ("replay", "Play a trace's client against a server."),
    "repro": ("repro", "Do again what a bundle is of, and say what is otherwise."),
    "run": ("run", "Boot a guest on our device, let it exercise the device, and report."),
    "serve": ("serve", "Serve a device on a socket."),
    "show": ("show", "Write the page of a run, a trace or a bundle, and open it."),
    "test-e2e": ("test_e2e", "Run the guest-driven tests."),
    "trace": ("trace", "Show and export what an interposer has recorded."),
}

VHOST_USER_COMMANDS: dict[str, tuple[str, str]] = {
    "completion": ("completion", "Print what has a shell complete commands, options and devices."),
    "control": ("control", "Have a running interposer, or a device, do a command of its control socket."),
    "conformance": ("vhost_conformance", "Check any back-end against the rules of the protocol."),
    "fuzz": ("vhost_fuzz", "Look for what any back-end does wrong, by sequences that are drawn."),
    "interpose": ("vhost_interpose", "Stand between a front-end and a back-end: trace, break."),
    "man": ("man", "Show the page of the manual."),
    "peer": ("vhost_peer", "Fetch a real vhost-user program, and say how it is started."),
    "probe": ("vhost_probe", "Say what any back-end offers, by name."),
    "serve": ("vhost_serve", "Serve a virtio device on a socket."),
    "trace": ("vhost_trace", "Show and export what an interposer has recorded."),
}
"""The same of `vhost-user`."""

_PROGRAMS = {"vfio-user": COMMANDS, "vhost-user": VHOST_USER_COMMANDS}

_EXTRAS = {"fuzz": "fuzz", "nightly": "test", "test-e2e": "test"}
"""Which extra a command needs where its packages are missing; the others need `harness`."""


_WORDS = f"{__name__}.words"


class LazyGroup(click.Group):
    """A group whose subcommands are imported when they are asked for: `serve` must start in milliseconds."""

    def __init__(self, *, table: dict[str, tuple[str, str]], **attributes: Any) -> None:
        """`table` has {name: (module, one line of help)}."""
        super().__init__(**attributes)
        self._table = table

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Keep the words of the command line, for what is said of a mistake in them."""
        ctx.meta[_WORDS] = list(args)
        return super().parse_args(ctx, args)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names of the subcommands."""
        return sorted(self._table)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the subcommand; where there is none, say what was perhaps meant."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            if args[0] in self._table or args[0].startswith("-"):
                raise
            from vfio_user.cli._other_protocol import instead  # slow to import, seldom wanted

            elsewhere = [f"`{name} {args[0]}` is one" for name, table in _PROGRAMS.items() if args[0] in table]
            known = instead(self.name or "", args[0]) or next(iter(elsewhere), "")
            hint = known or f"{meant(args[0], self._table)}--help lists them"
            raise click.UsageError(f"No command is called {args[0]!r}; {hint}.", ctx) from error

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """The subcommands and options that begin so, without importing one."""
        from vfio_user.cli._completion import subcommands

        return subcommands(self, ctx, incomplete, [(name, self._table[name][1]) for name in self.list_commands(ctx)])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a subcommand; None: there is none of this name."""
        if cmd_name not in self._table:
            return None
        ctx.invoked_subcommand = cmd_name  # click does so only after the import
        module = importlib.import_module(f"vfio_user.cli.{self._table[cmd_name][0]}")
        if not gc.isenabled():  # `vfio_user.__main__` has it off until all is loaded
            gc.freeze()
            gc.enable()
        command: click.Command = module.command
        command.name = cmd_name  # each is a function called `command`
        return command

    def invoke(self, ctx: click.Context) -> Any:
        """Run the subcommand; where it needs an extra that is not installed, say which."""
        try:
            return super().invoke(ctx)
        except click.BadOptionUsage as error:
            raise self._explained(ctx, error) from error
        except ModuleNotFoundError as error:
            name = ctx.invoked_subcommand or ""
            raise lacking(error, _EXTRAS.get(name, "harness"), f"`{self.name} {name}`") from error

    def _explained(self, ctx: click.Context, error: click.BadOptionUsage) -> click.UsageError:
        """The error for an option without its argument, with what that would be: click does not even say of whom."""
        name = ctx.invoked_subcommand or ""
        command = self.get_command(ctx, name)
        if error.ctx is not None or command is None:
            return error
        within = click.Context(command, info_name=name, parent=ctx)
        words = ctx.meta[_WORDS][1:]
        while isinstance(command, click.Group) and words:  # its subcommand is meant, `trace show` or `serve edu`
            name, *words = words
            if not name.startswith("-") and (below := command.get_command(within, name)) is not None:
                command, within = below, click.Context(below, info_name=name, parent=within)
        records = [each.get_help_record(within) for each in command.params if error.option_name in each.opts]
        told = "".join(f" {names}: {text}" for names, text in filter(None, records))
        return click.UsageError(f"{error.message}{told}", within)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the subcommands, without importing one."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, self._table[name][1]) for name in self.list_commands(ctx)])


_SETTINGS = {"help_option_names": ["-h", "--help"]}


@click.group("vfio-user", cls=LazyGroup, table=COMMANDS, context_settings=_SETTINGS)
@click.version_option(package_name="vfio-user")
def cli() -> None:
    """vfio-user devices, and real guests that test them."""


@click.group("vhost-user", cls=LazyGroup, table=VHOST_USER_COMMANDS, context_settings=_SETTINGS)
@click.version_option(package_name="vfio-user")
def vhost_user_cli() -> None:
    """Virtio devices behind vhost-user."""


def main() -> None:
    """Run `vfio-user`; see `run_command`."""
    run_command(cli)


def vhost_user_main() -> None:
    """Run `vhost-user`; see `run_command`."""
    run_command(vhost_user_cli)


def run_command(command: click.Command) -> None:
    """Run a command line; exit status 0 good, 1 bad verdict, 2 could not be done, 130 interrupted.

    VFIO_USER_TRACEBACK=1 shows internal errors as tracebacks; with NO_COLOR nothing is coloured, nor on a terminal that
    cannot (TERM=dumb), as nothing is that no terminal shows.
    """
    show_controls()
    try:
        # what ends a command by `Context.exit` comes back as a number
        status = command.main(standalone_mode=False, color=False if _is_plain() else None)
        _flush()
        sys.exit(status if isinstance(status, int) else 0)
    except (Exception, KeyboardInterrupt) as error:
        end_with(error)


def _is_plain() -> bool:
    """Whether nobody wants colours, or the terminal has none."""
    return bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM") == "dumb"


def end_with(error: BaseException) -> NoReturn:
    """End as an error has it, whose handler this is called from; with 1 where nobody reads any more what it was."""
    try:
        _tell_and_end(error)
    except BrokenPipeError:
        _drop_unprinted()
        sys.exit(1)


def _tell_and_end(error: BaseException) -> NoReturn:
    if isinstance(error, click.Abort | KeyboardInterrupt):
        notes = getattr(error.__cause__ if isinstance(error, click.Abort) else error, "__notes__", ())
        click.echo("\n  ".join(("interrupted", *notes)), err=True)
        sys.exit(130)
    if isinstance(error, click.ClickException):
        error.show()
        if isinstance(error, click.exceptions.NoArgsIsHelpError):  # its help does not say that this was a mistake
            click.echo(f"\nError: Missing {_first_word(error.ctx)}.", err=True)
        sys.exit(2)
    if os.environ.get("VFIO_USER_TRACEBACK") or not isinstance(error, Exception):
        raise error
    status = explain(error)
    _drop_unprinted()
    sys.exit(status)


def _first_word(context: click.Context | None) -> str:
    """What has to stand behind a command, as its usage calls it."""
    command = context.command if context is not None else None
    return (command.subcommand_metavar if isinstance(command, click.Group) else "argument").partition(" ")[0]


def _flush() -> None:
    """Have all that was printed where it goes, or say so: the interpreter tries too late."""
    try:
        with about("the standard output"):
            sys.stdout.flush()
    except OSError as error:
        _drop_unprinted()
        if error.errno == errno.EPIPE:  # who reads has had enough
            sys.exit(1)
        raise


def _drop_unprinted() -> None:
    """Give up what cannot be printed: the interpreter would try once more, and end with a status of its own."""
    for stream in filter(None, (sys.stdout, sys.stderr)):
        try:
            stream.flush()
        except OSError:
            with open(os.devnull, "wb") as nowhere:  # where what is left goes
                os.dup2(nowhere.fileno(), stream.fileno())
