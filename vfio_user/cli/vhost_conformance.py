"""`vhost-user conformance`: any back-end, in any language, against the rules of the protocol."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import click

from userdev.conformance import Check, CheckResult, Outcome
from userdev.errors import UserError
from vfio_user.cli._command import CommandLine
from vfio_user.cli._completion import complete_checked_back_ends
from vfio_user.cli._conformance import Asked, Suite, Target, options
from vfio_user.cli._other_protocol import probe_command, speaks_vfio_user
from vfio_user.cli._own_checks import own_checks
from vfio_user.cli._served import known_command_of
from vfio_user.cli._vhost_kinds import KINDS, served_kind, untried
from vhost_user.frontend.conformance import CATALOGUE, DIALECT, Bench, greet, run


@click.command(cls=CommandLine)
@options(
    "ADDRESS",
    complete=complete_checked_back_ends,
    device=KINDS,
)
def command(**given: Any) -> None:
    """Check the back-end at ADDRESS, or the one that a command starts, or ours of a device.

    A check that does not apply is skipped with its reason. What the specification leaves open is told as "differs",
    and fails nobody. The exit status is 0 if nothing failed, and 1 if something did.
    """
    asked = Asked(**given)
    alone = not (asked.address or asked.server_command)
    kind = served_kind(asked.device, alone=alone)
    if asked.device is not None and alone and not asked.list_only:
        asked = replace(asked, server_command=known_command_of(asked.device, "vhost-user"))
    catalogue: Sequence[Check[Bench]] = CATALOGUE
    if asked.checks is not None:
        catalogue = own_checks(asked.checks, CATALOGUE)
    if asked.corpus is not None:
        from vfio_user.cli._fuzzing import corpus_checks  # slow to import, seldom wanted
        from vhost_user.fuzz import PROTOCOL, VhostUserSubject

        catalogue = corpus_checks(asked.corpus, PROTOCOL, partial(VhostUserSubject.of, kind), CATALOGUE)

    def run_checks(checks: Sequence[Check[Bench]], target: Target) -> Iterator[CheckResult[Bench]]:
        return _judged(run(checks, target, kind, timeout=asked.timeout), target, asked)

    if kind is None and not asked.list_only and asked.corpus is None:
        click.echo(untried(asked.device), err=True)
    Suite(catalogue, "vhost-user", DIALECT).carry_out(asked, greet, run_checks)


def _judged(results: Iterator[CheckResult[Bench]], target: Target, asked: Asked) -> Iterator[CheckResult[Bench]]:
    """The results, unless the server of which nothing passed speaks the other protocol.

    Raises:
        UserError: it does: no verdict, that.
    """
    outcomes = set()
    for result in results:
        outcomes.add(result.outcome)
        yield result
    is_lost = Outcome.FAIL in outcomes and Outcome.PASS not in outcomes
    if is_lost and speaks_vfio_user(target.connect, timeout=asked.timeout):
        hint = f"it speaks vfio-user: {probe_command('vfio-user', asked.address, 'conformance')}"
        raise UserError("the server answers nothing of vhost-user", hint=hint)
