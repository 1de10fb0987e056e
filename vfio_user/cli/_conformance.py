"""What `conformance` of every protocol has: which checks are run, against what, and how what became of them is told."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from time import monotonic
from typing import Any, Generic, TypeVar

import click

from userdev.conformance import Check, CheckResult, Level, Outcome, Workbench
from userdev.conformance.targets import CommandServer, Greet, RunningServer
from userdev.counted import counted
from userdev.errors import UserError, VerdictError, about, meant
from vfio_user.cli._beside import refuse_beside
from vfio_user.cli._choice import Choice
from vfio_user.cli._completion import Completer
from vfio_user.cli._durations import LEAST, Finite
from vfio_user.cli._hardware import DEVICE, device_option
from vfio_user.cli._outputs import Output, refuse_overwriting
from vfio_user.cli._progress import quiet_option

_MARKS = {
    Outcome.PASS: ("✔", "green"),
    Outcome.FAIL: ("✘", "red"),
    Outcome.DIFFERS: ("≠", "cyan"),
    Outcome.SKIP: ("○", "yellow"),
    Outcome.NOT_JUDGED: ("?", "yellow"),
    Outcome.BROKEN: ("!", "magenta"),
}
_LEVELS = {
    "must": frozenset({Level.MUST}),
    "reference": frozenset({Level.MUST, Level.REFERENCE}),
    "open": frozenset(Level),
}

_ALL, _NONE = frozenset(Outcome), frozenset[Outcome]()
_FOUND = frozenset({Outcome.FAIL, Outcome.DIFFERS, Outcome.BROKEN})
_STDOUT = Path("-")

B = TypeVar("B", bound=Workbench)
Target = RunningServer | CommandServer
Function = TypeVar("Function", bound=Callable[..., Any])


@dataclass(frozen=True)
class Asked:
    """What a command line says of a run."""

    address: str | None
    server_command: str | None
    device: str | None
    list_only: bool
    only: tuple[str, ...]
    level: str
    junit: Path | None
    json_path: Path | None
    timeout: float
    quiet: bool = False
    corpus: Path | None = None
    checks: Path | None = None


def options(argument: str, *, complete: Completer, device: str = "") -> Callable[[Function], Function]:
    """Give a command these options; `argument` is what it calls the address. Its function is given them as `Asked`.

    `device` is what that option also says, and `complete` is what a shell offers for it.
    """

    decorators = [
        click.argument("address", required=False, metavar=f"[{argument}]"),
        click.option(
            "--server-command",
            metavar="'CMD {socket}'",
            help="Start the server; the group after a failure gets another.",
        ),
        device_option(help=f"{device}Start the server of this. {DEVICE}", shell_complete=complete),
        click.option("--list", "list_only", is_flag=True, help="List the checks and their rules."),
        click.option("--only", metavar="ID", multiple=True, help="Run this check, or this group; may be repeated."),
        click.option(
            "--level",
            type=Choice(list(_LEVELS)),
            default="open",
            show_default=True,
            help="must: what the specification asks; reference: what the reference does, too; open: all, and what a "
            "server does where nobody says what is right is told, and no failure.",
        ),
        click.option("--junit", type=Output(dir_okay=False), help="Write JUnit XML."),
        click.option(
            "--json",
            "json_path",
            type=Output(dir_okay=False, allow_dash=True),
            help="Write JSON; - is the standard output, which has nothing else then.",
        ),
        quiet_option("Show only what is not as it should be, and the count."),
        click.option(
            "--timeout", type=Finite(LEAST), default=5.0, show_default=True, help="Seconds that each answer may take."
        ),
        click.option(
            "--checks",
            metavar="FILE.py",
            type=click.Path(dir_okay=False, path_type=Path),
            help="Run the checks of this file, of your own, instead of the catalogue.",
        ),
        click.option(
            "--corpus",
            type=click.Path(file_okay=False, path_type=Path),
            help="Play the finds of `fuzz` that are in this folder, instead of the checks.",
        ),
    ]

    def decorate(function: Function) -> Function:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return decorate


class Suite(Generic[B]):
    """A catalogue, of one protocol and one dialect of it."""

    def __init__(self, catalogue: Sequence[Check[B]], protocol: str, dialect: str, *, reference: str = "") -> None:
        """`reference` is what level REFERENCE means where a check names no revision."""
        self.reference = reference
        self.catalogue = catalogue
        self.protocol = protocol
        self.dialect = dialect

    def carry_out(
        self, asked: Asked, greet: Greet, run: Callable[[Sequence[Check[B]], Target], Iterator[CheckResult[B]]]
    ) -> None:
        """Do what the command line says; `run` runs checks against a server.

        Raises:
            UserError: there is no such check, or no server, or a check is broken itself.
            VerdictError: a check has failed.
        """
        if asked.checks is not None and asked.corpus is not None:
            raise UserError("--checks and --corpus are two runs", hint="give one of them")
        json_file = None if asked.json_path == _STDOUT else asked.json_path
        refuse_overwriting(asked.junit, json_file, read=(asked.checks,))
        checks = self._chosen(asked.only, asked.level)
        if asked.list_only:
            refuse_beside("--list names the checks, and runs none", "json_path", "junit")
            self._list(checks)
            return
        only_json = asked.json_path == _STDOUT
        shown = _NONE if only_json else _FOUND if asked.quiet else _ALL
        begin = monotonic()
        with server(asked.address, asked.server_command, greet, timeout=asked.timeout) as target:
            if (habit := target.try_out()) and shown is _ALL:
                click.echo(habit)
            raised: list[str] = []
            told = _with_complaints(run(checks, target), target, raised.append)
            results = self._shown(_counted_if_interrupted(told, len(checks)), shown)
        if not only_json:  # before what may not be writable any more: the counts are not lost with it
            _tell_counts(results, monotonic() - begin)
            if raised:
                click.echo(f"its own code failed beside checks that pass, first so: {raised[0]}")
        if asked.junit is not None:
            self._write_junit(asked.junit, results)
        if asked.json_path is not None:
            text = json.dumps(self._document(results), indent=2)
            if only_json:
                click.echo(text)
            else:
                with about(asked.json_path):
                    asked.json_path.write_text(text + "\n")
        _judge(results)

    def _chosen(self, only: Sequence[str], level: str) -> list[Check[B]]:
        """The checks that were asked for and are rules of the dialect.

        Raises:
            UserError: there is no such check, or none is left: a run of nothing would be a good verdict.
        """
        unknown = [name for name in only if not any(name in (check.id, check.group) for check in self.catalogue)]
        if unknown:
            words = {word for check in self.catalogue for word in (check.id, check.group)}
            hint = f"{meant(unknown[0], words)}--list shows them"
            raise UserError(f"no check or group is called {unknown[0]!r}", hint=hint)
        chosen = [
            check
            for check in self.catalogue
            if (not only or check.id in only or check.group in only)
            and check.level in _LEVELS[level]
            and (check.dialects is None or self.dialect in check.dialects)
        ]
        if self.catalogue and not chosen:
            raise UserError(
                f"no check is left: of what was asked for nothing is a rule of {self.dialect} at level {level}",
                hint="leave out --level, or --only; --list shows what there is",
            )
        return chosen

    def _list(self, checks: Iterable[Check[B]]) -> None:
        for check in checks:
            click.echo(f"{check.id}  {check.title}\n    {self._authority(check)}")
            if check.needs:
                click.echo(f"    needs {', '.join(check.needs)}")

    def _authority(self, check: Check[B]) -> str:
        """What a rule goes by."""
        revision = check.revision or self.reference
        level = (
            f"{check.level.value} ({revision})" if check.level is Level.REFERENCE and revision else check.level.value
        )
        return f"{level}, {check.rule}"

    def _shown(self, results: Iterable[CheckResult[B]], outcomes: frozenset[Outcome]) -> list[CheckResult[B]]:
        """The results, those of these outcomes shown as they come.

        Of many that are not judged for the same reason, as where a server lets nobody, the first is shown.
        """
        kept: list[CheckResult[B]] = []
        group = ""
        for result in results:
            known = {(each.outcome, each.detail) for each in kept[-1:] if each.outcome is Outcome.NOT_JUDGED}
            same = (result.outcome, result.detail) in known
            kept.append(result)
            if result.outcome not in outcomes or same:
                continue
            if result.check.group != group:
                group = result.check.group
                click.echo(f"\n{click.style(group, bold=True)}")
            self._show(result)
        return kept

    def _show(self, result: CheckResult[B]) -> None:
        mark, colour = _MARKS[result.outcome]
        name = result.check.id.partition("/")[2]
        click.echo(f"  {click.style(mark, fg=colour)} {name}: {result.check.title}")
        if result.outcome in (Outcome.FAIL, Outcome.DIFFERS):
            click.echo(f"      {self._authority(result.check)}")
        for line in result.detail.splitlines():
            click.echo(click.style(f"      {line}", fg=colour))

    def _document(self, results: Sequence[CheckResult[B]]) -> dict[str, object]:
        return {
            "dialect": self.dialect,
            "checks": [
                {
                    "id": result.check.id,
                    "title": result.check.title,
                    "level": result.check.level.value,
                    "rule": result.check.rule,
                    "needs": list(result.check.needs),
                    "revision": result.check.revision,
                    "outcome": result.outcome.value,
                    "detail": result.detail,
                    "seconds": round(result.seconds, 6),
                }
                for result in results
            ],
        }

    def _write_junit(self, path: Path, results: Sequence[CheckResult[B]]) -> None:
        from junitparser import Error, Failure, JUnitXml, Skipped, TestCase, TestSuite  # slow to import, seldom wanted

        document = JUnitXml(f"{self.protocol} conformance")
        suites: dict[str, TestSuite] = {}
        for result in results:
            group = result.check.group
            suite = suites.setdefault(group, TestSuite(group))
            name = result.check.id.partition("/")[2]
            case = TestCase(name, classname=f"{self.dialect}.{group}", time=result.seconds)
            if result.outcome is Outcome.FAIL:
                failure = Failure(result.detail, result.check.level.value)
                failure.text = f"{result.check.title}\n{result.check.rule}\n{result.detail}"
                case.result = [failure]
            elif result.outcome in (Outcome.SKIP, Outcome.NOT_JUDGED):
                case.result = [Skipped(result.detail)]
            elif result.outcome is Outcome.BROKEN:
                case.result = [Error(result.detail, "broken")]
            elif result.outcome is Outcome.DIFFERS:
                case.system_out = f"differs: {result.detail}"
            suite.add_testcase(case)
        for suite in suites.values():
            document.add_testsuite(suite)
        with about(path):
            document.write(str(path), pretty=True)


@contextmanager
def server(address: str | None, command: str | None, greet: Greet, *, timeout: float) -> Iterator[Target]:
    """The server that is named by its address, or started by a command.

    Raises:
        UserError: it is not exactly one of them.
    """
    if (address is None) == (command is None):
        hint = "give either its address, --server-command 'CMD {socket}' or --device"
        raise UserError("one server, please", hint=hint)
    if address is not None:
        with RunningServer(address, greet, timeout=timeout) as running:
            yield running
        return
    from vfio_user.harness.scratch import Scratch  # a server that runs already needs no extra

    assert command is not None
    with (
        Scratch() as scratch,
        CommandServer(
            command, scratch.path, greet, timeout=timeout, environment=scratch.environment, say=click.echo
        ) as started,
    ):
        try:
            yield started
        except UserError as error:
            error.evidence = "\n".join(filter(None, [error.evidence, told_of(complaint_of(started))]))
            raise


def _with_complaints(
    results: Iterable[CheckResult[B]], target: Target, note: Callable[[str], object]
) -> Iterator[CheckResult[B]]:
    """The results as they come; a failure with what a server that we have started complains of meanwhile.

    What goes wrong beside an exception of the server's is no open question, and a failure once: every cause is one.
    `note` is told of exceptions beside what is no failure.
    """
    failed_of: dict[str, str] = {}  # exceptions: the check that has failed of it
    for result in results:
        raised, warned = complaints_of(target)
        is_failure = result.outcome is Outcome.FAIL or (result.outcome is Outcome.DIFFERS and bool(raised))
        if not is_failure:
            if raised and raised not in failed_of:
                note(raised)
            yield result
        elif raised in failed_of and not result.crashed:
            detail = f"{result.detail}; its own code failed as it did at {failed_of[raised]}, which failed of that"
            yield replace(result, outcome=Outcome.NOT_JUDGED, detail=detail)
        else:
            complaint = raised or warned
            if raised:
                failed_of.setdefault(raised, result.check.id)
            is_new = complaint and complaint not in result.detail
            detail = f"{result.detail}\n{told_of(complaint)}" if is_new else result.detail
            yield replace(result, outcome=Outcome.FAIL, detail=detail)


def complaints_of(target: Target) -> tuple[str, str]:
    """Of what a server of ours has said since it was last asked the last exception, and the last that it warned of."""
    said = target.said()
    if not said:
        return "", ""
    from vfio_user.harness.server_exceptions import complaints_in  # needs what a running server does not

    return complaints_in(said)


def complaint_of(target: Target) -> str:
    """The same in one: an exception before a warning."""
    return next(filter(None, complaints_of(target)), "")


def told_of(complaint: str) -> str:
    """What is told of it; "" where there is none."""
    return f"the server said: {complaint}" if complaint else ""


def _counted_if_interrupted(results: Iterable[CheckResult[B]], of: int) -> Iterator[CheckResult[B]]:
    """The results as they come; a KeyboardInterrupt is told how many there were."""
    done = failed = 0
    try:
        for result in results:
            done, failed = done + 1, failed + (result.outcome is Outcome.FAIL)
            yield result
    except KeyboardInterrupt as interrupt:
        interrupt.add_note(f"{done} of {counted(of, 'check')} done, {failed} failed")
        raise


def _tell_counts(results: Sequence[CheckResult[B]], seconds: float) -> None:
    """Say how many checks came to what, and how long it took with all that was between them: servers that came up."""
    count = {outcome: sum(result.outcome is outcome for result in results) for outcome in Outcome}
    differ = f"{count[Outcome.DIFFERS]} differ, " if count[Outcome.DIFFERS] else ""
    unjudged = f"{count[Outcome.NOT_JUDGED]} not judged, " if count[Outcome.NOT_JUDGED] else ""
    broken = f"{count[Outcome.BROKEN]} broken, " if count[Outcome.BROKEN] else ""
    click.echo(
        f"\n{counted(len(results), 'check')}: {count[Outcome.PASS]} passed, {count[Outcome.FAIL]} failed, {differ}"
        f"{count[Outcome.SKIP]} skipped, {unjudged}{broken}in {seconds:.1f} s"
    )


def _judge(results: Sequence[CheckResult[B]]) -> None:
    """Look at what became of the checks.

    Raises:
        VerdictError: a check has failed.
        UserError: none has, and one is broken itself: of the server that is no verdict.
    """
    failed = [result.check.id for result in results if result.outcome is Outcome.FAIL]
    if failed:
        evidence = "\n".join(f"  {each}" for each in failed)
        raise VerdictError(f"{len(failed)} of {counted(len(results), 'check')}", evidence=evidence)
    broken = [result for result in results if result.outcome is Outcome.BROKEN]
    if broken:
        raise UserError(
            f"{counted(len(broken), 'check gives', 'checks give')} no verdict about the server: "
            f"{broken[0].check.id}: {broken[0].detail}",
            hint="mend the check at that line",
        )
