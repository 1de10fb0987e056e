"""What `fuzz` of every protocol has: its options, how it tells what goes on, and what its finds are played with."""

from __future__ import annotations

import json
import secrets
import sys
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any, Protocol, TypeVar

import click

from userdev.conformance import Check, CheckFailed, Group, Level, Skip
from userdev.conformance.targets import Greet
from userdev.counted import counted
from userdev.errors import UserError, VerdictError, meant
from userdev.fuzz import Bounds, Campaign, Find, Found, Kind, Oracle, Subject, Summary
from userdev.fuzz.finds import corpus
from userdev.fuzz.levels import DEFAULT, LEVELS
from vfio_user.cli._beside import refuse_beside
from vfio_user.cli._choice import Choice
from vfio_user.cli._completion import Completer
from vfio_user.cli._conformance import Target, complaint_of, complaints_of, server, told_of
from vfio_user.cli._durations import LEAST, Duration, Finite
from vfio_user.cli._hardware import DEVICE, device_option
from vfio_user.cli._outputs import Output
from vfio_user.cli._progress import Waiting, quiet_option
from vfio_user.extras import needing

FOLDER = Path("fuzz-finds")
LENGTH = 40
"""Steps of a sequence, at most."""
SHOWN = 10
"""Steps of a find that are shown; its file has all."""

Function = TypeVar("Function", bound=Callable[..., Any])


@dataclass(frozen=True)
class Asked:
    """What a command line says of a campaign."""

    address: str | None
    server_command: str | None
    device: str | None
    seconds: float
    seed: int | None
    finds: int | None
    output: Path
    as_json: bool
    timeout: float
    list_oracles: bool
    against: str | None
    quiet: bool
    level: str
    ignored: tuple[str, ...]

    def is_ignored(self, found: Found) -> bool:
        """Whether that was said to be known, by its name or its oracle's."""
        return found.name in self.ignored or found.oracle.id in self.ignored


_WORTH_TELLING = 1.0
"""Seconds before the first sequence that are told of."""


class _Known(click.ParamType[str]):
    """What is known to be found: a find's file, its name, or the oracle's."""

    name = "name"

    def convert(self, value: str, _param: click.Parameter | None, _ctx: click.Context | None) -> str:
        """The name of what is known, where its file is given that of its find.

        Raises:
            UserError: the file is no find.
        """
        return Find.read(Path(value)).name if value.endswith(".json") else value


def options(argument: str, served: str, *, complete: Completer, device: str = "") -> Callable[[Function], Function]:
    """Give a command these options. Its function is given them as `Asked`.

    `argument` is what it calls the address, `served` what is there: server, or back-end. `device` is what that option
    also says, and `complete` is what a shell offers for it.
    """
    decorators = [
        click.argument("address", required=False, metavar=f"[{argument}]"),
        click.option(
            "--server-command", metavar="'CMD {socket}'", help="Start the server, and a fresh one behind each find."
        ),
        device_option(help=f"{device}Start the server of this. {DEVICE}", shell_complete=complete),
        click.option(
            "--for",
            "seconds",
            type=Duration(),
            default="10m",
            show_default=True,
            help="How long to look: 90s, 10m, 1h30m. What is found near its end is reduced for at most "
            f"{Bounds.at_least:.0f} s beyond it, and the answers that are awaited then.",
        ),
        click.option("--seed", type=click.IntRange(min=0), help="The same sequences again; told where it is drawn."),
        click.option(
            "--finds", type=click.IntRange(min=1), metavar="N", help="Stop behind so many causes that were seen again."
        ),
        click.option(
            "--output",
            type=Output(file_okay=False, makes_folders=True),
            default=FOLDER,
            show_default=True,
            help="Finds go there, a file for each cause.",
        ),
        click.option("--json", "as_json", is_flag=True, help="Print what was found as JSON; progress goes to stderr."),
        click.option(
            "--timeout", type=Finite(LEAST), default=5.0, show_default=True, help="Seconds that each answer may take."
        ),
        click.option(
            "--level",
            type=Choice(list(LEVELS)),
            default=DEFAULT,
            show_default=True,
            help="must: leave to the server what is not in the specification, as whether it refuses what is wrong.",
        ),
        click.option("--oracles", "list_oracles", is_flag=True, help="List what is held to be wrong."),
        click.option(
            "--against", metavar="'CMD {socket}'", help=f"A reference {served}, which has to answer the same."
        ),
        click.option(
            "--ignore",
            "ignored",
            multiple=True,
            type=_Known(),
            metavar="NAME",
            help="Leave out what is known: a find by its name or its file, or all of an oracle; more than once.",
        ),
        quiet_option("Say only what was found."),
    ]

    def decorate(function: Function) -> Function:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return decorate


