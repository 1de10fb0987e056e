"""A catalogue of checks with ids that stay, each citing its rule, for any back-end in any language.

What the specification leaves open, or back-ends that are in use do each in their own way, has level OPEN.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

from userdev import conformance
from userdev.conformance import Check, CheckResult, Group, Target
from userdev.transport import Stream
from vhost_user.frontend.conformance import (
    device,
    dirty_log,
    in_flight,
    iommu,
    kinds,
    memory,
    messages,
    negotiation,
    notifications,
    postcopy,
    rings,
    sessions,
    state,
)
from vhost_user.frontend.conformance.bench import Bench, where_offered
from vhost_user.frontend.conformance.devices import DEVICES, DeviceKind
from vhost_user.frontend.front_end import FrontEnd

GROUPS: tuple[Group[Bench], ...] = (
    negotiation.features,
    messages.messages,
    rings.rings,
    kinds.kinds,
    memory.memory,
    iommu.iommu,
    notifications.in_band,
    device.config,
    device.status,
    device.reset,
    dirty_log.log,
    in_flight.inflight,
    state.state,
    postcopy.postcopy,
    sessions.session,
)

CATALOGUE: tuple[Check[Bench], ...] = tuple(
    replace(check, run=where_offered(check.run)) for group in GROUPS for check in group
)

DIALECT = "vhost-user"


def greet(stream: Stream, timeout: float) -> None:
    """Be one front-end that begins a conversation (`userdev.conformance.targets.Greet`)."""
    with FrontEnd(stream, timeout=timeout) as front_end:
        front_end.negotiate()


def run(
    checks: Sequence[Check[Bench]],
    target: Target,
    device: DeviceKind | None = None,
    *,
    timeout: float = 5.0,
    started: Callable[[Check[Bench]], None] | None = None,
) -> Iterator[CheckResult[Bench]]:
    """Run the checks in order, each with connections of its own; `timeout` is in seconds.

    `device` says what is served; without it, checks that need a request are skipped. Otherwise as
    `userdev.conformance.run`.

    Raises:
        ValueError: a check needs one that there is not.
    """
    conformance.require_known_needs(checks, CATALOGUE)
    bench = partial(Bench, target, device, timeout=timeout)
    return conformance.run(checks, target, bench, dialect=DIALECT, settle=target.settle, started=started)


__all__ = ["CATALOGUE", "DEVICES", "DIALECT", "GROUPS", "Bench", "DeviceKind", "Target", "greet", "run"]
