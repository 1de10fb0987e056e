"""A catalogue of checks with ids that stay, each citing its rule, for any server in any language."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from userdev import conformance
from userdev.conformance import Check, CheckFailed, CheckResult, Group, Level, Outcome, Skip, Target
from vfio_user.client.conformance import (
    access,
    config_space,
    device,
    device_dma,
    dirty_logging,
    dma,
    features,
    irqs,
    messages,
    migration,
    migration_v1,
    sessions,
    version,
)
from vfio_user.client.conformance.bench import Bench, greeting
from vfio_user.client.conformance.reception import Reception
from vfio_user.wire import Dialect

GROUPS: tuple[Group[Bench], ...] = (
    version.version,
    messages.header,
    device.info,
    device.region_info,
    device.io_fds,
    device.irq_info,
    irqs.set_irqs,
    access.region_read,
    access.region_write,
    access.write_multi,
    messages.order,
    config_space.config,
    dma.dma_map,
    dma.dma_unmap,
    device_dma.device_dma,
    features.feature,
    migration.migration,
    migration.mig_data,
    dirty_logging.dirty_logging,
    migration_v1.migration_region,
    migration_v1.dirty_pages,
    access.reset,
    sessions.session,
)

REFERENCE = "libvfio-user efd091b of 2026-06"
"""What `Level.REFERENCE` means where a check names no other revision (docs/protocol.md, section 0)."""

CATALOGUE: tuple[Check[Bench], ...] = tuple(check for group in GROUPS for check in group)


def run(
    checks: Sequence[Check[Bench]],
    target: Target,
    dialect: Dialect,
    *,
    timeout: float = 5.0,
    started: Callable[[Check[Bench]], None] | None = None,
) -> Iterator[CheckResult[Bench]]:
    """Run the checks in order, each with connections of its own; `timeout` is in seconds.

    Otherwise as `userdev.conformance.run`.

    Raises:
        ValueError: a check needs one that there is not.
    """
    conformance.require_known_needs(checks, CATALOGUE)
    return _run(checks, Reception(target, dialect, timeout=timeout), dialect, started)


def _run(
    checks: Sequence[Check[Bench]],
    reception: Reception,
    dialect: Dialect,
    started: Callable[[Check[Bench]], None] | None,
) -> Iterator[CheckResult[Bench]]:
    with reception:
        yield from conformance.run(
            checks, reception, reception.bench, dialect=dialect.name, settle=reception.settle, started=started
        )


__all__ = [
    "CATALOGUE",
    "GROUPS",
    "REFERENCE",
    "Bench",
    "Check",
    "CheckFailed",
    "CheckResult",
    "Group",
    "Level",
    "Outcome",
    "Skip",
    "Target",
    "greeting",
    "run",
]