class ProbedSubject(Subject, Protocol):
    """A subject that can be probed."""

    def prepare(self) -> list[Found]:
        """Probe the server; what is wrong with it already."""

    def kinds(self) -> Sequence[Kind[Any]]:
        """The steps that it can be asked for; none where it cannot be described."""

    def close(self) -> None:
        """Give everything back."""


P = TypeVar("P", bound=ProbedSubject)


def carry_out(asked: Asked, greet: Greet, oracles: Sequence[Oracle], made: Callable[[Target, P | None], P]) -> None:
    """Do what the command line says; `made` makes the subject of a server, with that of a reference if there is one.

    Raises:
        UserError: there is no server.
        VerdictError: something was found.
    """
    if asked.list_oracles:
        refuse_beside("--oracles lists what is held to be wrong, for people", "as_json")
        for oracle in oracles:
            click.echo(f"{oracle.id:<12} {oracle.rule}")
        return
    _check_names(asked.ignored, {oracle.id for oracle in oracles})
    with ExitStack() as stack:

        def tried_out(address: str | None, command: str | None) -> Target:
            target = stack.enter_context(server(address, command, greet, timeout=asked.timeout))
            if habit := target.try_out():
                click.echo(habit, err=True)
            return target

        reference = made(tried_out(None, asked.against), None) if asked.against is not None else None
        target = tried_out(asked.address, asked.server_command)
        subject = made(target, reference)
        stack.callback(subject.close)
        _campaign(asked, subject, partial(complaints_of, target))


def _check_names(ignored: Sequence[str], oracles: Collection[str]) -> None:
    """Raise `UserError` for a name that no find can have, since nothing would ever be left out for it."""
    for name in ignored:
        if name not in oracles and name.rpartition("-")[0] not in oracles:
            hint = f"{meant(name, oracles)}a find has the name of its file, ORACLE-NUMBER, and --oracles lists oracles"
            raise UserError(f"--ignore {name}: no find has that name", hint=hint)


def _campaign(asked: Asked, subject: ProbedSubject, said: Callable[[], tuple[str, str]]) -> None:
    seed = secrets.randbelow(1 << 32) if asked.seed is None else asked.seed
    if not asked.quiet:  # before all that may be interrupted
        click.echo(f"seed {seed}", err=True)
    with needing("fuzz", "drawing sequences"):
        from userdev.fuzz.drawing import sequences
    begin = monotonic()
    try:
        wrong = subject.prepare()
    except KeyboardInterrupt as interruption:
        if asked.quiet:
            interruption.add_note(f"seed {seed}")
        raise
    kinds = subject.kinds()
    looked = monotonic() - begin
    drawn = sequences(kinds, seed, LENGTH) if kinds else iter(())
    if not asked.quiet:
        click.echo(f"{counted(len(kinds), 'kind')} of steps", err=True)
    bounds = Bounds(asked.seconds, finds=float("inf") if asked.finds is None else asked.finds)
    with Waiting(quiet=asked.quiet) as waiting:
        teller = _Teller(asked.seconds, waiting)
        summary = Campaign(
            subject,
            drawn,
            seed=seed,
            bounds=bounds,
            listener=teller,
            folder=asked.output,
            ignored=asked.is_ignored,
            said=said,
        ).run(wrong)
    _report(asked, seed, summary, looked)


