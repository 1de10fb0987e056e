"""A device whose server dies when a client leaves that had set interrupts up, once the next one has been taken."""

from __future__ import annotations

import os
from time import monotonic

from tests.device_kit import open_fds
from vfio_user.device import MsiX, PciDevice, PciIds, ResetKind

PATIENCE = 30.0


class Dying(PciDevice):
    """Ends its process with status 3."""

    ids = PciIds(0x1AF4, 0x10F7)
    interrupts = MsiX(vectors=2)

    def on_reset(self, kind: ResetKind) -> None:
        if self.interrupts.active == "msix" and kind is ResetKind.LOST_CONNECTION:
            before, end = len(open_fds()), monotonic() + PATIENCE
            while len(open_fds()) <= before and monotonic() < end:
                os.sched_yield()  # nothing tells of a descriptor more
            os._exit(3)
