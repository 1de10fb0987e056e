"""`vfio-user conformance`: any server, in any language, against the rules of the protocol."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from typing import Any

import click

from userdev.errors import UserdevError, UserError
from vfio_user.cli._choice import Choice
from vfio_user.cli._command import CommandLine
from vfio_user.cli._completion import complete_servers
from vfio_user.cli._conformance import Asked, Suite, Target, options
from vfio_user.cli._other_protocol import probe_command, speaks_vhost_user
from vfio_user.cli._own_checks import own_checks
from vfio_user.cli._served import one_command
from vfio_user.client.conformance import CATALOGUE, REFERENCE, Bench, Check, CheckResult, greeting, run
from vfio_user.client.errors import RemoteError
from vfio_user.wire import CURRENT, DIALECTS, DRAFT_V6, Dialect


@click.command(cls=CommandLine)
@options("SOCKET", complete=complete_servers)
@click.option("--dialect", type=Choice(list(DIALECTS)), default="current", show_default=True)
def command(dialect: str, **given: Any) -> None:
    """Check the server at SOCKET, or the one that a command starts, or ours of a device.

    A check that does not apply is skipped with its reason, and one that goes wrong for want of another that failed is
    not judged; a mistake that several rules name fails each of them. The exit status is 0 if nothing failed, and 1 if
    something did.
    """
    asked = Asked(**given)
    if asked.device is not None:
        started = one_command(asked.address, asked.server_command, asked.device, "vfio-user")
        asked = replace(asked, server_command=started, device=None)
    spoken = DIALECTS[dialect]
    catalogue: Sequence[Check[Bench]] = CATALOGUE
    if asked.checks is not None:
        catalogue = own_checks(asked.checks, CATALOGUE)
    if asked.corpus is not None:
        from vfio_user.cli._fuzzing import corpus_checks  # slow to import, seldom wanted
        from vfio_user.fuzz import PROTOCOL, VfioUserSubject

        catalogue = corpus_checks(asked.corpus, PROTOCOL, partial(VfioUserSubject.of, spoken), CATALOGUE)

    def run_checks(checks: Sequence[Check[Bench]], target: Target) -> Iterator[CheckResult[Bench]]:
        _require_dialect(target, spoken, asked.address, timeout=asked.timeout)
        return run(checks, target, spoken, timeout=asked.timeout)

    Suite(catalogue, "vfio-user", dialect, reference=REFERENCE).carry_out(asked, greeting(spoken), run_checks)


def _require_dialect(target: Target, spoken: Dialect, address: str | None, *, timeout: float) -> None:
    """See to it that the server does not speak another dialect, or protocol, whose rules it would be judged by.

    Raises:
        UserError: it greets nobody in this one, and whoever speaks the other, or has another client: no verdict, that.
    """
    other = CURRENT if spoken.fds_capability == DRAFT_V6.fds_capability else DRAFT_V6
    refusal = _refusal(target, spoken, timeout)
    if refusal is None or isinstance(refusal, TimeoutError):
        return
    if address is not None and isinstance(refusal, RemoteError) and refusal.errno == errno.EBUSY:
        from vfio_user.cli.probe import hint_at_version  # slow to import, seldom wanted

        raise UserError(f"{address}: {refusal}", hint=hint_at_version(refusal))
    speaks_other = _refusal(target, other, timeout) is None
    is_back_end = not speaks_other and speaks_vhost_user(target.connect, timeout=timeout)
    target.renew()
    target.crashed()  # the checks will see it again
    if speaks_other:
        raise UserError(
            f"the server speaks another dialect, {other.name}, and not {spoken.name}: {refusal}",
            hint=f"--dialect {other.name} tries it by the rules of that",
        )
    if is_back_end:
        hint = f"it speaks vhost-user: {probe_command('vhost-user', address, 'conformance')}"
        raise UserError(f"the server agrees on no version: {refusal}", hint=hint)


def _refusal(target: Target, dialect: Dialect, timeout: float) -> UserdevError | None:
    """What becomes of a client of this dialect; None where a version is agreed on."""
    with closing(target.connect()) as stream:
        try:
            greeting(dialect)(stream, timeout)
        except UserdevError as error:
            return error
    return None