def _report(asked: Asked, seed: int, summary: Summary, looked: float = 0.0) -> None:
    """Say what came of it. For `looked` seconds the server was looked at before the first sequence: a mute one takes
    long.
    """
    finds = list(summary.finds.values())
    rate = summary.steps / summary.seconds if summary.seconds else 0.0
    if asked.as_json:
        document = {
            "seed": seed,
            "sequences": summary.sequences,
            "steps": summary.steps,
            "seconds": round(summary.seconds, 3),
            "looked": round(looked, 3),
            "interrupted": summary.interrupted,
            "ignored": summary.ignored,
            "raised": summary.raised,
            "finds": [{**find.plain(), "file": str(asked.output / f"{find.name}.json")} for find in finds],
        }
        click.echo(json.dumps(document, indent=2))
    done = f"{counted(summary.sequences, 'sequence')}, {counted(summary.steps, 'step')}"
    said = f"{done} in {summary.seconds:.0f} s, {rate:.0f} steps/s"
    if looked >= _WORTH_TELLING:
        said += f", after {looked:.0f} s in which the server was looked at"
    if summary.ignored:
        said += f", {counted(summary.ignored, 'time')} what --ignore names"
    if not asked.quiet:
        click.echo(f"{said}; seed {seed}" + (", interrupted" if summary.interrupted else ""), err=asked.as_json)
    elif summary.interrupted:
        click.echo(f"interrupted; seed {seed}", err=True)
    if summary.raised:
        told = f"its own code failed where nothing was found, first so: {summary.raised}"
        click.echo(told, err=asked.as_json or asked.quiet)
    if finds:
        evidence = "\n".join(_told_at_the_end(find, asked.output) for find in finds)
        raise VerdictError(counted(len(finds), "find"), evidence=evidence)
    if summary.interrupted:
        sys.exit(130)


def _told_at_the_end(find: Find, folder: Path) -> str:
    told = f"  {folder / find.name}.json: {find.headline}"
    return f"{told}\n    {told_of(find.said)}" if find.said and find.said not in find.headline else told


class _Teller:
    """Tells how a campaign goes."""

    def __init__(self, seconds: float, waiting: Waiting) -> None:
        self._seconds = seconds
        self._waiting = waiting

    def played(self, summary: Summary) -> None:
        """Tell how far it is."""
        counts = (
            counted(summary.sequences, "sequence"),
            counted(summary.steps, "step"),
            counted(len(summary.finds), "find"),
        )
        self._waiting.how_far(f"{summary.seconds:.0f} of {self._seconds:.0f} s: {', '.join(counts)}")

    def found(self, find: Find) -> None:
        """Tell of a cause that is new."""
        self._waiting.say(f"found {find.name}: {find.headline}")

    def reducing(self, left: int, tries: int) -> None:
        """Tell how its reduction goes."""
        self._waiting.how_far(f"reducing: {counted(left, 'step')} left after {counted(tries, 'try', 'tries')}")

    def kept(self, find: Find, path: Path | None) -> None:
        """Tell what is left of it."""
        told = "" if find.reproduced else ", which do not show it by themselves"
        self._waiting.say(f"  {path}: {_steps_of(find)}{told}")
        for step in find.steps[:SHOWN]:
            self._waiting.say(f"    {step}")
        if left := len(find.steps[SHOWN:]):
            self._waiting.say(f"    ... and {counted(left, 'more step')}")
        if find.said:
            self._waiting.say(f"    {told_of(find.said)}")


