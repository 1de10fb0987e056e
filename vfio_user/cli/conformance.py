"""`vfio-user conformance`: any server, in any language, against the rules of the protocol."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import click

from userdev.errors import UserError, VerdictError, about
from vfio_user.client.conformance import CATALOGUE, Bench, Check, CheckResult, Level, Outcome, run
from vfio_user.client.conformance.targets import CommandServer, RunningServer
from vfio_user.wire import DIALECTS, Dialect

_MARKS = {Outcome.PASS: ("✔", "green"), Outcome.FAIL: ("✘", "red"), Outcome.SKIP: ("○", "yellow")}


@click.command()
@click.argument("socket", required=False)
@click.option("--server-command", metavar="'CMD {socket}'", help="Start the server; each group gets a fresh one.")
@click.option("--dialect", type=click.Choice(list(DIALECTS)), default="current", show_default=True)
@click.option("--list", "list_only", is_flag=True, help="List the checks and their rules.")
@click.option("--only", metavar="ID", multiple=True, help="Run this check, or this group; may be repeated.")
@click.option(
    "--level", type=click.Choice(["must", "reference"]), default="reference", help="must: leave out REFERENCE."
)
@click.option("--junit", type=click.Path(dir_okay=False, path_type=Path), help="Write JUnit XML.")
@click.option("--json", "json_path", type=click.Path(dir_okay=False, path_type=Path), help="Write JSON.")
@click.option("--timeout", type=float, default=5.0, show_default=True, help="Seconds that each answer may take.")
def command(
    socket: str | None,
    server_command: str | None,
    dialect: str,
    list_only: bool,
    only: tuple[str, ...],
    level: str,
    junit: Path | None,
    json_path: Path | None,
    timeout: float,
) -> None:
    """Check the server at SOCKET, or the one that a command starts.

    A check that does not apply is skipped with its reason. The exit status is 0 if nothing failed, and 1 if something
    did.
    """
    checks = _chosen(only, level, dialect)
    if list_only:
        _list(checks)
        return
    if (socket is None) == (server_command is None):
        raise UserError("one server, please", hint="give either SOCKET or --server-command 'CMD {socket}'")
    results = _run(checks, socket, server_command, DIALECTS[dialect], timeout)
    if junit is not None:
        _write_junit(junit, results, dialect)
    if json_path is not None:
        with about(json_path):
            json_path.write_text(json.dumps(_document(results, dialect), indent=2) + "\n")
    _judge(results)


def _chosen(only: Sequence[str], level: str, dialect: str) -> list[Check[Bench]]:
    """The checks that were asked for and are rules of the dialect."""
    unknown = [name for name in only if not any(name in (check.id, check.group) for check in CATALOGUE)]
    if unknown:
        raise UserError(f"no check or group is called {unknown[0]!r}", hint="--list shows them")
    return [
        check
        for check in CATALOGUE
        if (not only or check.id in only or check.group in only)
        and (level == "reference" or check.level is Level.MUST)
        and (check.dialects is None or dialect in check.dialects)
    ]


def _list(checks: Iterable[Check[Bench]]) -> None:
    for check in checks:
        click.echo(f"{check.id}  {check.title}\n    {check.level.value}, {check.rule}")


def _run(
    checks: Sequence[Check[Bench]], socket: str | None, server_command: str | None, dialect: Dialect, timeout: float
) -> list[CheckResult[Bench]]:
    results: list[CheckResult[Bench]] = []
    group = ""
    with _target(socket, server_command, timeout) as target:
        if habit := target.try_out(dialect):
            click.echo(habit)
        for result in run(checks, target, dialect, timeout=timeout):
            if result.check.group != group:
                group = result.check.group
                click.echo(f"\n{click.style(group, bold=True)}")
            _show(result)
            results.append(result)
    return results


@contextmanager
def _target(socket: str | None, server_command: str | None, timeout: float) -> Iterator[RunningServer | CommandServer]:
    if socket is not None:
        with RunningServer(socket, timeout=timeout) as running:
            yield running
        return
    from vfio_user.harness.scratch import Scratch  # a server that runs already needs no extra

    assert server_command is not None
    with (
        Scratch() as scratch,
        CommandServer(
            server_command, scratch.path, timeout=timeout, environment=scratch.environment, say=click.echo
        ) as started,
    ):
        yield started


def _show(result: CheckResult[Bench]) -> None:
    mark, colour = _MARKS[result.outcome]
    name = result.check.id.partition("/")[2]
    click.echo(f"  {click.style(mark, fg=colour)} {name}: {result.check.title}")
    if result.outcome is Outcome.FAIL:
        click.echo(f"      {result.check.level.value}, {result.check.rule}")
    for line in result.detail.splitlines():
        click.echo(click.style(f"      {line}", fg=colour))


def _judge(results: Sequence[CheckResult[Bench]]) -> None:
    count = {outcome: sum(result.outcome is outcome for result in results) for outcome in Outcome}
    seconds = sum(result.seconds for result in results)
    click.echo(
        f"\n{len(results)} checks: {count[Outcome.PASS]} passed, {count[Outcome.FAIL]} failed, "
        f"{count[Outcome.SKIP]} skipped, in {seconds:.1f} s"
    )
    if count[Outcome.FAIL]:
        failed = "\n".join(f"  {result.check.id}" for result in results if result.outcome is Outcome.FAIL)
        raise VerdictError(f"{count[Outcome.FAIL]} of {len(results)} checks", evidence=failed)


def _document(results: Sequence[CheckResult[Bench]], dialect: str) -> dict[str, object]:
    return {
        "dialect": dialect,
        "checks": [
            {
                "id": result.check.id,
                "title": result.check.title,
                "level": result.check.level.value,
                "rule": result.check.rule,
                "outcome": result.outcome.value,
                "detail": result.detail,
                "seconds": round(result.seconds, 6),
            }
            for result in results
        ],
    }


def _write_junit(path: Path, results: Sequence[CheckResult[Bench]], dialect: str) -> None:
    from junitparser import Failure, JUnitXml, Skipped, TestCase, TestSuite  # slow to import, seldom wanted

    document = JUnitXml("vfio-user conformance")
    suites: dict[str, TestSuite] = {}
    for result in results:
        group = result.check.group
        suite = suites.setdefault(group, TestSuite(group))
        name = result.check.id.partition("/")[2]
        case = TestCase(name, classname=f"{dialect}.{group}", time=result.seconds)
        if result.outcome is Outcome.FAIL:
            failure = Failure(result.detail, result.check.level.value)
            failure.text = f"{result.check.title}\n{result.check.rule}\n{result.detail}"
            case.result = [failure]
        elif result.outcome is Outcome.SKIP:
            case.result = [Skipped(result.detail)]
        suite.add_testcase(case)
    for suite in suites.values():
        document.add_testsuite(suite)
    with about(path):
        document.write(str(path), pretty=True)
