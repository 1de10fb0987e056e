"""`vfio-user doctor`: what is there, what is missing, how to get it."""

from __future__ import annotations

import dataclasses
import json
import sys

import click

from vfio_user.harness.doctor import Finding, Readiness, can_run, examine_machine

MARKS: dict[Readiness, tuple[str, str]] = {
    Readiness.GOOD: ("ok", "green"),
    Readiness.LATER: ("later", "cyan"),
    Readiness.ABSENT: ("absent", "yellow"),
    Readiness.BAD: ("BAD", "red"),
}


@click.command()
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def command(as_json: bool) -> None:
    """Say what is there, what is missing and how to get it.

    Status 0 when `scripts/run` can work here, 2 when not. "later" is what the first run gets by itself; what is
    "absent" would only be needed for some features.
    """
    findings = []
    for finding in examine_machine():
        findings.append(finding)
        if not as_json:
            _show(finding)
    good = can_run(findings)
    if as_json:
        click.echo(json.dumps({"ok": good, "findings": [dataclasses.asdict(each) for each in findings]}, indent=2))
    else:
        click.echo("\nthis machine can run guests" if good else "\nthis machine cannot run guests yet")
    sys.exit(0 if good else 2)


def _show(finding: Finding) -> None:
    text, colour = MARKS[finding.state]
    click.echo(f"{click.style(f'{text:7}', fg=colour)}{finding.name:14} {finding.detail}")
    if finding.hint:
        click.echo(f"{'':22}{click.style('->', fg=colour)} {finding.hint}")
