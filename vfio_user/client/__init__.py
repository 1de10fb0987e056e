"""The VMM's side in Python: a client that does everything QEMU's does, and what is built on it."""

from userdev.memory.bitmap import DirtyBitmap, bitmap_size
from vfio_user.client.channel import Channel, Pending
from vfio_user.client.client import Client
from vfio_user.client.errors import Disconnected, NoAnswer, RemoteError
from vfio_user.client.eventfd import EventFd
from vfio_user.client.memory import AddressSpace, GuestMemory, Mapping
from vfio_user.client.migration_region import MigrationRegisters
from vfio_user.client.regions import IoSubRegion, Region

__all__ = [
    "AddressSpace",
    "Channel",
    "Client",
    "DirtyBitmap",
    "Disconnected",
    "EventFd",
    "GuestMemory",
    "IoSubRegion",
    "Mapping",
    "MigrationRegisters",
    "NoAnswer",
    "Pending",
    "Region",
    "RemoteError",
    "bitmap_size",
]
