"""What a device author touches. `vfio_user` exports the same names.

`PciDevice` is subclassed; `register`, `stored_register`, `memory` and `state` declare what is in it; `self.interrupts`
and `self.dma` reach the guest. Standard library only.
"""

from userdev.declare.options import Option, device_options, parse_options
from userdev.declare.state import state
from vfio_user.device.device import PciDevice, function_of
from vfio_user.device.device_memory import memory
from vfio_user.device.dma import Dma
from vfio_user.device.dma_region import CURRENT_POLICY, DRAFT_V6_POLICY, DmaRegion, MapPolicy
from vfio_user.device.extra_region import ExtraRegion
from vfio_user.device.function import Function
from vfio_user.device.interrupts import Interrupts
from vfio_user.device.irq_wiring import IrqInfo
from vfio_user.device.lifecycle import Quiesce, ResetKind
from vfio_user.device.link import Link, NoClient
from vfio_user.device.mechanism import IntX, Mechanism, Msi, MsiX
from vfio_user.device.plans import Planned
from vfio_user.device.region import IoFd, RegionInfo
from vfio_user.device.register import Register, RegisterArray, register, stored_register
from vfio_user.device.views import Views
from vfio_user.migration import Storage
from vfio_user.pci import (
    Bar,
    Capability,
    ExtendedVendor,
    PciExpress,
    PciIds,
    Placed,
    PowerManagement,
    SerialNumber,
    VendorSpecific,
)
from vfio_user.wire.constants import MigrationState

__all__ = [
    "CURRENT_POLICY",
    "DRAFT_V6_POLICY",
    "Bar",
    "Capability",
    "Dma",
    "DmaRegion",
    "ExtendedVendor",
    "ExtraRegion",
    "Function",
    "IntX",
    "Interrupts",
    "IoFd",
    "IrqInfo",
    "Link",
    "MapPolicy",
    "Mechanism",
    "MigrationState",
    "Msi",
    "MsiX",
    "NoClient",
    "Option",
    "PciDevice",
    "PciExpress",
    "PciIds",
    "Placed",
    "Planned",
    "PowerManagement",
    "Quiesce",
    "RegionInfo",
    "Register",
    "RegisterArray",
    "ResetKind",
    "SerialNumber",
    "Storage",
    "VendorSpecific",
    "Views",
    "device_options",
    "function_of",
    "memory",
    "parse_options",
    "register",
    "state",
    "stored_register",
]
