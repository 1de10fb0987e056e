"""`vfio-user doctor`: what is there, what is missing, how to get it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator

import click

from vfio_user.cli._command import CommandLine
from vfio_user.cli._progress import quiet_option
from vfio_user.harness.doctor import Finding, Readiness, can_run, examine_machine
from vfio_user.harness.remedies import Treated, treat

MARKS: dict[Readiness, tuple[str, str]] = {
    Readiness.GOOD: ("ok", "green"),
    Readiness.LATER: ("later", "cyan"),
    Readiness.ABSENT: ("absent", "yellow"),
    Readiness.BAD: ("BAD", "red"),
}


@click.command(cls=CommandLine)
@click.option("--fix", is_flag=True, help="Do what can be done without root, and say what is left.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@quiet_option("Say only what is not as it should be.")
@click.pass_context
def command(context: click.Context, fix: bool, as_json: bool, quiet: bool) -> None:
    """Say what is there, what is missing and how to get it.

    Status 0 when `scripts/run` can work here, 2 when not. "later" is what the first run gets by itself; what is
    "absent" would only be needed for some features. With --fix that is fetched and built now, into the cache.
    """
    treated = []
    for each in _treat(quiet=quiet or as_json) if fix else map(Treated, examine_machine()):
        treated.append(each)
        if not as_json and (each.done or each.failure or not quiet or each.finding.state is not Readiness.GOOD):
            _show(each)
    good = can_run([each.finding for each in treated])
    if as_json:
        findings = [_document(each, fix=fix) for each in treated]
        click.echo(json.dumps({"ok": good, "findings": findings}, indent=2))
    else:
        if fix and (left := [each.finding for each in treated if each.is_left]):
            _tell_what_is_left(left)
        click.echo("\nthis machine can run guests" if good else "\nthis machine cannot run guests yet")
    context.exit(0 if good else 2)


def _treat(*, quiet: bool) -> Iterator[Treated]:
    return treat(lambda text: None if quiet else click.echo(f"{'':8}{text}", err=True))


def _document(treated: Treated, *, fix: bool) -> dict[str, object]:
    """A finding; with --fix also what was done, or why that failed."""
    said = dataclasses.asdict(treated.finding)
    return said | {"done": treated.done, "failure": treated.failure} if fix else said


def _show(treated: Treated) -> None:
    finding = treated.finding
    text, colour = MARKS[finding.state]
    click.echo(f"{click.style(f'{text:7}', fg=colour)}{finding.name:14} {finding.detail}")
    if treated.done:
        click.echo(f"{'':22}{click.style('done:', fg='green')} {treated.done}, in {treated.seconds:.1f} s")
    if treated.failure:
        click.echo(f"{'':22}{click.style('could not be mended:', fg='red')} {treated.failure}")
    if finding.hint:
        click.echo(f"{'':22}{click.style('->', fg=colour)} {finding.hint}")


def _tell_what_is_left(findings: list[Finding]) -> None:
    click.echo("\nleft for you:")
    for finding in findings:
        click.echo(f"  {finding.name}: {finding.hint}")
