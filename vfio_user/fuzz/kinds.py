"""All kinds of steps that a device can be asked for."""

from __future__ import annotations

from userdev.fuzz import Kind
from vfio_user.fuzz import accesses, dma, irqs, messages, migration, migration_region
from vfio_user.fuzz.encounter import Encounter
from vfio_user.fuzz.ground import Ground


def kinds(ground: Ground) -> list[Kind[Encounter]]:
    """Those of this device."""
    return [
        kind for room in (accesses, dma, irqs, migration, migration_region, messages) for kind in room.kinds(ground)
    ]
