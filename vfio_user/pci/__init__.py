"""What a PCI function shows of itself: configuration space, header, BARs, capabilities. Data and arithmetic, no I/O."""

from vfio_user.pci.bar import BAR_COUNT, SMALLEST_ROM, Bar, check_bars, round_up_power_of_two
from vfio_user.pci.capabilities import (
    Capability,
    ExtendedVendor,
    MsiCapability,
    MsiXCapability,
    PciExpress,
    PowerManagement,
    SerialNumber,
    VendorSpecific,
)
from vfio_user.pci.config import ConfigSpace, Field
from vfio_user.pci.header import (
    COMMAND,
    COMMAND_BUS_MASTER,
    COMMAND_INTX_DISABLE,
    STATUS,
    STATUS_INTERRUPT,
    PciIds,
    build_config_space,
)
from vfio_user.pci.placement import Placed, place_capabilities

__all__ = [
    "BAR_COUNT",
    "COMMAND",
    "COMMAND_BUS_MASTER",
    "COMMAND_INTX_DISABLE",
    "SMALLEST_ROM",
    "STATUS",
    "STATUS_INTERRUPT",
    "Bar",
    "Capability",
    "ConfigSpace",
    "ExtendedVendor",
    "Field",
    "MsiCapability",
    "MsiXCapability",
    "PciExpress",
    "PciIds",
    "Placed",
    "PowerManagement",
    "SerialNumber",
    "VendorSpecific",
    "build_config_space",
    "check_bars",
    "place_capabilities",
    "round_up_power_of_two",
]
