"""`vfio-user repro`: a bundle's run once more, here, and what is otherwise than it was."""

from __future__ import annotations

import itertools
import json
import math
import shlex
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import click

from userdev.counted import counted
from userdev.errors import UserError
from userdev.process import Child
from vfio_user.bundle import OpenBundle, open_bundle
from vfio_user.bundle.again import Attempt, Prepared, do_again, prepare
from vfio_user.bundle.standing import Place, Standing, first_place, gdb_command, place_of, run_gdb, stand
from vfio_user.cli._choice import Choice
from vfio_user.cli._command import CommandLine
from vfio_user.cli._completion import complete_servers
from vfio_user.cli._hardware import DEVICE, device_option
from vfio_user.cli._progress import quiet_option
from vfio_user.cli.bundle import told
from vfio_user.harness.artifacts import results_folder
from vfio_user.harness.debian import quiet as unsaid
from vfio_user.harness.interruption import interruptible


@click.command(cls=CommandLine)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--times", type=click.IntRange(min=1), help="How often; once if not given, with --until without end.")
@click.option(
    "--until",
    type=Choice(["FAIL", "PASS"], case_sensitive=False),
    help="Again and again, until this is the verdict: for what fails now and then.",
)
@click.option(
    "--server-command",
    "--server",
    "server",
    metavar="CMD",
    default="",
    help="Another server: its command line with {socket}; of a test DEVICE=COMMAND.",
)
@device_option(help=f"The server of this in place of the bundle's. {DEVICE}", shell_complete=complete_servers)
@click.option("--qemu", default="", help="Another QEMU than the bundle's: a path, a command or a name.")
@click.option(
    "--break-at",
    "record",
    metavar="[SERVER:]N",
    help="Stand still at the message that is record N of the bundle's trace, so that a debugger can look.",
)
@click.option("--gdb", is_flag=True, help="Have gdb look at the server then; without --break-at at its first message.")
@click.option("--gdb-qemu", is_flag=True, help="The same for the guest's QEMU.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, for programs.")
@quiet_option("Say only what is otherwise, and what --until has waited for.")
@click.pass_context
def command(
    context: click.Context,
    bundle: Path,
    times: int | None,
    until: str | None,
    server: str,
    device: str | None,
    qemu: str,
    record: str | None,
    gdb: bool,
    gdb_qemu: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Do again what BUNDLE is of, and say what is otherwise: verdict, what the guest saw, versions, the wire.

    What is otherwise on this machine is said before anything starts. A bundle has command lines of whoever made it,
    which are run here: `vfio-user bundle show` prints them. The exit status is 0 when the same came of it each time;
    with --until, when that verdict came.
    """
    if gdb and gdb_qemu:
        raise click.UsageError("one debugger at a time: --gdb or --gdb-qemu")
    if server and device:
        raise UserError("one server, please: --device and --server-command are two", hint="leave one of them out")
    found = open_bundle(bundle)
    place = place_of(found, record) if record is not None else first_place(found) if gdb or gdb_qemu else None
    prepared = prepare(found, server=server, device=device or "", qemu=qemu, say=unsaid if quiet else _say)
    folder = results_folder("repro")
    if not as_json and not quiet:
        _tell_before(found.bundle.outcome.verdict, found.bundle.of, prepared)
    attempts: list[Attempt] = []
    rounds: Iterator[int] = iter(range(1, times + 1)) if times else itertools.count(1) if until else iter([1])
    with interruptible():
        for number in rounds:
            attempt = _attempt(found, prepared, folder / str(number), place, _Looking(gdb=gdb, gdb_qemu=gdb_qemu))
            attempts.append(attempt)
            is_last = bool(until) and attempt.verdict == (until or "").upper()
            if not as_json and (not quiet or is_last or not attempt.same):
                same = "the same" if attempt.same else "not the same"
                click.echo(f"{number}: {attempt.verdict}, {same}, {attempt.seconds:.1f} s: {attempt.found.folder}")
            if is_last:
                break
    _tell_after(prepared, attempts, as_json=as_json, quiet=quiet)
    came = attempts[-1].verdict == (until or "").upper()
    if until and not came:
        _say(f"{until.upper()} did not come in {counted(len(attempts), 'time')}")
    context.exit(int(not (came if until else all(attempt.same for attempt in attempts))))


def _attempt(
    found: OpenBundle, prepared: Prepared, folder: Path, place: Place | None, looking: Callable[[Child, Standing], None]
) -> Attempt:
    """Do it once; at `place` it stands still, and somebody looks."""
    if place is None:
        return do_again(found, prepared.command, folder)
    breakpoint = place.breakpoint(folder)

    def meanwhile(child: Child) -> None:
        _say(f"it will stand still at {place}")
        if not stand(child, breakpoint, lambda standing: looking(child, standing)):
            _say("it did not come to that this time")

    return do_again(found, prepared.command, folder, environment=breakpoint.exported(), meanwhile=meanwhile)


@dataclass(frozen=True)
class _Looking:
    """What is done while a run stands still: gdb, or a wait for Enter."""

    gdb: bool
    gdb_qemu: bool

    def __call__(self, child: Child, standing: Standing) -> None:
        server, qemu = standing.server_pid, standing.qemu_pid
        _say(f"it stands still: the server is process {server}, QEMU {qemu}")
        looked_at = qemu if self.gdb_qemu else server
        words, environment = gdb_command(looked_at)
        _say(f"  {shlex.join(words[:3])}{' ...' * (len(words) > 3)}")
        if self.gdb or self.gdb_qemu:
            run_gdb(standing, looked_at, words, environment)
            return
        _say("Enter lets it go on")
        if sys.stdin is not None:  # it is closed
            child.wait(math.inf, or_readable=sys.stdin.fileno())
            sys.stdin.readline()


def _tell_before(verdict: str, of: str, prepared: Prepared) -> None:
    click.echo(f"{verdict}: {of}")
    for difference in prepared.here:
        click.echo(f"  otherwise here: {difference}")


def _tell_after(prepared: Prepared, attempts: list[Attempt], *, as_json: bool, quiet: bool) -> None:
    if as_json:
        here = [difference.as_dict() for difference in prepared.here]
        click.echo(json.dumps({"here": here, "attempts": [attempt.as_dict() for attempt in attempts]}, indent=2))
        return
    last = next((attempt for attempt in reversed(attempts) if not attempt.same), attempts[-1])
    if quiet and last.same:
        return
    if len(attempts) > 1:
        click.echo(f"{sum(attempt.same for attempt in attempts)} of {len(attempts)} the same")
    for line in told(last.differences):
        click.echo(line)


def _say(message: str) -> None:
    click.echo(message, err=True)
