"""`scripts/detect`: the matrix of bugs and verdicts; its last line is caught/total."""

from __future__ import annotations

import re
import sys
import time

import click

from tests.seeded_bugs.catalogue import load
from tests.seeded_bugs.detection import Finding, Verdict, detect


@click.command()
@click.option("--quick", is_flag=True, help="Only the bugs that can be noticed without a guest.")
@click.option(
    "--part",
    metavar="K/N",
    callback=lambda _context, _option, text: _part(text),
    help="Only each Nth of them, from the Kth on: 1/3, 2/3 and 3/3 are all.",
)
@click.option("--only", metavar="ID", multiple=True, help="Only this bug; may be given several times.")
@click.option(
    "--jobs",
    type=click.IntRange(1),
    default=2,
    show_default=True,
    help="Tests at once, those aside that have a guest or wait for long.",
)
@click.option("--list", "list_only", is_flag=True, help="Say what the bugs are, and run nothing.")
def main(quick: bool, part: slice, only: tuple[str, ...], jobs: int, list_only: bool) -> None:
    """Put in one bug after the other, and see whether the test that must fail does.

    Exit status 1 when a bug was not caught: then a test is missing, or the entry no longer fits the code.
    """
    bugs = load()
    if unknown := set(only) - bugs.keys():
        raise click.UsageError(f"there is no bug {', '.join(sorted(unknown))}; --list names them all")
    chosen = [bug for bug in bugs.values() if (not only or bug.id in only) and not (quick and bug.guest)][part]
    width = max((len(bug.id) for bug in chosen), default=0)
    if list_only:
        for bug in chosen:
            click.echo(f"{bug.id:{width}}  {bug.what}")
        return
    began = time.monotonic()
    findings: list[Finding] = []

    def tell(finding: Finding) -> None:
        findings.append(finding)
        bug = finding.bug
        click.echo(f"{finding.verdict:12}  {bug.id:{width}}  {finding.seconds:5.1f} s  {bug.test}")

    detect(chosen, tell, jobs=jobs)
    caught = [finding for finding in findings if finding.verdict is Verdict.CAUGHT]
    for finding in findings:
        if finding not in caught:
            click.echo(f"\n{finding.verdict}: {finding.bug.id}: {finding.bug.what}\n{finding.evidence}")
    click.echo(f"{time.monotonic() - began:.0f} s")
    told = [finding for finding in findings if finding.verdict is not Verdict.UNTOLD]
    click.echo(f"{len(caught)}/{len(told)}")
    sys.exit(0 if findings and len(caught) == len(told) else 1)


def _part(text: str | None) -> slice:
    """Each Nth from the Kth on, as a slice; all without a text."""
    if text is None:
        return slice(None)
    if not (told := re.fullmatch(r"([1-9]\d{0,2})/([1-9]\d{0,2})", text)) or int(told[1]) > int(told[2]):
        raise click.BadParameter("a part is K/N, of which K is at most N: 1/3")
    return slice(int(told[1]) - 1, None, int(told[2]))


if __name__ == "__main__":
    main()
