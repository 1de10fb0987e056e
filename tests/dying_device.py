"""A device whose server dies when a client leaves that had set interrupts up, and not before."""

from __future__ import annotations

import os

from vfio_user.device import MsiX, PciDevice, PciIds, ResetKind


class Dying(PciDevice):
    """Ends its process with status 3."""

    ids = PciIds(0x1AF4, 0x10F7)
    interrupts = MsiX(vectors=2)

    def on_reset(self, kind: ResetKind) -> None:
        if self.interrupts.active == "msix" and kind is ResetKind.LOST_CONNECTION:
            os._exit(3)
