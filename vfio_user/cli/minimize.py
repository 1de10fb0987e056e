"""`vfio-user minimize`: the shortest trace that still fails."""

from __future__ import annotations

import json
from pathlib import Path

import click

from userdev.counted import counted
from userdev.errors import UserError
from userdev.fuzz.finds import Find, is_find
from userdev.trace.kept import keep_aside
from vfio_user.cli._command import CommandLine
from vfio_user.cli._completion import complete_servers
from vfio_user.cli._durations import Duration
from vfio_user.cli._other_protocol import played_by
from vfio_user.cli._outputs import Output, refuse_overwriting
from vfio_user.cli._progress import Waiting, quiet_option
from vfio_user.cli._registers import registers as named_registers
from vfio_user.cli._replaying import comparing, played_of
from vfio_user.cli._served import device_as_command
from vfio_user.interposer.replay import Minimized, minimize
from vfio_user.interposer.replay.minimize import SERVER
from vfio_user.interposer.replay.reducing import BUDGET_SECONDS

_INTERRUPTED = 130
EMPTY = (
    "note: the beginning of the session alone fails as well:"
    " where that is not the fault, look whether the check fails for another reason"
)


@click.command(cls=CommandLine)
@click.argument("trace", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--server-command", metavar="CMD", help="The server; started anew for every attempt.")
@device_as_command("vfio-user", complete_servers, shown=False)
@click.option("--against", metavar="CMD", help="A reference, which does right: what is left is good on it.")
@click.option(
    "--check", metavar="CMD", help="Decide by CMD: {trace} is the candidate, which fails unless CMD ends with 0."
)
@click.option("--record", type=int, metavar="N", help="Of several that differ the one to explain, as `replay` numbers.")
@click.option(
    "--for", "seconds", type=Duration(), default=BUDGET_SECONDS, help="How long to search: 90s, 10m (default), 1h30m."
)
@click.option("--output", "-o", type=Output(dir_okay=False), help="Default: TRACE.min")
@comparing
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@quiet_option("Say only what came of it.")
def command(
    trace: Path,
    server_command: str | None,
    against: str | None,
    check: str | None,
    record: int | None,
    seconds: float,
    output: Path | None,
    session: int,
    ignore: tuple[str, ...],
    registers: str | None,
    patience: float,
    as_json: bool,
    quiet: bool,
) -> None:
    """Shrink a failing TRACE while the server goes wrong in the same way at the same record.

    What is left is good on the reference, or, where there is none, as far as the recorded answers tell. The search ends
    when nothing can be left out, after --for, or with Ctrl-C: the shortest so far is the result in any case.
    """
    if server_command is None and (check is None or SERVER in check):
        raise click.UsageError("the server is started anew for every attempt: --server-command or --device says which")
    if check is not None and (against or record):
        raise click.UsageError("--check decides by itself, without --against and --record")
    if is_find(trace):
        raise UserError(
            f"{trace} is a find of `fuzz`, which reduces by itself what it finds",
            hint=f"{played_by(Find.read(trace), trace)} plays it again; `fuzz --seed`, with the seed in it, finds and "
            "reduces it again",
        )
    output = output or trace.with_name(trace.name + ".min")
    refuse_overwriting(output, read=(trace, registers))
    script = played_of(trace, session)
    with Waiting(quiet=quiet) as waiting:
        found = minimize(
            script,
            server_command,
            against=against,
            check=check,
            record=record,
            ignore=ignore,
            registers=named_registers(registers) if registers else None,
            patience=patience,
            seconds=seconds,
            progress=lambda left, replays, spent: waiting.how_far(
                f"{counted(left, 'message')} left, {counted(replays, 'shorter one')} tried, {spent:.0f} s"
            ),
        )
    keep_aside(output)
    found.script.write(output)
    text = "\n".join(
        [_text(found, output, _why_all_stays(found, against, check)), *_how_to_go_on(found, against, check)]
    )
    click.echo(json.dumps({"output": str(output), **found.json()}, indent=2) if as_json else text)
    if found.ended == "interrupted":
        raise click.exceptions.Exit(_INTERRUPTED)


def _why_all_stays(found: Minimized, against: str | None, check: str | None) -> str:
    """Why a search left nothing out; "" where it did, or had no time."""
    if found.ended != "minimal" or found.after < found.before:
        return ""
    if not found.replays:
        return "nothing was left out: the message that goes wrong needs all of the others"
    if check is not None:
        return f"nothing was left out: {check} fails with no shorter one that makes sense"
    on_reference = ", or goes wrong with the reference, too" if against is not None else ""
    return f"nothing was left out: each shorter one that makes sense does not go wrong in this way{on_reference}"


def _how_to_go_on(found: Minimized, against: str | None, check: str | None) -> list[str]:
    """What leaves more out, where nobody but the recording knew what is right."""
    if found.ended != "minimal" or against is not None or check is not None or found.is_empty:
        return []
    return ["with --against and a server that does right, what registers depend on can be left out too"]


def _text(found: Minimized, output: Path, why_all_stays: str) -> str:
    how = "" if found.ended == "minimal" else f"; {found.ended}, there may be a shorter one"
    tried = f"{counted(found.replays, 'shorter one')} tried"
    count = f"{found.after} of {counted(found.before, 'message')}, {tried}, in {found.seconds:.1f} s"
    lines = [f"{output}: {count}{how}"]
    if why_all_stays:
        lines.append(why_all_stays)
    if found.difference is not None:
        lines.append(str(found.difference))
    if found.is_empty and found.difference is None:
        lines.append(EMPTY)
    if not found.confirmed:
        lines.append("note: it did not fail when it was tried once more in the end")
    return "\n".join(lines)
