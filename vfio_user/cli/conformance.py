"""`vfio-user conformance`: any server, in any language, against the rules of the protocol."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import click

from vfio_user.cli._choice import Choice
from vfio_user.cli._completion import complete_servers
from vfio_user.cli._conformance import Asked, Suite, Target, options
from vfio_user.cli._fuzzing import corpus_checks
from vfio_user.cli._own_checks import own_checks
from vfio_user.cli._served import one_command
from vfio_user.client.conformance import CATALOGUE, REFERENCE, Bench, Check, CheckResult, greeting, run
from vfio_user.fuzz import PROTOCOL, VfioUserSubject
from vfio_user.wire import DIALECTS


@click.command()
@options("SOCKET", complete=complete_servers)
@click.option("--dialect", type=Choice(list(DIALECTS)), default="current", show_default=True)
def command(dialect: str, **given: Any) -> None:
    """Check the server at SOCKET, or the one that a command starts, or ours of a device.

    A check that does not apply is skipped with its reason, and one that goes wrong for want of another that failed is
    not judged: every cause is one failure. The exit status is 0 if nothing failed, and 1 if something did.
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
        catalogue = corpus_checks(asked.corpus, PROTOCOL, partial(VfioUserSubject.of, spoken))

    def run_checks(checks: Sequence[Check[Bench]], target: Target) -> Iterator[CheckResult[Bench]]:
        return run(checks, target, spoken, timeout=asked.timeout)

    Suite(catalogue, "vfio-user", dialect, reference=REFERENCE).carry_out(asked, greeting(spoken), run_checks)