def play_again(find: Find, subject: ProbedSubject, target: Target, path: Path, *, as_json: bool, quiet: bool) -> None:
    """Play a find with `target`, and print what is seen; `quiet`: nothing where nothing is wrong.

    Raises:
        UserError: there is no server, or nothing is seen of what could not be seen with this one.
        VerdictError: it is still found, or something else is.
    """
    found = _played(find, subject)
    if found is None and (unseen := _unseen(find, subject)):
        raise UserError(f"{path}: {unseen}", hint=f"it was found of {_of_what(find)}, with --seed {find.seed}")
    seen, said = None, ""
    if found is not None:
        subject.renew()  # with the last words of the server
        said = complaint_of(target)
        seen = {"oracle": found.oracle.id, "cause": found.cause, "what": str(found), "said": said}
    if as_json:
        click.echo(
            json.dumps({"find": str(path), "cause": find.cause, "steps": len(find.steps), "found": seen}, indent=2)
        )
        if found is not None:
            raise click.exceptions.Exit(1)
        return
    if found is None:
        if not quiet:
            click.echo(f"{path}: {_steps_of(find)}, and nothing is wrong any more")
        return
    told = f"it is still there: {found.headline}"
    if found.cause != find.cause:
        told = f"{find.headline}: that is not there, but this: {found.headline}"
    raise VerdictError(f"{path}: {told}", evidence="\n".join(filter(None, (str(found), told_of(said)))))


def _unseen(find: Find, subject: ProbedSubject) -> str:
    """Why it is no good sign that a find is not seen, in words; "" where it is one."""
    if find.beside_reference:
        return "what a reference answers otherwise is not seen without it (--against), and nothing else is wrong"
    kinds = {kind.name: kind for kind in subject.kinds()}
    if not find.steps or any(step.name in kinds and kinds[step.name].takes(step) for step in find.steps):
        return ""
    return f"none of its {counted(len(find.steps), 'step')} is one for this server, and nothing else is wrong"


def _of_what(find: Find) -> str:
    """Of what it was found, for people."""
    return ", ".join(f"{name} {value}" for name, value in find.subject.items() if value) or "another"


def _steps_of(find: Find) -> str:
    """How many there are; of what is wrong with a server that is only probed there are none."""
    return counted(len(find.steps), "step") if find.steps else "no step, probing the server shows it"


def _played(find: Find, subject: ProbedSubject) -> Found | None:
    wrong = subject.prepare()
    if not subject.kinds() or not find.steps:
        return next((each for each in wrong if each.cause == find.cause), wrong[0] if wrong else None)
    return subject.play(find.steps)


B = TypeVar("B")


def corpus_checks(
    folder: Path, protocol: str, made: Callable[[B, Find], ProbedSubject], catalogue: Sequence[Check[B]]
) -> tuple[Check[B], ...]:
    """The finds of a folder as checks of a group `corpus`; `made` makes the subject of a bench, for a find.

    One that is the failure of a check of the catalogue has the rule and the level of that.

    Raises:
        UserError: the folder has none.
    """
    group = Group[B]("corpus", "a find of `fuzz` that was kept")
    by_id = {check.id: check for check in catalogue}
    for path, find in corpus(folder, protocol):
        rule, level, revision = find.rule, Level[find.level], ""
        if (failed := by_id.get(find.check)) is not None:
            rule, level, revision = failed.rule, failed.level, failed.revision
        title = f"A find that is played again: {find.headline}"
        group.add(path.stem, title, _check(find, made), rule=rule, level=level, revision=revision)
    return tuple(group)


def _check(find: Find, made: Callable[[B, Find], ProbedSubject]) -> Callable[[B], None]:
    def run(bench: B) -> None:
        subject = made(bench, find)
        try:
            found = _played(find, subject)
            unseen = _unseen(find, subject)
        finally:
            subject.close()
        if found is not None:
            raise CheckFailed(found.headline if found.cause != find.cause else str(found))
        if unseen:
            raise Skip(unseen)

    return run
