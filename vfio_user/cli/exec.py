"""`vfio-user exec`: one command in a guest, as if it were run here."""

from __future__ import annotations

import json
import shlex
import sys
from typing import Any

import click

from userdev.errors import UserError
from vfio_user.cli._command import CommandLine
from vfio_user.cli._completion import complete_images
from vfio_user.cli._durations import LEAST, MOST, Finite
from vfio_user.cli._errors import explain
from vfio_user.cli._hardware import guest_hardware, image_option
from vfio_user.cli._progress import Waiting, quiet_option
from vfio_user.cli._served import devices_option
from vfio_user.harness.agent import ANSWER_SECONDS
from vfio_user.harness.booted_guest import BootedGuest
from vfio_user.harness.command_line import HardwareOptions
from vfio_user.harness.guest import OUTPUT_LIMIT, Command, Result
from vfio_user.harness.interruption import interruptible
from vfio_user.harness.lab import Lab

TOO_LONG = 124
"""Exit status of a command that was ended because it took too long, as timeout(1) has it."""
NOT_RUN = 125
"""Exit status where the command did not come to an end in a guest: 1 and 2 may be its own."""
_SIGNALLED = 128  # a shell's exit status of what a signal ended, less the signal's number
MINIMAL = "minimal"
_STDIN = "/tmp/stdin"


class _WithCommand(CommandLine):
    """A command line that has another one in it, behind `--`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Take what is behind the first `--` away as the command; all of the rest is ours.

        What is wrong with it ends with `NOT_RUN`.
        """
        own = args[: args.index("--")] if "--" in args else args
        ctx.meta["command"] = args[len(own) + 1 :]
        try:
            return super().parse_args(ctx, list(own))
        except click.UsageError as error:
            error.show()
            if "--" not in args:
                click.echo("  the command stands behind --: vfio-user exec --device edu -- lspci", err=True)
            ctx.exit(NOT_RUN)

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        """The words behind the program's name in the line that says how it is used."""
        return [*super().collect_usage_pieces(ctx), "-- COMMAND..."]


@click.command(cls=_WithCommand)
@click.argument("image_word", required=False, metavar="[IMAGE]", shell_complete=complete_images)
@devices_option()
@image_option(help=f"The guest image.  [default: {MINIMAL}]")
@guest_hardware()
@click.option("--stdin", "with_stdin", is_flag=True, help="Give COMMAND the standard input, once that has ended.")
@click.option("--timeout", type=Finite(LEAST), help=f"Seconds until it is ended, with status {TOO_LONG}.")
@click.option("--fresh", is_flag=True, help="Boot from the beginning, not from a checkpoint.")
@quiet_option("Say nothing beside what COMMAND says.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object: status, stdout, stderr, seconds.")
@click.pass_context
def command(context: click.Context, /, **given: Any) -> None:
    """Run COMMAND in a guest with devices, print what it prints, and end with its exit status.

    \b
    For instance
      vfio-user exec -- uname -r
      vfio-user exec --device edu -- lspci -nn -s 01:00
      vfio-user exec --image storage --device 'nvme --image disk.img' -- 'mkfs.ext4 -q /dev/nvme0n1 && sync'

    One word is a line for the guest's shell, more are a program and its arguments. stdout and stderr stay apart, and
    come when the command has ended; `boot` has a shell to watch. The guest comes from a checkpoint, and is gone
    afterwards.

    Status 125: the command was not run to its end, and why is on stderr; 128 + N: signal N ended it.
    """
    words: list[str] = context.meta["command"]
    try:
        status = _run(words[0] if len(words) == 1 else words, **given)
    except Exception as error:
        explain(error)
        status = NOT_RUN
    context.exit(status)


def _run(
    command: Command,
    *,
    image_word: str | None,
    image: str | None,
    devices: tuple[str, ...],
    qemu: str | None,
    hardware: HardwareOptions,
    root_bus: bool,
    with_stdin: bool,
    timeout: float | None,
    fresh: bool,
    quiet: bool,
    as_json: bool,
) -> int:
    """Run it, and print what it printed; the exit status.

    Raises:
        UserError: there is no command, more output than is kept, or no guest.
    """
    if not command:
        raise UserError("there is no command to run", hint="put it behind --: vfio-user exec --device edu -- lspci")
    if image_word and image and image_word != image:
        raise UserError(f"two images, {image} and {image_word}", hint="--image names one; a word before -- does too")
    image = image or image_word or MINIMAL
    stdin = sys.stdin.buffer.read() if with_stdin else None
    waiting = Waiting(quiet=quiet)
    with waiting, interruptible(), Lab("exec", qemu=qemu, progress=waiting.tell) as lab:
        lab.timeline.begun = waiting.step
        guest = lab.boot(devices=devices, image=image, fresh=fresh, root_bus=root_bus, **hardware)
        waiting.step("the command runs")
        result = _result(guest, command, stdin, timeout)
    if as_json:
        click.echo(json.dumps(_document(result)))
    else:
        _pass_on(result)
    if result.timed_out:
        _tell_timeout(timeout)
    if any(len(stream) >= OUTPUT_LIMIT for stream in result.raw):
        hint = "have it write a file in the guest, or print less"
        raise UserError(f"it printed more than the {OUTPUT_LIMIT >> 20} MiB that are kept", hint=hint)
    return _status(result)


def _result(guest: BootedGuest, command: Command, stdin: bytes | None, timeout: float | None) -> Result:
    """The command's result. Its timeout is in seconds of here, not of a guest's as fast as with KVM."""
    if stdin is not None:
        guest.put(stdin, _STDIN)
        line = command if isinstance(command, str) else shlex.join(command)
        command = f"exec < {_STDIN}; rm {_STDIN}; {line}"
    job = guest.start(command, (timeout or MOST) / guest.patience)
    return job.wait(timeout + ANSWER_SECONDS * guest.patience if timeout else None)  # nothing makes it shorter


def _tell_timeout(timeout: float | None) -> None:
    """Say what the status alone does not: a command may end with it by itself."""
    after = f"{timeout:g} s, as --timeout says" if timeout else f"{MOST:g} s"
    click.echo(f"error: the command was ended after {after}", err=True)


def _status(result: Result) -> int:
    if result.timed_out:
        return TOO_LONG
    return result.exit_code if result.exit_code >= 0 else _SIGNALLED - result.exit_code


def _document(result: Result) -> dict[str, object]:
    return {
        "status": _status(result),
        "stdout": result.stdout,
        "stderr": result.stderr,
        "seconds": round(result.seconds, 6),
        "timed_out": result.timed_out,
    }


def _pass_on(result: Result) -> None:
    """Print what the command printed: its bytes, but for a terminal, which is shown nothing that it would obey."""
    for stream, data, text in (
        (sys.stdout, result.raw[0], result.stdout),
        (sys.stderr, result.raw[1], result.stderr),
    ):
        if stream.isatty():
            stream.write(text)
        else:
            stream.buffer.write(data)
        stream.flush()
