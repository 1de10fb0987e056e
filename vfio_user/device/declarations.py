"""What an author says of a device in its class, beside registers, memory and state; the base of `PciDevice`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vfio_user.device.dma import Dma
from vfio_user.device.extra_region import ExtraRegion
from vfio_user.device.hooks import Hooks
from vfio_user.device.mechanism import NO_INTERRUPTS, Mechanism
from vfio_user.migration import Storage
from vfio_user.pci import Bar, Capability, ConfigSpace, PciIds, Placed


class Declarations(Hooks):
    """Class attributes, or given to `PciDevice.__init__` by a subclass that decides per device."""

    ids: PciIds
    bars: Sequence[Bar] = ()
    interrupts: Mechanism = NO_INTERRUPTS
    capabilities: Sequence[Capability | Placed] = ()
    extra_regions: Sequence[ExtraRegion] = ()
    rom: bytes = b""
    state_version = 1
    """Goes up when declared state changes so that older saved state no longer fits."""

    error_interrupt = True
    """There is an interrupt for unrecoverable errors, `interrupts.error`."""
    release_interrupt = True
    """There is one that asks for the device back, `interrupts.request_release`."""
    dma_by_message = False
    """Client memory is reached by messages alone, though the client shares it."""

    migratable = True
    """All that a guest can tell it by is in declared state, so that it can be moved."""

    config: ConfigSpace
    """Configuration space."""
    dma: Dma
    """Client memory."""

    def identity(self) -> Mapping[str, Any]:
        """Options that a saved state has to agree with, by name, beside class, ids, configuration, regions and
        interrupts: state is only loaded where all of them are equal.
        """
        return {}

    def storages(self) -> Sequence[Storage]:
        """The data outside of memory that is to migrate with the device, such as an image; see `Storage`. None."""
        return ()
