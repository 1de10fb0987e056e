"""Memory that the front-end shares: its regions, translations of an IOMMU, and the dirty log. Without sockets."""

from vhost_user.memory.iotlb import Iotlb, IotlbMiss
from vhost_user.memory.log import DirtyLog
from vhost_user.memory.mapping import FileMapping
from vhost_user.memory.table import MemoryTable
from vhost_user.wire.payloads import Permission

__all__ = ["DirtyLog", "FileMapping", "Iotlb", "IotlbMiss", "MemoryTable", "Permission"]
