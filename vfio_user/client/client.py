"""The VMM's side of vfio-user: everything QEMU asks of a device, as typed calls.

Every call has a deadline and waits for its reply; requests of the server (message DMA, VM_INTERRUPT) are served out of
the client's own memory whenever it waits. An error reply raises `RemoteError`, a reply that cannot be right
`ProtocolError`, silence `NoAnswer`, a server that is gone `Disconnected`.
"""

from __future__ import annotations

from vfio_user.client.dma import DmaCalls
from vfio_user.client.features import FeatureCalls
from vfio_user.client.irqs import IrqCalls
from vfio_user.client.migration_region import MigrationRegisters
from vfio_user.client.regions import RegionCalls


class Client(RegionCalls, DmaCalls, IrqCalls, FeatureCalls):
    """One connection to one device. `Client.connect(address)` makes one; a context manager.

    Not for use by several threads at once.
    """

    def migration_region(self) -> MigrationRegisters:
        """The v1 migration registers.

        Raises:
            UserError: the device has none.
        """
        return MigrationRegisters(self)
