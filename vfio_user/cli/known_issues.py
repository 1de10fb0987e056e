"""`vfio-user known-issues`: what is known to go wrong outside of this project, and what of it in the QEMU at hand."""

from __future__ import annotations

import json

import click

from userdev.errors import UserError, meant
from vfio_user.cli._command import CommandLine
from vfio_user.cli._completion import complete_known_issues
from vfio_user.cli._hardware import qemu_option
from vfio_user.harness.known_issues import Here, KnownIssue, known_issues
from vfio_user.harness.qemu import Qemu, find_qemu

COLOURS = {Here.HAPPENS: "red", Here.EXPECTED: "yellow", Here.ABSENT: "green", Here.OTHER: "green"}


@click.command(cls=CommandLine)
@qemu_option(help="Of this QEMU: a path, a command or a name of `vfio-user qemu list`.")
@click.option("--json", "as_json", is_flag=True, help="For programs: everything that is known of each.")
@click.argument("ids", nargs=-1, shell_complete=complete_known_issues)
def command(qemu: str | None, as_json: bool, ids: tuple[str, ...]) -> None:
    """List what is known to go wrong in QEMU and guests, and what of it happens with the QEMU at hand.

    With IDS, all that is known of these. Guest-driven tests show each: XFAIL as long as it happens, and a failure,
    XPASS, when it stops. What ended QEMU is not shown but avoided: the tests are of what keeps it from happening.
    "expected" was seen on another version; "right" means that QEMU may do so.
    """
    if unknown := set(ids) - known_issues().keys():
        first = sorted(unknown)[0]
        hint = f"{meant(first, known_issues())}`vfio-user known-issues` has all"
        raise UserError(f"there is no known issue {', '.join(sorted(unknown))}", hint=hint)
    chosen = [issue for issue in known_issues().values() if not ids or issue.id in ids]
    used = _qemu(qemu)
    if as_json:
        click.echo(
            json.dumps({"qemu": used and _dotted(used), "issues": [_as_dict(i, used) for i in chosen]}, indent=2)
        )
    elif ids:
        for issue in chosen:
            _show(issue, used)
    else:
        _table(chosen, used)


def _qemu(explicit: str | None) -> Qemu | None:
    """The QEMU to tell of. Without one the list is worth reading too; one that was asked for has to be there."""
    try:
        return find_qemu(explicit)
    except UserError:
        if explicit:
            raise
        return None


def _here(issue: KnownIssue, qemu: Qemu | None) -> Here:
    return issue.here(qemu.version) if qemu is not None and issue.component == "qemu" else Here.UNKNOWN


def _table(issues: list[KnownIssue], qemu: Qemu | None) -> None:
    width = max(len(issue.id) for issue in issues)
    for issue in issues:
        here = _here(issue, qemu)
        click.echo(
            f"{click.style(f'{here:14}', fg=COLOURS.get(here))}{issue.status:10} {issue.id:{width}}  {issue.what}"
        )
    happening = sum(_here(issue, qemu) is Here.HAPPENS and issue.symptom is not None for issue in issues)
    of = f"QEMU {_dotted(qemu)}" if qemu is not None else "no QEMU was found"
    click.echo(f"\n{of}: {happening} of {len(issues)} happen; `vfio-user known-issues ID` tells more")


def _show(issue: KnownIssue, qemu: Qemu | None) -> None:
    click.echo(f"{click.style(issue.id, bold=True)}: {issue.what}")
    lines = {
        "here": _here(issue, qemu),
        "status": issue.status,
        "tried": ", ".join(issue.tried),
        "affects": f"{issue.component} {issue.versions}",
        "evidence": issue.evidence.strip(),
        "guard": issue.guard.strip(),
        "workaround": issue.workaround.strip(),
        "tests": "\n".join(issue.tests),
        "link": issue.link,
    }
    for name, text in lines.items():
        if text:
            first, *rest = text.splitlines()
            click.echo(f"  {name:11} {first}")
            for line in rest:
                click.echo(f"  {'':11} {line}")


def _as_dict(issue: KnownIssue, qemu: Qemu | None) -> dict[str, object]:
    return {**issue.model_dump(mode="json"), "here": _here(issue, qemu)}


def _dotted(qemu: Qemu) -> str:
    return str(qemu.version)
