"""A catalogue of checks with ids that stay, each citing its rule, for any server in any language."""

from __future__ import annotations

from vfio_user.client.conformance import (
    access,
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
from vfio_user.client.conformance.bench import Bench, Target
from vfio_user.client.conformance.check import Check, CheckFailed, Group, Level, Skip
from vfio_user.client.conformance.runner import Outcome, Result, run

GROUPS: tuple[Group, ...] = (
    version.version,
    messages.header,
    messages.order,
    device.info,
    device.region_info,
    device.io_fds,
    device.irq_info,
    irqs.set_irqs,
    access.region_read,
    access.region_write,
    access.write_multi,
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

CATALOGUE: tuple[Check, ...] = tuple(check for group in GROUPS for check in group)

__all__ = [
    "CATALOGUE",
    "GROUPS",
    "Bench",
    "Check",
    "CheckFailed",
    "Group",
    "Level",
    "Outcome",
    "Result",
    "Skip",
    "Target",
    "run",
]
