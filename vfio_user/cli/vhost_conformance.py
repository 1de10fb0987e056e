"""`vhost-user conformance`: any back-end, in any language, against the rules of the protocol."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import click

from userdev.conformance import Check, CheckResult
from userdev.errors import UserError, meant
from vfio_user.cli._completion import complete_checked_back_ends
from vfio_user.cli._conformance import Asked, Suite, Target, options
from vfio_user.cli._fuzzing import corpus_checks
from vfio_user.cli._own_checks import own_checks
from vhost_user.frontend.conformance import CATALOGUE, DEVICES, DIALECT, Bench, greet, run
from vhost_user.frontend.conformance.devices import DeviceKind
from vhost_user.fuzz import PROTOCOL, VhostUserSubject


@click.command()
@options(
    "ADDRESS",
    complete=complete_checked_back_ends,
    device=f"What is served, which the protocol does not say: {', '.join(DEVICES)}. Without a server: ",
)
def command(**given: Any) -> None:
    """Check the back-end at ADDRESS, or the one that a command starts, or ours of a device.

    A check that does not apply is skipped with its reason. What the specification leaves open is told as "differs",
    and fails nobody. The exit status is 0 if nothing failed, and 1 if something did.
    """
    asked = Asked(**given)
    kind = _kind(asked)
    catalogue: Sequence[Check[Bench]] = CATALOGUE
    if asked.checks is not None:
        catalogue = own_checks(asked.checks, CATALOGUE)
    if asked.corpus is not None:
        catalogue = corpus_checks(asked.corpus, PROTOCOL, partial(VhostUserSubject.of, kind))

    def run_checks(checks: Sequence[Check[Bench]], target: Target) -> Iterator[CheckResult[Bench]]:
        return run(checks, target, kind, timeout=asked.timeout)

    Suite(catalogue, "vhost-user", DIALECT).carry_out(asked, greet, run_checks)


def _kind(asked: Asked) -> DeviceKind | None:
    """What is served, by --device; None where that is none of those whose requests are known.

    Raises:
        UserError: a server is named, and with it no device of those.
    """
    if asked.device is None:
        return None
    name = asked.device.split(" ")[0].removeprefix("vhost-user-")
    if name not in DEVICES and (asked.address or asked.server_command):
        hint = f"{meant(name, DEVICES)}there are: {', '.join(DEVICES)}"
        raise UserError(f"nothing is known of a device {name!r}", hint=hint)
    return DEVICES.get(name)
